"""TLS on real servers: each sslMode takes the certificates that it should and no others; clients show theirs."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from sandbox.certificate import Authority, Certificate
from tests.database import MV_OPERATOR
from tests.opened_files import opened_files
from tests.refreshes import a_run

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ClientCertificate, ConnectionTarget, Pem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database
    from tests.databases import Databases

    from matview_operator import RefreshResult

DISABLE, REQUIRE, VERIFY_CA, VERIFY_FULL = SslMode
UNVERIFIED = frozenset({DISABLE, REQUIRE})
DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a server shows, who takes it, and what the others say."""

    issue: Callable[[Authority, Authority], Certificate]
    """Given the authority that clients trust, and another one."""
    taken_by: frozenset[SslMode] = UNVERIFIED
    says: str = ""


CERTIFICATES = {
    "right": Shown(issue=lambda ours, _: ours.issue("right"), taken_by=frozenset(SslMode)),
    "wrong CA": Shown(issue=lambda _, other: other.issue("wrong"), says="signed by no CA that is trusted here"),
    "wrong host name": Shown(
        issue=lambda ours, _: ours.issue("name", subject="elsewhere", alternatives=["DNS:elsewhere.example"]),
        taken_by=UNVERIFIED | {VERIFY_CA},
        says="for another host name",
    ),
    # The connection goes to an address, and what is verified is the name all the same.
    "its address only": Shown(
        issue=lambda ours, _: ours.issue("address", subject="elsewhere", alternatives=["IP:127.0.0.1"]),
        taken_by=UNVERIFIED | {VERIFY_CA},
        says="for another host name",
    ),
    "its name only": Shown(
        issue=lambda ours, _: ours.issue("only", subject="elsewhere", alternatives=["DNS:localhost"]),
        taken_by=frozenset(SslMode),
    ),
    # As libpq has it, where the certificate names no alternatives.
    "name in the subject": Shown(
        issue=lambda ours, _: ours.issue("subject", alternatives=()), taken_by=frozenset(SslMode)
    ),
    "expired": Shown(
        issue=lambda ours, _: ours.issue("expired", starts=-2 * DAY, ends=-DAY), says="expired. Renew it on the server"
    ),
    "not yet valid": Shown(issue=lambda ours, _: ours.issue("future", starts=DAY), says="not valid yet"),
    "self-signed": Shown(issue=lambda _, other: other.own, says="signed by no CA that is trusted here"),
}


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that clients trust, and another with the same name."""
    ours, other = (Authority.make(tmp_path_factory.mktemp("authority")) for _ in range(2))
    return ours, other


@pytest.fixture(scope="session")
def certificates(authorities: tuple[Authority, Authority]) -> dict[str, Certificate]:
    """All that servers show here."""
    return {name: shown.issue(*authorities) for name, shown in CERTIFICATES.items()}


def pem(path: Path, source: str = "key ca.crt of Secret s") -> Pem:
    return Pem(text=path.read_text(), source=source)


def client(certificate: Certificate) -> ClientCertificate:
    return ClientCertificate(
        chain=pem(certificate.cert, "key tls.crt of Secret s"), key=pem(certificate.key, "key tls.key of Secret s")
    )


def target_at(port: int, database: Database, *, ca: Path) -> ConnectionTarget:
    return ConnectionTarget(
        host="localhost",
        port=port,
        database=database.name,
        user=MV_OPERATOR,
        password=SecretStr(database.passwords[MV_OPERATOR]),
        ssl_mode=VERIFY_FULL,
        ca=pem(ca),
    )


async def attempt(target: ConnectionTarget) -> RefreshResult:
    return await Refresher().refresh(target=target, run=a_run(timeout_seconds=20))


async def check(database: Database, port: int, *, shown: Shown, ca: Path) -> None:
    for mode in SslMode:
        result = await attempt(replace(target_at(port, database, ca=ca), ssl_mode=mode))
        if mode in shown.taken_by:
            assert result.outcome is RefreshOutcome.SUCCESS, (mode, result.error_message)
        else:
            assert result.error_type is RefreshReason.TLS_FAILED, (mode, result.outcome)
            assert result.error_message is not None
            assert shown.says in result.error_message
            assert "localhost" not in result.error_message


async def test_each_mode_takes_what_it_should_of_postgresql_15(
    start_server: Callable[..., Databases],
    authorities: tuple[Authority, Authority],
    certificates: dict[str, Certificate],
) -> None:
    databases = start_server(version=15, tls=True)
    async with databases.lend("bare") as database:
        await database.make_view()
        for name, shown in CERTIFICATES.items():
            await asyncio.to_thread(databases.server.show_certificate, certificates[name])
            await check(database, databases.server.port, shown=shown, ca=authorities[0].own.ca)


async def test_without_a_ca_of_ones_own_only_the_systems_are_trusted(start_server: Callable[..., Databases]) -> None:
    databases = start_server(version=15, tls=True)
    async with databases.lend("bare") as database:
        assert databases.server.ca is not None
        target = target_at(databases.server.port, database, ca=databases.server.ca)
        result = await attempt(replace(target, ca=None))
    assert result.error_type is RefreshReason.TLS_FAILED
    assert result.error_message
    assert "signed by no CA that is trusted here" in result.error_message


@pytest.mark.parametrize("databases", [16, 18], indirect=True)
async def test_each_mode_takes_what_it_should_of_pgbouncer_before_16_and_18(
    bare_database: Database,
    authorities: tuple[Authority, Authority],
    certificates: dict[str, Certificate],
    pgbouncer: Callable[..., PgBouncer],
) -> None:
    await bare_database.make_view()
    for name, shown in CERTIFICATES.items():
        port = pgbouncer(bare_database, certificate=certificates[name]).port
        await check(bare_database, port, shown=shown, ca=authorities[0].own.ca)


@dataclass(frozen=True, kw_only=True)
class Login:
    """Server and clients of certificate authentication, on any version."""

    target: ConnectionTarget
    ours: Authority
    other: Authority

    async def attempt(self, certificate: ClientCertificate | None, **changes: object) -> RefreshResult:
        changed: ConnectionTarget = replace(self.target, client_certificate=certificate, **changes)  # type: ignore[arg-type]
        return await attempt(changed)


@pytest.fixture(params=[15, 16, 18], ids=["pg15", "pgbouncer-pg16", "pgbouncer-pg18"])
async def login(
    request: pytest.FixtureRequest,
    authorities: tuple[Authority, Authority],
    certificates: dict[str, Certificate],
    pgbouncer: Callable[..., PgBouncer],
) -> AsyncIterator[Login]:
    """A server that lets in by certificate alone, signed by the same authority as its own."""
    ours, other = authorities
    own = request.param == 15
    start = request.getfixturevalue("start_server" if own else "shared_servers")
    databases: Databases = start(version=15, tls=True) if own else start(request.param)
    async with databases.lend("bare") as database:
        await database.make_view()
        if own:
            databases.server.show_certificate(certificates["right"], clients_ca=ours.own.ca)
            databases.server.pg_hba_prepend([f"hostssl all {MV_OPERATOR} 127.0.0.1/32 cert"])
            port = databases.server.port
        else:
            settings = {"auth_type": "cert", "client_tls_sslmode": "verify-full"}
            port = pgbouncer(database, certificate=certificates["right"], settings=settings).port
        target = replace(target_at(port, database, ca=ours.own.ca), password=SecretStr(""))
        yield Login(target=target, ours=ours, other=other)


async def test_a_client_certificate_lets_in_without_a_password(login: Login) -> None:
    certificate = login.ours.issue("client", subject=MV_OPERATOR, alternatives=())
    for mode in (REQUIRE, VERIFY_CA, VERIFY_FULL):
        result = await login.attempt(client(certificate), ssl_mode=mode)
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message


async def test_a_certificate_that_does_not_let_in_is_told(login: Login) -> None:
    say_why = {RefreshReason.AUTHENTICATION_FAILED, RefreshReason.CONNECT_REJECTED, RefreshReason.TLS_FAILED}
    forged = client(login.other.issue("forged", subject=MV_OPERATOR, alternatives=()))
    old = client(login.ours.issue("old", subject=MV_OPERATOR, alternatives=(), starts=-2 * DAY, ends=-DAY))
    stranger = client(login.ours.issue("stranger", subject="other_tenant", alternatives=()))
    for certificate in (None, stranger, forged, old):
        result = await login.attempt(certificate)
        assert result.outcome is RefreshOutcome.FAILED
        assert result.error_message
        # Whether its alert or its end of the connection is seen first is the network's choice.
        assert result.error_type in say_why or "may have refused ours" in result.error_message, result


async def test_what_is_no_client_certificate_is_told_by_its_key_and_asks_nobody(login: Login) -> None:
    right = login.ours.issue("right-one", subject=MV_OPERATOR, alternatives=())
    another = login.ours.issue("another", subject=MV_OPERATOR, alternatives=())
    encrypted = right.key.with_suffix(".encrypted")
    command = ["openssl", "pkcs8", "-topk8", "-in", str(right.key), "-out", str(encrypted), "-passout", "pass:secret"]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True, capture_output=True))
    both = client(right)
    for wrong, says in (
        (replace(both, key=client(another).key), "key tls.key of Secret s is not the private key of the certificate"),
        (replace(both, key=replace(both.key, text=encrypted.read_text())), "not in PEM form, or encrypted"),
        (replace(both, key=replace(both.key, text="c4n4ry \0 \n")), "(key tls.key of Secret s)"),
        (replace(both, chain=replace(both.chain, text="é" * 1_000_000)), "(key tls.crt of Secret s)"),
    ):
        result = await login.attempt(wrong)
        assert result.error_type is RefreshReason.SECRET_INVALID
        assert result.error_message
        assert says in result.error_message
        assert "c4n4ry" not in result.error_message
    for text in ("", "no certificate", "\0", "é" * 500_000, right.key.read_text()):
        result = await login.attempt(both, ca=Pem(text=text, source="key bundle of Secret analytics-ca"))
        assert result.error_type is RefreshReason.SECRET_INVALID
        assert result.error_message == (
            "The key bundle of Secret analytics-ca holds no certificates in PEM form; put the CA's there."
        )


async def test_the_private_key_is_written_to_no_disk(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's file system is read-only; this is for keys that are found there years later."""
    certificate = client(login.ours.issue("client", subject=MV_OPERATOR, alternatives=()))
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with opened_files() as opened:
        result = await login.attempt(certificate)
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
    assert opened == []


async def test_a_bundle_with_comments_is_a_ca(login: Login) -> None:
    certificate = client(login.ours.issue("client", subject=MV_OPERATOR, alternatives=()))
    bundle = f"# Autoridad de Certificación\n{login.other.own.ca.read_text()}# 我们的\n{login.ours.own.ca.read_text()}"
    result = await login.attempt(certificate, ca=Pem(text=bundle, source="key ca.crt of Secret s"))
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
