"""How real servers ask who we are, and over which connections they get an answer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from sandbox.certificate import make_certificate
from sandbox.pgtemplate import SUPERUSER
from tests.database import MV_OPERATOR
from tests.refreshes import a_run

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget, Pem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database
    from tests.databases import Databases

VERIFIED = frozenset({SslMode.VERIFY_CA, SslMode.VERIFY_FULL})
ANSWERED = {"scram-sha-256": frozenset(SslMode), "md5": VERIFIED, "password": VERIFIED, "trust": frozenset(SslMode)}
"""What the server asks for, and over which connections it is told."""


async def check(database: Database, port: int, *, ca: str, method: str) -> None:
    for mode in SslMode:
        target = ConnectionTarget(
            host="localhost",
            port=port,
            database=database.name,
            user=MV_OPERATOR,
            password=SecretStr(database.passwords[MV_OPERATOR]),
            ssl_mode=mode,
            ca=Pem(text=ca, source="ca.crt"),
        )
        right = await Refresher().refresh(target=target, run=a_run())
        wrong = await Refresher().refresh(target=replace(target, password=SecretStr("wrong")), run=a_run())
        if mode in ANSWERED[method]:
            assert right.outcome is RefreshOutcome.SUCCESS, (method, mode, right.error_message)
            rejected = (RefreshReason.AUTHENTICATION_FAILED, RefreshReason.CONNECT_REJECTED)
            assert wrong.error_type in rejected or method == "trust", (method, mode, wrong.error_message)
        else:
            for result in (right, wrong):
                assert result.error_type is RefreshReason.TLS_FAILED, (method, mode, result.error_message)
                assert result.error_message
                assert "asked for the password itself" in result.error_message


async def test_postgresql_15_gets_what_its_connection_may_carry(start_server: Callable[..., Databases]) -> None:
    databases = start_server(version=15, tls=True)
    ca = databases.server.ca
    assert ca is not None
    async with databases.lend("bare") as database:
        await database.make_view()
        for method in ANSWERED:
            if method == "md5":
                # PostgreSQL asks for what the stored password can be compared with.
                salted = (database.passwords[MV_OPERATOR] + MV_OPERATOR).encode()
                stored = f"md5{hashlib.md5(salted, usedforsecurity=False).hexdigest()}"
                await database.execute_as(SUPERUSER, f"alter role {MV_OPERATOR} password '{stored}'")
            databases.server.pg_hba_prepend([f"host all {MV_OPERATOR} 127.0.0.1/32 {method}"])
            await check(database, databases.server.port, ca=ca.read_text(), method=method)


@pytest.mark.parametrize("databases", [16, 18], indirect=True)
@pytest.mark.parametrize("method", ["scram-sha-256", "md5", "password"])
async def test_pgbouncer_gets_what_its_connection_may_carry(
    bare_database: Database, pgbouncer: Callable[..., PgBouncer], method: str, tmp_path: Path
) -> None:
    await bare_database.make_view()
    certificate = make_certificate(tmp_path)
    settings = {"auth_type": "plain" if method == "password" else method}
    bouncer = pgbouncer(bare_database, certificate=certificate, settings=settings)
    await check(bare_database, bouncer.port, ca=certificate.ca.read_text(), method=method)
