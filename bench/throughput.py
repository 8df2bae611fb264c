"""Runs per second, and the CPU time of each, for many tiny views of one database, two at once.

The base is a bare loop that keeps its two connections: it takes no lock, looks nothing up, records nothing and waits
for ever. On two cores client and server share them, as the operator and a server beside it would not.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

from bench.database import BenchDatabase, a_run, refresh_of, servers
from bench.report import machine, publish
from bench.rounds import Meter, interleaved
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.wire.connection import close, connect
from matview_operator.api.outcome import RefreshOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.postgres import PostgresServer

    from matview_operator.domain.connection import ConnectionTarget

VIEWS = 200
ROWS = 100
AT_ONCE = 2
"""More connections gain a bare loop nothing on two cores, and two are what a MatviewDatabase allows by default."""
MORE_AT_ONCE = 4
"""What a MatviewDatabase may be set to allow: while the operator works on one run, the server has others'."""
ROUNDS = 7
_BASE = "bare loop, connections kept"


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    with servers() as started:
        for server in started:
            figures += await _measure_on(server)
    publish("throughput", f"{VIEWS} views of {ROWS} rows, {AT_ONCE} at once", about=about, figures=figures)


async def _measure_on(server: PostgresServer) -> list[dict[str, Any]]:
    plain, kept_books = [await BenchDatabase.make(server, ledger=ledger) for ledger in (False, True)]
    for database in (plain, kept_books):
        views = await database.make_tiny_views(VIEWS, rows=ROWS)
    meter = Meter(server.pid)
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(ExitStack())
        bouncer = processes.enter_context(kept_books.pgbouncer())
        pool = await stack.enter_async_context(Pool())
        steps = {
            _BASE: _over(await _bare_kept(plain.target, stack), views),
            "bare loop, a connection each": _over(_bare_new(plain.target), views),
            "operator, no ledger": _over(_ours(Refresher(pool), plain.target), views),
            "operator, ledger": _over(_ours(Refresher(pool), kept_books.target), views),
            "operator, ledger, four at once": _over(
                _ours(Refresher(pool), kept_books.target), views, at_once=MORE_AT_ONCE
            ),
            "operator, ledger, PgBouncer": _over(_ours(Refresher(pool), bouncer), views),
            "operator, ledger, a connection each": _over(_ours(Refresher(), kept_books.target), views),
        }
        times = await interleaved(steps, rounds=ROUNDS, meter=meter)
    runs = ROUNDS * VIEWS
    return [
        {
            "PG": server.version,
            "who": name,
            "runs/s": round(VIEWS * 1000 / times.median(name), 1),
            # Of the rates, not of the times: more is better.
            "of the base": round(times.ratio(_BASE, name), 3),
            "client ms": round(meter.own_ms(name, runs), 2),
            "server ms": round(meter.server_ms(name, runs), 2),
            "rounds": ROUNDS,
        }
        for name in steps
    ]


def _over(
    work: Callable[[str], Awaitable[object]], views: list[str], *, at_once: int = AT_ONCE
) -> Callable[[], Awaitable[None]]:
    """All views, so many at once."""

    async def everything() -> None:
        left = iter(views)

        async def loop() -> None:
            for view in left:
                await work(view)

        await asyncio.gather(*(loop() for _ in range(at_once)))

    return everything


async def _bare_kept(target: ConnectionTarget, stack: AsyncExitStack) -> Callable[[str], Awaitable[object]]:
    idle = [await connect(target) for _ in range(AT_ONCE)]
    for connection in idle:
        stack.push_async_callback(close, connection)

    async def work(view: str) -> None:
        connection = idle.pop()
        await connection.fetch(refresh_of(view))
        idle.append(connection)

    return work


def _bare_new(target: ConnectionTarget) -> Callable[[str], Awaitable[object]]:
    async def work(view: str) -> None:
        connection = await connect(target)
        await connection.fetch(refresh_of(view))
        await close(connection)

    return work


def _ours(refresher: Refresher, target: ConnectionTarget) -> Callable[[str], Awaitable[object]]:
    async def work(view: str) -> None:
        result = await refresher.refresh(target=target, run=a_run(view))
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message

    return work
