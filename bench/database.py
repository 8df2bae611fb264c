"""Servers, databases and views to measure on, and the runs that measure."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
from sandbox.pgbouncer import PgBouncer
from sandbox.postgres import PostgresServer
from sandbox.scram import scram_verifier

from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.run import Run, request_id
from matview_operator.domain.view import ViewName

VERSIONS = (18, 16)

_RUN = Run(
    view=ViewName("public", "mv"),
    tenant_id=None,
    isolation=Isolation.SHARED,
    tenant_setting="app.current_tenant_id",
    concurrently=Concurrently.ALWAYS,
    timeout_seconds=600,
    lock_timeout_millis=None,
    allow_superuser=False,
    policy_uid=uuid.uuid4(),
    slot_id=request_id(""),
    due_at=None,
    correlation_id="bench",
)


@contextmanager
def servers() -> Iterator[Iterator[PostgresServer]]:
    """Servers of all versions, one after another, in memory and without fsync."""
    with tempfile.TemporaryDirectory() as folder:

        def each() -> Iterator[PostgresServer]:
            for version in VERSIONS:
                directory = Path(folder) / str(version)
                directory.mkdir()
                with PostgresServer.start(version=version, directory=directory, in_memory=True) as server:
                    yield server

        yield each()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchDatabase:
    """A database and a role of its own, who owns all in it."""

    server: PostgresServer
    name: str
    password: str

    @classmethod
    async def make(cls, server: PostgresServer, *, ledger: bool) -> BenchDatabase:
        """Make it, with or without the ledger."""
        made = cls(server=server, name=f"bench_{uuid.uuid4().hex[:8]}", password=uuid.uuid4().hex)
        admin = await asyncpg.connect(server.admin_url(), ssl=False)
        await admin.execute(f"create role {made.name} login password '{scram_verifier(made.password)}'")
        await admin.execute(f"create database {made.name} owner {made.name}")
        await admin.close()
        if ledger:
            await upgrade(server.admin_url(made.name), grant_to=[made.name])
        return made

    @property
    def target(self) -> ConnectionTarget:
        """The way to it, without TLS."""
        return parse_url(self.server.url(user=self.name, password=self.password, database=self.name))

    @contextmanager
    def pgbouncer(self) -> Iterator[ConnectionTarget]:
        """The way to it through PgBouncer in transaction mode."""
        with tempfile.TemporaryDirectory() as folder:
            users = {self.name: self.password}
            with PgBouncer.start(server=self.server, directory=Path(folder), users=users) as bouncer:
                yield replace(self.target, port=bouncer.port)

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Connect as its owner."""
        url = self.server.url(user=self.name, password=self.password, database=self.name)
        return await asyncpg.connect(url, ssl=False, statement_cache_size=0)

    async def make_view(self, *, seconds: float) -> int:
        """Make a view public.mv whose bare refresh takes at least so long; return how many rows it has."""
        connection = await self.connect()
        await connection.execute(
            """
            create table source (id int primary key, v int);
            create materialized view mv as select id, v from source;
            create unique index on mv (id);
            """
        )
        rows, taken = 0, 0.0
        while taken < seconds:
            # Towards the wished time, in steps that neither creep nor overshoot much.
            more = max(500, round(rows * min(4, max(0.1, 1.1 * seconds / taken - 1)))) if rows else 500
            await connection.execute(
                f"insert into source select n, n from generate_series({rows + 1}, {rows + more}) n"
            )
            await connection.execute("analyze source; refresh materialized view mv; analyze mv")
            rows += more
            samples = []
            for _ in range(3):
                started = time.perf_counter()
                await connection.fetch(refresh_of("mv"))
                samples.append(time.perf_counter() - started)
            taken = min(samples)
        await connection.close()
        return rows

    async def make_tiny_views(self, count: int, *, rows: int) -> list[str]:
        """Make views of so many rows each; return their names."""
        names = [f"mv_{number}" for number in range(count)]
        connection = await self.connect()
        await connection.execute(f"create table source as select n as id, n as v from generate_series(1, {rows}) n")
        for name in names:
            await connection.execute(
                f"create materialized view {name} as select id, v from source; create unique index on {name} (id)"
            )
        await connection.execute("analyze")
        await connection.close()
        return names


def refresh_of(view: str) -> str:
    """The bare statement."""
    return f"refresh materialized view concurrently public.{view}"


def a_run(view: str = "mv", **fields: Any) -> Run:
    """A run that nobody has done before."""
    return replace(_RUN, view=ViewName("public", view), slot_id=request_id(str(uuid.uuid4())), **fields)
