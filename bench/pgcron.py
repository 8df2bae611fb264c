"""The operator beside pg_cron on one PostgreSQL 15: tiny views that are all due at the same minute.

pg_cron has the setting that it is quickest with: background workers, 32 at once. The operator is a process under a real
API server, with a policy for each view, the ledger, and a status written for each run. pg_cron has the odd minutes and
the operator the even ones, so that other work meets both alike. A run of pg_cron counts as started when its worker
process is there, before that has connected to the database; one of the operator, when the server is about to REFRESH.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import asyncpg
from sandbox.errors import MissingPart
from sandbox.pgbinaries import PostgresBinaries
from sandbox.postgres import PostgresServer, Setting

from bench.cluster import BenchCluster, cluster
from bench.database import BenchDatabase, refresh_of
from bench.report import machine, publish
from bench.waves import Ended, Wave, cpu_of_a_run, lags, next_minute, observe, until

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

ROWS = 100
SIZES = {200: 3, 1000: 3, 1500: 1}
"""How many views are due, and how many minutes of each are measured."""
WITH_A_STUCK_ONE = 200
AT_ONCE = 4
"""Refreshes of the operator."""
WORKERS = 32
"""Refreshes of pg_cron. Each has a process and a connection of its own."""
STUCK = "mv_stuck"
_SECONDS = 100
_SECONDS_WITH_A_STUCK_ONE = 50
"""After it pg_cron starts nothing more: it waits for what the stuck one's worker says."""
_GATE = 4242
_CRON: dict[str, Setting] = {
    "shared_preload_libraries": "pg_cron",
    "cron.use_background_workers": True,
    "cron.max_running_jobs": WORKERS,
    "max_worker_processes": 2 * WORKERS,
}

# The view asks for a lock that somebody else holds for as long as it is to be stuck.
_STUCK_VIEW = f"""
create materialized view {STUCK} as
  select id, v from source where (select pg_advisory_xact_lock_shared({_GATE})::text) = '';
create unique index on {STUCK} (id)
"""
_RUNS_OF_CRON = """
select extract(epoch from d.start_time - $1)::float8, extract(epoch from d.end_time - $1)::float8
from cron.job_run_details d join cron.job j using (jobid)
where d.status = 'succeeded' and j.jobname <> $2 and d.start_time between $1 and $1 + interval '2 minutes'
"""
_RUNS_OF_OPERATOR = """
select extract(epoch from data_as_of - $1)::float8, extract(epoch from finished_at - $1)::float8
from matview_ops.refresh_run
where outcome = 'SUCCESS' and view_name <> $2
  and due_at between $1 - interval '30 seconds' and $1 + interval '30 seconds'
"""


class Contender(Protocol):
    """Who refreshes views that are due."""

    odd: bool
    """Whether the odd minutes are its own."""

    async def add(self, views: Iterable[str]) -> None:
        """Have these refreshed too."""

    async def remove(self, view: str) -> None:
        """Have this one refreshed no more."""

    async def runs(self, due: datetime) -> Sequence[Ended]:
        """What has ended of an instant."""

    async def settle(self) -> None:
        """Wait until all is told of what was done."""

    @property
    def processes(self) -> Mapping[str, Sequence[int]]:
        """Who spends CPU time for it."""


@dataclass(slots=True, kw_only=True)
class PgCron:
    """Jobs of pg_cron, which lives in the server's own database."""

    database: BenchDatabase
    admin: Connection
    odd: bool = True

    async def add(self, views: Iterable[str]) -> None:
        """One job for each view."""
        await self.admin.executemany(
            "select cron.schedule_in_database($1, '1-59/2 * * * *', $2, $3, $3)",
            [(view, refresh_of(view), self.database.name) for view in views],
        )

    async def remove(self, view: str) -> None:
        """Unschedule its job."""
        await self.admin.execute("select cron.unschedule(jobid) from cron.job where jobname = $1", view)

    async def runs(self, due: datetime) -> Sequence[Ended]:
        """As pg_cron logs them."""
        return [(start, end) for start, end in await self.admin.fetch(_RUNS_OF_CRON, due, STUCK)]

    async def settle(self) -> None:
        """Its log is its status."""

    @property
    def processes(self) -> Mapping[str, Sequence[int]]:
        """The server alone."""
        return {"server": [self.database.server.pid], "operator": [], "API": []}


@dataclass(slots=True, kw_only=True)
class Operator:
    """The operator's process, a policy for each view."""

    database: BenchDatabase
    admin: Connection
    """Connected to the database with the ledger."""
    cluster: BenchCluster
    pid: int
    odd: bool = False
    told: list[float] = field(default_factory=list)
    """For each wave: when the last status was stored, in seconds after the instant."""
    _due: datetime | None = None
    _audited: int = 0

    async def add(self, views: Iterable[str]) -> None:
        """One policy for each view."""
        schedule = {"cron": "*/2 * * * *"}
        await self.cluster.create_policies(
            {_named(view): {"views": [{"name": view}], "schedule": schedule} for view in views}
        )

    async def remove(self, view: str) -> None:
        """Delete its policy."""
        await self.cluster.delete_policies([_named(view)])

    async def runs(self, due: datetime) -> Sequence[Ended]:
        """As the ledger has them."""
        if self._due != due:
            self._due, self._audited = due, self.cluster.asked_so_far()
        return [(start, end) for start, end in await self.admin.fetch(_RUNS_OF_OPERATOR, due, STUCK)]

    async def settle(self) -> None:
        """Wait until every policy's status tells of the slot, but that of the stuck view."""
        assert self._due is not None
        slot = f"{self._due:%Y-%m-%dT%H:%M:%SZ}"

        async def is_told() -> bool:
            return all(
                policy.get("status", {}).get("lastSlotTime") == slot
                for policy in await self.cluster.policies()
                if policy["metadata"]["name"] != _named(STUCK)
            )

        async with asyncio.timeout(_SECONDS):
            await until(is_told)
        last = self.cluster.asked(since=self._audited).last_patch
        assert last is not None
        self.told.append((last - self._due).total_seconds())

    @property
    def processes(self) -> Mapping[str, Sequence[int]]:
        """The server, the operator, and the control plane that it writes statuses to."""
        return {
            "server": [self.database.server.pid],
            "operator": [self.pid],
            "API": self.cluster.plane.process_ids,
        }


def _named(view: str) -> str:
    """What the policy of a view is called."""
    return view.replace("_", "-")


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    async with _contenders() as (cron, ours):
        views = [f"mv_{number}" for number in range(max(SIZES))]
        added = 0
        for size, rounds in SIZES.items():
            for contender in (cron, ours):
                await contender.add(views[added:size])
            added = size
            figures += await _measure(cron, ours, views=size, rounds=rounds)
            if size == WITH_A_STUCK_ONE:
                figures += await _measure_stuck(cron, ours, views=size)
    title = (
        f"Views of {ROWS} rows due at one minute: pg_cron with {WORKERS} workers, the operator with {AT_ONCE} at once"
    )
    publish("pg_cron", title, about=about, figures=figures)


async def _measure(cron: PgCron, ours: Operator, *, views: int, rounds: int, stuck: int = 0) -> list[dict[str, Any]]:
    waves: dict[str, list[Wave]] = {"pg_cron": [], "operator": []}
    ours.told.clear()
    for _ in range(rounds):
        for name, contender in (("pg_cron", cron), ("operator", ours)):
            seconds = _SECONDS_WITH_A_STUCK_ONE if stuck else _SECONDS
            wave = await _wave(contender, views=views, seconds=seconds)
            print(f"{wave.due:%H:%M} {name}: {len(wave.runs)} of {views} ran, {wave.rate:.0f} a second", flush=True)
            waves[name].append(wave)
    # A stuck view may keep pg_cron from running anything.
    ratios = [its.rate / theirs.rate for theirs, its in zip(*waves.values(), strict=True) if theirs.rate]
    return [
        {
            "views": views,
            "stuck": stuck,
            "who": name,
            "ran": min(len(wave.runs) for wave in of),
            **lags(of),
            "runs/s": round(median(wave.rate for wave in of), 1),
            "ratio": round(median(ratios), 2) if name == "operator" and ratios else None,
            "server ms": cpu_of_a_run(of, "server"),
            "operator ms": cpu_of_a_run(of, "operator"),
            "API ms": cpu_of_a_run(of, "API"),
            "told s": round(median(ours.told), 2) if name == "operator" else None,
            "waves": rounds,
        }
        for name, of in waves.items()
    ]


async def _measure_stuck(cron: PgCron, ours: Operator, *, views: int) -> list[dict[str, Any]]:
    owner = await cron.database.connect()
    await owner.execute(_STUCK_VIEW)
    for contender in (cron, ours):
        await contender.add([STUCK])
    await owner.execute("select pg_advisory_lock($1)", _GATE)
    try:
        return await _measure(cron, ours, views=views, rounds=1, stuck=1)
    finally:
        await owner.close()
        for contender in (cron, ours):
            await contender.remove(STUCK)


async def _wave(contender: Contender, *, views: int, seconds: float) -> Wave:
    return await observe(
        next_minute(odd=contender.odd),
        expected=views,
        seconds=seconds,
        ended=contender.runs,
        afterwards=contender.settle,
        processes=contender.processes,
    )


@asynccontextmanager
async def _contenders() -> AsyncIterator[tuple[PgCron, Operator]]:
    if not (PostgresBinaries.find(15).bin.parent / "lib" / "pg_cron.so").exists():
        raise MissingPart(part="pg_cron", package="postgresql-15-cron")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(
            PostgresServer.start(version=15, directory=folder / "postgresql", settings=_CRON, in_memory=True)
        )
        database = await BenchDatabase.make(server, ledger=True)
        await database.make_tiny_views(max(SIZES), rows=ROWS)
        # It works in the database that the setting cron.database_name names, by default this one.
        its = await asyncpg.connect(server.admin_url(), ssl=False)
        stack.push_async_callback(its.close)
        await its.execute("create extension pg_cron")
        ledger = await asyncpg.connect(server.admin_url(database.name), ssl=False)
        stack.push_async_callback(ledger.close)
        made = await stack.enter_async_context(cluster())
        await made.connect(database, at_once=AT_ONCE)
        operator = await made.start_operator()
        yield (
            PgCron(database=database, admin=its),
            Operator(database=database, admin=ledger, cluster=made, pid=operator.pid),
        )
