"""Secrets become connection targets, whatever their keys are called; no error repeats a value."""

from __future__ import annotations

import re
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.api.database import CaRef, MatviewDatabaseSpec, SecretKeys, SslMode
from matview_operator.domain.connection import ConnectionTarget, Pem
from matview_operator.domain.errors import InvalidTarget
from matview_operator.domain.secret import ca_from_secret, target_from_secret

CANARY = "c4n4ry-Pa55"
SECRET = {"host": "db.example", "port": "6432", "dbname": "analytics", "username": "app", "password": CANARY}
CERTIFICATE = {"tls.crt": "CHAIN", "tls.key": CANARY}
KEYS = [*SECRET, *CERTIFICATE, "user", "uri", "ca.crt"]


def spec(**fields: Any) -> MatviewDatabaseSpec:
    return MatviewDatabaseSpec.model_validate({"secretRef": {"name": "analytics-app"}, **fields})


def read(data: dict[str, str], *, ca: Pem | None = None, **fields: Any) -> ConnectionTarget:
    encoded = {key: value.encode() for key, value in data.items()}
    return target_from_secret(encoded, secret="analytics-app", spec=spec(**fields), ca=ca)


def everything_said(error: InvalidTarget) -> str:
    """Return what a log of this error would show, the errors behind it included."""
    return "".join(traceback.format_exception(error))


def test_cloudnativepgs_secret_is_read() -> None:
    target = read(SECRET | {"ca.crt": "PEM"})
    assert str(target) == "db.example:6432/analytics as app"
    assert (target.ssl_mode, target.ca) == (
        SslMode.VERIFY_FULL,
        Pem(text="PEM", source="key ca.crt of Secret analytics-app"),
    )
    assert read(SECRET).ssl_mode is SslMode.REQUIRE


def test_the_resources_database_and_mode_win_over_the_secrets() -> None:
    secret = {"uri": f"postgresql://u:{CANARY}@h/theirs?sslmode=disable"}
    target = read(secret, database="ours")
    assert (target.database, target.ssl_mode) == ("ours", SslMode.REQUIRE)
    assert read(SECRET, database="ours", sslMode="disable").ssl_mode is SslMode.DISABLE


def test_host_and_companions_win_over_the_uri() -> None:
    assert read(SECRET | {"uri": "postgresql://x:y@elsewhere/z"}).host == "db.example"


def test_every_key_can_have_another_name() -> None:
    renamed = {
        "host": "PGHOST",
        "port": "PGPORT",
        "dbname": "db_name",
        "username": "login",
        "password": "pass.word",
        "caCert": "root.pem",
        "tlsCert": "client.pem",
        "tlsKey": "client-key.pem",
    }
    usual = {"caCert": "ca.crt", "tlsCert": "tls.crt", "tlsKey": "tls.key"}
    values = SECRET | CERTIFICATE | {"ca.crt": "PEM"}
    target = read({key: values[usual.get(part, part)] for part, key in renamed.items()}, secretKeys=renamed)
    assert (target.host, target.port, target.database, target.user) == ("db.example", 6432, "analytics", "app")
    assert target.password.get_secret_value() == CANARY
    assert target.ca == Pem(text="PEM", source="key root.pem of Secret analytics-app")
    assert target.client_certificate is not None
    assert (target.client_certificate.chain.text, target.client_certificate.key.text) == ("CHAIN", CANARY)


def test_a_uri_whose_key_is_named_wins_over_the_usual_host() -> None:
    """As CloudNativePG's fqdn-uri, which stands beside host and uri."""
    secret = SECRET | {"uri": "postgresql://u:p@short/d", "fqdn-uri": "postgresql://u:p@db.ns.svc/d"}
    assert read(secret, secretKeys={"uri": "fqdn-uri"}).host == "db.ns.svc"
    assert read(secret, secretKeys={"uri": "fqdn-uri", "host": "host"}).host == "db.example"


@pytest.mark.parametrize("part", [field.alias for field in SecretKeys.model_fields.values()])
def test_a_key_that_is_named_must_be_there(part: str) -> None:
    with pytest.raises(InvalidTarget, match=rf"no key 'elsewhere', which spec\.secretKeys\.{part} names"):
        read(SECRET | CERTIFICATE | {"ca.crt": "PEM"}, secretKeys={part: "elsewhere"})


def test_a_ca_of_its_own_secret_wins_over_the_secrets() -> None:
    own = ca_from_secret({"bundle": b"OWN", "ca.key": b"\xff"}, CaRef(name="analytics-ca", key="bundle"))
    assert own == Pem(text="OWN", source="key bundle of Secret analytics-ca")
    target = read(SECRET | {"ca.crt": "PEM"}, ca=own)
    assert (target.ca, target.ssl_mode) == (own, SslMode.VERIFY_FULL)
    for data in ({}, {"ca.crt": b""}):
        with pytest.raises(InvalidTarget, match=r"spec\.caRef\.key"):
            ca_from_secret(data, CaRef(name="analytics-ca"))


def test_a_client_certificate_takes_the_passwords_place() -> None:
    secret = {key: value for key, value in SECRET.items() if key != "password"} | CERTIFICATE
    target = read(secret)
    assert target.client_certificate is not None
    assert target.password.get_secret_value() == ""
    with pytest.raises(InvalidTarget, match="'password'"):
        read(secret, sslMode="disable")


@pytest.mark.parametrize(("left_out", "there"), [("tls.crt", "tls.key"), ("tls.key", "tls.crt")])
def test_half_a_client_certificate_is_refused(left_out: str, there: str) -> None:
    secret = {key: value for key, value in (SECRET | CERTIFICATE).items() if key != left_out}
    with pytest.raises(InvalidTarget, match=re.escape(f"{there} without {left_out}")) as caught:
        read(secret)
    assert CANARY not in everything_said(caught.value)


def test_verify_ca_needs_a_ca_of_ones_own() -> None:
    for secret in (SECRET, {"uri": f"postgresql://u:{CANARY}@h/d"}):
        with pytest.raises(InvalidTarget, match="verify-ca needs a CA"):
            read(secret, sslMode="verify-ca")
        assert read(secret | {"ca.crt": "PEM"}, sslMode="verify-ca").ssl_mode is SslMode.VERIFY_CA


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"password": None}, "'password'"),
        ({"username": None}, "'username'"),
        ({"dbname": None}, "'dbname'"),
        ({"host": None}, "'host'"),
        ({"password": f"{CANARY}\n"}, "password"),
        ({"password": f"{CANARY}\0"}, "password"),
        ({"password": CANARY * 100_000}, "'password'"),
        ({"host": "/var/run/postgresql"}, "host"),
        ({"host": "a,b"}, "host"),
        ({"host": "h\r\n"}, "host"),
        ({"host": "h" * 1_000_000}, "'host'"),
        ({"port": "5432; drop"}, "port"),
        ({"port": "٣"}, "port"),
        ({"port": "0"}, "port"),
        ({"port": "65536"}, "port"),
        ({"port": "1" * 16_000}, "port"),
        ({"uri": f"https://u:{CANARY}@h/d", "host": None}, "postgresql://"),
        ({"uri": f"postgresql://u:{CANARY}@h/d?" + "a" * 1_000_000, "host": None}, "'uri'"),
    ],
)
def test_a_secret_that_cannot_be_used_names_the_key_and_never_its_value(
    change: dict[str, str | None], named: str
) -> None:
    with pytest.raises(InvalidTarget) as caught:
        read({key: value for key, value in {**SECRET, **change}.items() if value is not None})
    assert named in str(caught.value)
    assert CANARY not in everything_said(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", [*SECRET, *CERTIFICATE, "ca.crt"])
def test_bytes_that_are_no_text_are_told_by_their_key(key: str) -> None:
    secret = {name: value.encode() for name, value in (SECRET | CERTIFICATE | {"ca.crt": "PEM"}).items()}
    with pytest.raises(InvalidTarget, match=re.escape(f"'{key}' is not UTF-8 text")) as caught:
        target_from_secret(secret | {key: CANARY.encode() + b"\xff"}, secret="s", spec=spec())
    assert CANARY not in everything_said(caught.value)


def test_keys_that_nobody_asks_for_may_hold_what_they_like() -> None:
    secret = {key: value.encode() for key, value in SECRET.items()} | {"truststore.p12": b"\xff\0\xfe"}
    assert target_from_secret(secret, secret="s", spec=spec()).host == "db.example"


@given(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode))),
    st.dictionaries(st.sampled_from(["host", "uri", "username", "tlsKey"]), st.sampled_from(KEYS)),
)
def test_no_secret_makes_another_error(data: dict[str, bytes], keys: dict[str, str]) -> None:
    try:
        target = target_from_secret(data, secret="s", spec=spec(secretKeys=keys))
    except InvalidTarget:
        return
    assert target.ssl_mode in (SslMode.REQUIRE, SslMode.VERIFY_FULL)


def test_a_target_hides_its_password_and_its_key() -> None:
    target = read(SECRET | CERTIFICATE)
    assert CANARY not in f"{target!r} {target}"
