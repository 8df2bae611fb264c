"""What each check of a guard adds to a refresh, in both modes, for a small view and a large one.

The operator's executor with the guard against the same without it, interleaved. Statistics of the planner are not
renewed in between: that is the same work on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.database import BenchDatabase, a_run, servers
from bench.report import machine, publish
from bench.rounds import Meter, interleaved
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Analyze
from matview_operator.api.view import Concurrently, Guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.postgres import PostgresServer

TENANTS = 1000
GUARDS = {
    "none": None,
    "minRows": Guard(min_rows=1),
    "maxRowLossPercent": Guard(max_row_loss_percent=50),
    "keepTenants": Guard(keep_tenants="tenant"),
    "all three": Guard(min_rows=1, max_row_loss_percent=50, keep_tenants="tenant"),
}
MODES = {"Concurrent": Concurrently.ALWAYS, "Blocking": Concurrently.NEVER}
SIZES = {0.005: 100, 1.0: 7}
"""Seconds that the view's bare refresh takes, and how often everything is measured."""


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    with servers() as started:
        for server in started:
            for seconds, rounds in SIZES.items():
                figures += await _measure_on(server, seconds, rounds=rounds)
    publish("guard", f"What a guard adds to a refresh, {TENANTS:,} tenants", about=about, figures=figures)


async def _measure_on(server: PostgresServer, seconds: float, *, rounds: int) -> list[dict[str, Any]]:
    database = await BenchDatabase.make(server, ledger=True)
    rows = await database.make_view(seconds=seconds)
    connection = await database.connect()
    await connection.execute(
        f"create materialized view guarded as select id, v, id % {TENANTS} as tenant from source;"
        "create unique index on guarded (id); analyze guarded"
    )
    await connection.close()
    meter = Meter(server.pid)
    figures = []
    async with Pool() as pool:
        refresher = Refresher(pool)

        def refreshing(guard: Guard | None, concurrently: Concurrently) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                run = a_run("guarded", guard=guard, concurrently=concurrently, analyze=Analyze.NEVER)
                result = await refresher.refresh(target=database.target, run=run)
                assert result.outcome is RefreshOutcome.SUCCESS, result.error_message

            return run

        for mode, concurrently in MODES.items():
            steps = {name: refreshing(guard, concurrently) for name, guard in GUARDS.items()}
            times = await interleaved(steps, rounds=rounds, meter=meter)
            for name in GUARDS:
                spent, without = meter.middle_ms(name), meter.middle_ms("none")
                figures.append(
                    {
                        "PG": server.version,
                        "rows": rows,
                        "mode": mode,
                        "guard": name,
                        "ms": round(times.median(name), 3),
                        "ratio": round(times.ratio(name, "none"), 3),
                        # The steadier figures where other work is on the machine; client and server together.
                        "CPU ms": round(spent, 3),
                        "added": round(spent - without, 3),
                        "CPU ratio": round(spent / without, 3),
                        "rounds": rounds,
                    }
                )
            meter = Meter(server.pid)
    return figures
