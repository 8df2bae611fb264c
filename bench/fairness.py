"""How long a tenant's only due view waits beside a thousand of another tenant, or behind as many of its own.

The operator's budget and executor on one database, two places, as a MatviewDatabase has by default. The single view
becomes due when fifty of the others have been refreshed; all of them are tiny, so that a refresh takes a few ms.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.database import BenchDatabase, a_run, servers
from bench.report import machine, publish
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.engine.budget import Budget
from matview_operator.engine.ports import Key

if TYPE_CHECKING:
    from sandbox.postgres import PostgresServer

    from matview_operator.domain.connection import ConnectionTarget

VIEWS = 1000
ROWS = 100
PLACES = 2
ENDED_BEFORE = 50
ROUNDS = 3
SINGLE = "single"
BESIDE = {
    "nobody": None,
    "1,000 of another tenant": "many",
    "1,000 of its own": SINGLE,
}
"""Whose the others are. The last is what first come, first served would be for everybody."""
_DATABASE = Key("bench", "db")


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    with servers() as started:
        for server in started:
            figures += await _measure_on(server)
    publish("fairness", f"A single view beside {VIEWS:,} due ones, {PLACES} places", about=about, figures=figures)


async def _measure_on(server: PostgresServer) -> list[dict[str, Any]]:
    database = await BenchDatabase.make(server, ledger=True)
    views = await database.make_tiny_views(VIEWS + 1, rows=ROWS)
    waits: dict[str, list[_Wait]] = {name: [] for name in BESIDE}
    async with Pool() as pool:
        for number in range(1 + ROUNDS):
            for name, others in BESIDE.items():
                wave = _Wave(refresher=Refresher(pool), target=database.target, views=views)
                wait = await wave.run(others)
                if number:  # the first round warms up
                    waits[name].append(wait)
    return [
        {
            "PG": server.version,
            "beside": name,
            "waited ms": round(median(wait.seconds for wait in waits[name]) * 1000, 1),
            "at most": round(max(wait.seconds for wait in waits[name]) * 1000, 1),
            "others' begun": round(median(wait.begun for wait in waits[name])),
            "at most ": max(wait.begun for wait in waits[name]),
            "its refresh ms": round(median(wait.refresh_seconds for wait in waits[name]) * 1000, 1),
            "rounds": ROUNDS,
        }
        for name in BESIDE
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wait:
    seconds: float
    """From due to its place."""
    begun: int
    """How many of the others began meanwhile."""
    refresh_seconds: float


@dataclass(slots=True, kw_only=True)
class _Wave:
    """A thousand views that are due at one moment, and one that is a little later."""

    refresher: Refresher
    target: ConnectionTarget
    views: list[str]
    budget: Budget = field(default_factory=lambda: Budget(limit_of=lambda _: PLACES, limit_in_all=32))
    begun: int = 0
    ended: int = 0
    over: bool = False
    fifty_have_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, tenant: str | None) -> _Wait:
        single, *others = self.views
        tasks = [] if tenant is None else [asyncio.create_task(self._other(view, tenant)) for view in others]
        if tasks:
            await self.fifty_have_ended.wait()
            await asyncio.sleep(0.001)  # until who was given the fiftieth's place has begun
        before, due = self.begun, time.perf_counter()
        async with self.budget.place(self.budget.queue(_DATABASE, tenant=SINGLE)):
            got, begun = time.perf_counter(), self.begun - before
            await self._refresh(single)
            ended = time.perf_counter()
        self.over = True
        await asyncio.gather(*tasks)
        return _Wait(seconds=got - due, begun=begun, refresh_seconds=ended - got)

    async def _other(self, view: str, tenant: str) -> None:
        async with self.budget.place(self.budget.queue(_DATABASE, tenant=tenant)):
            if self.over:
                return
            self.begun += 1
            await self._refresh(view)
            self.ended += 1
            if self.ended == ENDED_BEFORE:
                self.fifty_have_ended.set()

    async def _refresh(self, view: str) -> None:
        result = await self.refresher.refresh(target=self.target, run=a_run(view))
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
