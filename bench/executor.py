"""The executor against a bare REFRESH: medians of interleaved rounds, and the median of each round's ratio.

Two comparisons, because the executor opens a connection for each run:

* run: the whole run, connection included, against connect + REFRESH + close
* transaction: what happens on a kept connection, against REFRESH on a kept connection; this is the budget's ratio

Both sides use the same driver and settings (`statement_cache_size=0`, no TLS) and the same mode.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import asyncpg
from rich.console import Console
from rich.table import Table
from sandbox.postgres import PostgresServer
from sandbox.scram import scram_verifier

from bench.report import machine, save
from matview_operator.adapters.postgres.connection import close, connect
from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.transaction import work_over
from matview_operator.adapters.postgres.work import Job
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.run import Run, request_id
from matview_operator.domain.view import ViewName

VERSIONS = (18, 16)
WARM_UP = 2
"""Rounds that are not counted."""
REFRESH = "refresh materialized view concurrently public.mv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One view: how long its bare refresh takes at least, and how often everything is measured."""

    name: str
    seconds: float
    rounds: int


SIZES = (Size(name="5 ms", seconds=0.005, rounds=150), Size(name="1 s", seconds=1.0, rounds=9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One comparison. Medians over the rounds, in milliseconds."""

    postgresql: str
    view: str
    rows: int
    ledger: bool
    comparison: str
    bare_ms: float
    executor_ms: float
    ratio: float
    added_ms: float
    rounds: int


def main() -> None:
    """Measure, print and save."""
    about = machine()
    figures = asyncio.run(_measure())
    console = Console()
    table = Table(title=f"Executor against a bare REFRESH ({about['cpus']} CPUs, {about['processor']})", box=None)
    for title in ("PG", "view", "ledger", "comparison"):
        table.add_column(title, no_wrap=True)
    for title in ("rows", "bare ms", "ours ms", "ratio", "added ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.postgresql,
            figure.view,
            "yes" if figure.ledger else "no",
            figure.comparison,
            f"{figure.rows:,}",
            f"{figure.bare_ms:,.1f}",
            f"{figure.executor_ms:,.1f}",
            f"{figure.ratio:.2f}",
            f"{figure.added_ms:+.1f}",
        )
    console.print(table)
    path = save("executor", about=about, figures=[asdict(figure) for figure in figures])
    console.print(f"Written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


async def _measure() -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for version in VERSIONS:
            directory = Path(folder) / str(version)
            directory.mkdir()
            with PostgresServer.start(version=version, directory=directory, in_memory=True) as server:
                for size in SIZES:
                    for ledger in (False, True):
                        figures += await _compare(server, size, ledger=ledger)
    return figures


async def _compare(server: PostgresServer, size: Size, *, ledger: bool) -> list[Figure]:
    target, rows = await _database(server, size, ledger=ledger)
    run = Run(
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
    kept = await connect(target)
    session = await Session.open(target)

    def fresh() -> Run:
        return replace(run, slot_id=request_id(str(uuid.uuid4())))

    async def bare_connecting() -> None:
        connection = await connect(target)
        await connection.fetch(REFRESH)
        await close(connection)

    async def bare_kept() -> None:
        await kept.fetch(REFRESH)

    async def whole_run() -> None:
        result = await Refresher().refresh(target=target, run=fresh())
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message

    async def transaction() -> None:
        run = fresh()
        (result,) = await work_over(session, Job(runs=[run], target=target, timeout_seconds=run.timeout_seconds))
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "bare_connecting": bare_connecting,
        "whole_run": whole_run,
        "bare_kept": bare_kept,
        "transaction": transaction,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + size.rounds):
        # Now in one order, now in the other: what comes first finds colder caches.
        for name, step in [*steps.items()][:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            await step()
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - started) * 1000)
    await session.close()
    await close(kept)
    medians = {name: median(values) for name, values in times.items()}
    return [
        Figure(
            postgresql=str(server.version),
            view=size.name,
            rows=rows,
            ledger=ledger,
            comparison=comparison,
            bare_ms=round(medians[bare], 3),
            executor_ms=round(medians[ours], 3),
            # Of each round, so that other work on the machine meets both sides alike.
            ratio=round(median(our / its for our, its in zip(times[ours], times[bare], strict=True)), 3),
            added_ms=round(median(our - its for our, its in zip(times[ours], times[bare], strict=True)), 3),
            rounds=size.rounds,
        )
        for comparison, bare, ours in (
            ("run", "bare_connecting", "whole_run"),
            ("transaction", "bare_kept", "transaction"),
        )
    ]


async def _database(server: PostgresServer, size: Size, *, ledger: bool) -> tuple[ConnectionTarget, int]:
    """Make a database with a view whose bare refresh takes as long as wished; return how to reach it, and its rows."""
    name, password = f"bench_{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    admin = await asyncpg.connect(server.admin_url(), ssl=False)
    await admin.execute(f"create role {name} login password '{scram_verifier(password)}'")
    await admin.execute(f"create database {name} owner {name}")
    await admin.close()
    if ledger:
        await upgrade(server.admin_url(name), grant_to=[name])
    target = parse_url(server.url(user=name, password=password, database=name))
    connection = await asyncpg.connect(server.url(user=name, password=password, database=name), ssl=False)
    await connection.execute(
        """
        create table source (id int primary key, v int);
        create materialized view mv as select id, v from source;
        create unique index on mv (id);
        """
    )
    rows, taken = 0, 0.0
    while taken < size.seconds:
        # Towards the wished time, in steps that neither creep nor overshoot much.
        more = max(500, round(rows * min(4, max(0.1, 1.1 * size.seconds / taken - 1)))) if rows else 500
        await connection.execute(f"insert into source select n, n from generate_series({rows + 1}, {rows + more}) n")
        await connection.execute("analyze source; refresh materialized view mv; analyze mv")
        rows += more
        samples = []
        for _ in range(3):
            started = time.perf_counter()
            await connection.fetch(REFRESH)
            samples.append(time.perf_counter() - started)
        taken = min(samples)
    await connection.close()
    return target, rows


if __name__ == "__main__":
    main()
