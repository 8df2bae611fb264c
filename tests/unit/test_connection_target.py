"""URLs become connection targets by an allow-list, and no error repeats a secret."""

from __future__ import annotations

import traceback
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from matview_operator.api.database import SslMode
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.errors import InvalidTarget

CANARY = "c4n4ry-Pa55"

printable = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)


def test_a_url_is_read_with_its_parts_decoded() -> None:
    target = parse_url("postgresql://a%40b:p%2Fw%3F%23@db.example:6432/my%20db?sslmode=verify-full")
    assert (target.host, target.port, target.database, target.user) == ("db.example", 6432, "my db", "a@b")
    assert target.password.get_secret_value() == "p/w?#"
    assert target.ssl_mode is SslMode.VERIFY_FULL


@given(printable, printable, printable)
def test_whatever_is_percent_encoded_arrives(user: str, password: str, database: str) -> None:
    quoted = [quote(part, safe="") for part in (user, password, database)]
    target = parse_url(f"postgresql://{quoted[0]}:{quoted[1]}@db.example/{quoted[2]}")
    assert (target.user, target.password.get_secret_value(), target.database) == (user, password, database)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_the_usual_schemes_are_understood(scheme: str) -> None:
    assert parse_url(f"{scheme}://u:p@h/d").port == 5432


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        ("127.0.0.1", SslMode.DISABLE),
        ("127.9.9.9", SslMode.DISABLE),
        ("[::1]", SslMode.DISABLE),
        ("localhost", SslMode.DISABLE),
        ("db.example", SslMode.REQUIRE),
        ("10.0.0.1", SslMode.REQUIRE),
        ("localhost.example", SslMode.REQUIRE),
    ],
)
def test_a_url_without_sslmode_demands_tls_beyond_loopback(host: str, mode: SslMode) -> None:
    assert parse_url(f"postgresql://u:p@{host}/d").ssl_mode is mode


@pytest.mark.parametrize(
    "option",
    [
        "passfile=/etc/passwd",
        "sslrootcert=/etc/passwd",
        "sslkey=/etc/passwd",
        "sslcert=/etc/passwd",
        "service=x",
        "host=/var/run/postgresql",
        "host=169.254.169.254",
        "hostaddr=169.254.169.254",
        "port=1",
        "user=postgres",
        "password=x",
        "options=-c%20role%3Dpostgres",
        "search_path=evil",
        "work_mem=1TB",
        "target_session_attrs=any",
        "sslmode=prefer",
        "sslmode=allow",
        "sslmode=",
    ],
)
def test_options_that_open_files_or_move_the_connection_are_refused(option: str) -> None:
    for url in (
        f"postgresql://u:{CANARY}@db.example/d?{option}",
        f"postgresql://u:{CANARY}@db.example/d?ssl=require&{option}",
    ):
        with pytest.raises(InvalidTarget) as caught:
            parse_url(url)
        assert CANARY not in everything_said(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "db.example",
        f"mysql://u:{CANARY}@h/d",
        f"postgresql://u:{CANARY}@/d",
        f"postgresql://:{CANARY}@h/d",
        f"postgresql://u:{CANARY}@h",
        f"postgresql://u:{CANARY}@h/",
        f"postgresql://u:{CANARY}@h1,h2/d",
        f"postgresql://u:{CANARY}@h:1,h2:2/d",
        f"postgresql://u:{CANARY}@h:port/d",
        f"postgresql://u:{CANARY}@h:0x10/d",
        f"postgresql://u:{CANARY}@h:99999/d",
        f"postgresql://u:{CANARY}@[::1/d",
        f"postgresql://u:{CANARY}@%2Fvar%2Frun/d",
        f"postgresql://u:{CANARY}@h o/d",
        f"postgresql://u:#{CANARY}@h/d",
        f"postgresql://u:?{CANARY}@h/d",
        f"postgresql://u:/{CANARY}@h/d",
        f"postgresql://u:{CANARY}%0A@h/d",
        f"postgresql://u:{CANARY}%00@h/d",
        f"postgresql://u:{CANARY}\udc80@h/d",
        f"postgresql://u:{CANARY}\n@h/d",
        f"postgresql://u:{CANARY}\t@h/d",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidTarget) as caught:
        parse_url(url)
    assert CANARY not in everything_said(caught.value)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_url_makes_another_error_or_tells_its_password(before: str, after: str) -> None:
    assume(CANARY not in before + after)
    for url in (before + CANARY + after, f"postgresql://u:{before}{CANARY}{after}@h/d"):
        try:
            target = parse_url(url)
        except InvalidTarget as error:
            said = everything_said(error)
        else:
            said = repr(target.password) + str(target.password)
        assert CANARY not in said


def test_a_line_break_at_the_end_of_a_url_does_no_harm() -> None:
    assert parse_url(f"postgresql://u:{CANARY}@h/d\n") == parse_url(f"postgresql://u:{CANARY}@h/d")


def test_a_target_hides_its_password() -> None:
    target = parse_url(f"postgresql://u:{CANARY}@db.example/d")
    assert CANARY not in f"{target!r} {target}"


def test_equal_targets_may_share_a_connection() -> None:
    def one() -> ConnectionTarget:
        return parse_url(f"postgresql://u:{CANARY}@h/d")

    assert one() == one()
    assert one() != parse_url("postgresql://u:other@h/d")


def test_verify_ca_needs_a_ca_of_ones_own() -> None:
    """Anybody gets a certificate for some name from one of the CAs that a system trusts."""
    with pytest.raises(InvalidTarget, match="verify-full"):
        parse_url(f"postgresql://u:{CANARY}@db.example/d?sslmode=verify-ca")


def everything_said(error: InvalidTarget) -> str:
    """Return what a log of this error would show, the errors behind it included."""
    return "".join(traceback.format_exception(error))
