"""The ledger after a million runs: its size, what reading and writing it costs a run, and how it forgets.

Sixty days of ten policies' runs of ten views are written at once, and pruned to thirty days, as after a long time
without an operator. Then thirty more days go by, each with its runs, its prune and its vacuum, as with one.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import asyncpg

from bench.database import BenchDatabase, a_run, servers
from bench.report import machine, publish
from matview_operator.adapters.postgres.retention import LedgerPruner
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.steps import claim, lock, look_up
from matview_operator.adapters.postgres.work import Job

if TYPE_CHECKING:
    from matview_operator.domain.connection import ConnectionTarget

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

RUNS = 1_000_000
DAYS = 60
KEEP_DAYS = 30
SAMPLES = 200

# $1 role, $2 OID of the first view, $3 runs, $4 days that they took, $5 how many days ago the last one was. Slots of
# the second round would meet those of the first, were they not as fine as the clock.
_FILL = """
insert into matview_ops.refresh_run
  (recorded_by, policy_uid, view_oid, view_name, slot_id, due_at, outcome, lock_token, data_as_of, finished_at, mode,
   rows_inserted, rows_deleted, correlation_id)
select $1, ('00000000-0000-4000-8000-00000000000' || run % 10)::uuid, ($2::bigint + run / 10 % 10)::oid, 'mv',
  'slot:' || to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), at, 'SUCCESS', 'GLOBAL', at, at,
  'Concurrent', 10, 10, 'sales/' || run
from generate_series(1, $3::int) run, lateral (
  select now() - interval '1 day' * ($5::float + $4::float * (1 - run::float / $3))) as t(at)
"""
_SIZES = """
select (select count(*) from matview_ops.refresh_run) as rows,
  pg_table_size('matview_ops.refresh_run') / 1048576.0 as table_mb,
  pg_indexes_size('matview_ops.refresh_run') / 1048576.0 as index_mb
"""
_VACUUM = "vacuum analyze matview_ops.refresh_run"


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    with servers() as started:
        figures = await _measure_on(await BenchDatabase.make(next(started), ledger=True))
    publish("ledger", "The ledger after a million runs; lookup and claim in ms", about=about, figures=figures)


async def _measure_on(database: BenchDatabase) -> list[dict[str, Any]]:
    await database.make_tiny_views(1, rows=10)
    admin = await asyncpg.connect(database.server.admin_url(database.name), ssl=False)
    session = await Session.open(database.target)
    oid = await admin.fetchval("select 'public.mv_0'::regclass::oid")
    figures = [await _figure("empty", admin, session, database.target)]
    async with _Stopwatch() as filling:
        await admin.execute(_FILL, database.name, oid, RUNS, float(DAYS), float(KEEP_DAYS))
    await admin.execute(_VACUUM)
    figures.append(await _figure(f"full, {DAYS} days", admin, session, database.target, took=filling.seconds))
    async with _Stopwatch() as pruning:
        deleted = await _prune(database, keep_days=2 * KEEP_DAYS)
    figures.append(
        await _figure("pruned to 30", admin, session, database.target, deleted=deleted, took=pruning.seconds)
    )
    async with _Stopwatch() as vacuuming:
        await admin.execute(_VACUUM)
    figures.append(await _figure("vacuumed", admin, session, database.target, took=vacuuming.seconds))
    slowest, deleted = 0.0, 0
    for day in range(1, KEEP_DAYS + 1):
        await admin.execute(_FILL, database.name, oid, RUNS // DAYS, 1.0, float(KEEP_DAYS - day))
        async with _Stopwatch() as pruning:
            deleted += await _prune(database, keep_days=2 * KEEP_DAYS - day)
        slowest = max(slowest, pruning.seconds)
        await admin.execute(_VACUUM)
    figures.append(await _figure("30 days on", admin, session, database.target, deleted=deleted, took=slowest))
    await session.close()
    await admin.close()
    return figures


async def _prune(database: BenchDatabase, *, keep_days: int) -> int:
    return await LedgerPruner().prune(target=database.target, keep_days=keep_days, allow_superuser=False) or 0


async def _figure(
    stage: str, admin: Connection, session: Session, target: ConnectionTarget, *, deleted: int = 0, took: float = 0
) -> dict[str, Any]:
    sizes = await admin.fetchrow(_SIZES)
    assert sizes is not None  # a select without from has one row
    lookup, claim = await _claims(session, target)
    return {
        "stage": stage,
        "rows": sizes["rows"],
        "table MB": round(float(sizes["table_mb"]), 1),
        "index MB": round(float(sizes["index_mb"]), 1),
        "lookup": round(lookup, 3),
        "claim": round(claim, 3),
        "deleted": deleted,
        "seconds": round(took, 2),
    }


async def _claims(session: Session, target: ConnectionTarget) -> tuple[float, float]:
    """How long the two statements take that know the ledger, in a run's transaction: medians in milliseconds."""
    lookups, claims = [], []
    for _ in range(SAMPLES):
        run = a_run("mv_0", due_at=datetime.now(UTC), policy_uid=uuid.UUID("00000000-0000-4000-8000-000000000000"))
        job = Job(target=target, runs=[run], timeout_seconds=60)
        job.ledger = True
        (work,) = job.works
        await session.begin()
        assert await lock(work, session)
        async with _Stopwatch() as looking:
            await look_up(work, session)
        async with _Stopwatch() as claiming:
            assert await claim(work, session)
        await session.rollback()
        lookups.append(looking.seconds * 1000)
        claims.append(claiming.seconds * 1000)
    return median(lookups), median(claims)


class _Stopwatch:
    """Seconds that a block took."""

    seconds: float = 0

    async def __aenter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
