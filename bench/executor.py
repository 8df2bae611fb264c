"""The executor against a bare REFRESH over a connection of the same driver, settings and way.

* kept: a whole run of the operator's executor, over its pool, against REFRESH over a connection that is kept. This is
  the ratio that the budget speaks of.
* new: with a connection for each run, against connect + REFRESH + close.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.database import BenchDatabase, a_run, refresh_of, servers
from bench.report import machine, publish
from bench.rounds import interleaved
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.wire.connection import close, connect
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.view import Guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.postgres import PostgresServer

    from matview_operator.domain.connection import ConnectionTarget

_REFRESH = refresh_of("mv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One view: how long its bare refresh takes at least, and how often everything is measured."""

    name: str
    seconds: float
    rounds: int


SIZES = (Size(name="5 ms", seconds=0.005, rounds=150), Size(name="1 s", seconds=1.0, rounds=7))
GUARD = Guard(min_rows=1, max_row_loss_percent=50)


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    with servers() as started:
        for server in started:
            for size in SIZES:
                for ledger in (False, True):
                    figures += await _measure_on(server, size, ledger=ledger)
    publish("executor", "Executor against a bare REFRESH", about=about, figures=figures)


async def _measure_on(server: PostgresServer, size: Size, *, ledger: bool) -> list[dict[str, Any]]:
    database = await BenchDatabase.make(server, ledger=ledger)
    rows = await database.make_view(seconds=size.seconds)
    figures = []
    with ExitStack() as stack:
        ways = {"direct": database.target}
        if ledger:
            ways["PgBouncer"] = stack.enter_context(database.pgbouncer())
        for way, target in ways.items():
            for comparison, figure in (await _compare(target, size, guarded=ledger and way == "direct")).items():
                figures.append(
                    {
                        "PG": server.version,
                        "view": size.name,
                        "rows": rows,
                        "way": way,
                        "ledger": ledger,
                        "what": comparison,
                        **figure,
                    }
                )
    return figures


async def _compare(target: ConnectionTarget, size: Size, *, guarded: bool) -> dict[str, dict[str, Any]]:
    """Each comparison's medians in milliseconds, the median of the rounds' ratios and of their differences."""
    kept = await connect(target)
    async with Pool() as pool:

        async def bare_kept() -> None:
            await kept.fetch(_REFRESH)

        async def bare_new() -> None:
            connection = await connect(target)
            await connection.fetch(_REFRESH)
            await close(connection)

        def ours(refresher: Refresher, **fields: Any) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                result = await refresher.refresh(target=target, run=a_run(**fields))
                assert result.outcome is RefreshOutcome.SUCCESS, result.error_message

            return run

        steps = {"bare kept": bare_kept, "kept": ours(Refresher(pool))}
        if guarded:
            steps["guarded"] = ours(Refresher(pool), guard=GUARD)
        if size.seconds < 1:
            steps |= {"bare new": bare_new, "new": ours(Refresher())}
        times = await interleaved(steps, rounds=size.rounds)
    await close(kept)
    bases = {"kept": "bare kept", "guarded": "bare kept", "new": "bare new"}
    return {
        name: {
            "bare ms": round(times.median(base), 3),
            "ours ms": round(times.median(name), 3),
            "ratio": round(times.ratio(name, base), 3),
            "added ms": round(times.difference(name, base), 3),
            "rounds": size.rounds,
        }
        for name, base in bases.items()
        if name in steps
    }
