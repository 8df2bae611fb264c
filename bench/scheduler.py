"""Thousands of policies on one operator: how late their slots start, and what they take.

Each policy has a tiny view of its own, which is really refreshed, in one PostgreSQL with the ledger; API server, etcd,
PostgreSQL and this benchmark share the machine's cores with the operator. All are due at one instant, or within a
minute by jitterSeconds. Then the operator is down over an instant, and started again, with histories as long as they
become. Before that a thousand tenants have policies for the same five views. Forty minutes on two idle cores, most of
it waiting for the next instant.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import asyncpg
import psutil
from sandbox.postgres import PostgresServer

from bench.cluster import BenchCluster, Json, cluster
from bench.database import BenchDatabase
from bench.report import machine, publish
from bench.waves import Ended, Wave, lags, next_minute, observe, until
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.jitter import part_of_second

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

SIZES = (2000, 5000, 10_000)
RESTARTED_WITH = 5000
TENANTS = 1000
TENANT_VIEWS = 5
ROWS = 100
AT_ONCE = 4
EVERY_MINUTES = 3
_SECONDS = EVERY_MINUTES * 60 - 10
_MODES = {"one instant": 0, "one minute": 59}
"""jitterSeconds."""

_RUNS = """
select policy_uid, extract(epoch from data_as_of - due_at)::float8, extract(epoch from finished_at - $1)::float8
from matview_ops.refresh_run
where outcome = 'SUCCESS' and due_at between $1 - interval '1 second' and $1 + interval '61 seconds'
"""
_FIRST_RUN = "select extract(epoch from min(data_as_of))::float8 from matview_ops.refresh_run where data_as_of > $1"


@dataclass(slots=True, kw_only=True)
class _Bench:
    """One operator with its servers, and what it has to do."""

    cluster: BenchCluster
    server: PostgresServer
    ledger: Connection
    operator: OperatorProcess
    jitter: int = 0
    """The policies' jitterSeconds."""

    async def runs(self, due: datetime) -> Sequence[Ended]:
        """What was refreshed of an instant, and how long after each policy's own moment."""
        return [
            (lag - part_of_second(uid, jitter_seconds=self.jitter).total_seconds(), end)
            for uid, lag, end in await self.ledger.fetch(_RUNS, due)
        ]

    async def settled(self) -> None:
        """Wait until every policy's status tells of its newest spec."""

        async def is_settled() -> bool:
            await asyncio.sleep(2)  # a list of thousands is work for everybody
            policies = await self.cluster.policies()
            return all(
                policy.get("status", {}).get("observedGeneration") == policy["metadata"]["generation"]
                for policy in policies
            )

        await until(is_settled)

    async def wave(self, *, expected: int, statuses: int) -> tuple[Wave, Json]:
        """Observe the next instant; return it with what only the operator has."""
        due = next_minute(every=EVERY_MINUTES)
        since = 0

        def begin() -> None:
            nonlocal since
            since = self.cluster.asked_so_far()

        # Before the instant: the first statuses are there within half a second.
        asyncio.get_running_loop().call_later((due - datetime.now(UTC)).total_seconds() - 1, begin)

        async def told() -> None:
            async def is_told() -> bool:
                return self.cluster.patches(since=since) >= statuses or datetime.now(UTC) > latest

            latest = datetime.now(UTC) + timedelta(seconds=_SECONDS)
            await until(is_told)

        wave = await observe(
            due, expected=expected, seconds=_SECONDS, ended=self.runs, afterwards=told, processes=self.processes
        )
        asked = self.cluster.asked(since=since)
        return wave, {
            "requests/slot": round(asked.counts.total() / statuses, 2),
            "told s": None if asked.last_patch is None else round((asked.last_patch - due).total_seconds(), 2),
            "MB": round(psutil.Process(self.operator.pid).memory_info().rss / 1e6),
        }

    @property
    def processes(self) -> Mapping[str, Sequence[int]]:
        """Who spends CPU time."""
        return {
            "server": [self.server.pid],
            "operator": [self.operator.pid],
            "API": self.cluster.plane.process_ids,
        }


async def measure() -> None:
    """Measure, print and save."""
    about = machine()
    figures: list[dict[str, Any]] = []
    async with _bench() as bench:
        figures.append(await _of_tenants(bench))
        made = 0
        for size in SIZES:
            for mode, jitter in _MODES.items():
                specs = {f"p-{number}": _spec(f"mv_{number}", jitter) for number in range(size)}
                await bench.cluster.patch_policies({name: specs[name] for name in [*specs][:made]})
                await bench.cluster.create_policies({name: specs[name] for name in [*specs][made:]})
                made = size
                bench.jitter = jitter
                await bench.settled()
                wave, more = await bench.wave(expected=size, statuses=size)
                figures.append(_figure(wave, policies=size, due=mode, more=more))
            if size == RESTARTED_WITH:
                restarts = await _restart(bench, policies=size)
    title = f"Policies with a view of {ROWS} rows each, {AT_ONCE} at once; CPU and requests of a slot"
    publish("scheduler", title, about=about, figures=figures)
    publish("restart", "The operator started after a slot of every policy", about=about, figures=[restarts])


async def _of_tenants(bench: _Bench) -> dict[str, Any]:
    views = [{"name": f"mv_{number}"} for number in range(TENANT_VIEWS)]
    schedule = {"cron": f"*/{EVERY_MINUTES} * * * *"}
    specs = {
        f"tenant-{number}": {"tenantId": f"tenant-{number}", "views": views, "schedule": schedule}
        for number in range(TENANTS)
    }
    await bench.cluster.create_policies(specs)
    await bench.settled()
    # One that has been refreshed is not refreshed again for the others: statuses alone tell when all is done.
    wave, more = await bench.wave(expected=TENANT_VIEWS, statuses=TENANTS)
    await bench.cluster.delete_policies(specs)
    return _figure(wave, policies=TENANTS, due=f"{TENANT_VIEWS} shared views", more=more)


async def _restart(bench: _Bench, *, policies: int) -> dict[str, Any]:
    await asyncio.to_thread(bench.operator.stop)
    now = datetime.now(UTC)
    await bench.cluster.patch_statuses({f"p-{number}": {"history": _history(now)} for number in range(policies)})
    due = next_minute(every=EVERY_MINUTES)
    await asyncio.sleep((due - datetime.now(UTC)).total_seconds() + 1)
    bench.operator = await bench.cluster.start_operator()
    ready_at, started_at = datetime.now(UTC), _started_at(bench.operator)

    async def has_run() -> bool:
        return await bench.ledger.fetchval(_FIRST_RUN, started_at) is not None

    await until(has_run)
    first = await bench.ledger.fetchval(_FIRST_RUN, started_at)

    async def all_ran() -> bool:
        return len(await bench.runs(due)) >= policies or datetime.now(UTC) > due + timedelta(seconds=_SECONDS)

    await until(all_ran)
    ended = max(end for _, end in await bench.runs(due)) - (started_at - due).total_seconds()
    return {
        "policies": policies,
        "all seen s": round((ready_at - started_at).total_seconds(), 2),
        "first run s": round(first - started_at.timestamp(), 2),
        "all ran s": round(ended, 2),
        "MB": round(psutil.Process(bench.operator.pid).memory_info().rss / 1e6),
    }


def _history(now: datetime) -> list[Json]:
    """As many entries as a policy keeps by default, as after some hours."""
    slots = [now.replace(second=0, microsecond=0) - timedelta(minutes=EVERY_MINUTES * ago) for ago in range(1, 6)]
    return [
        {
            "slotTime": slot.isoformat(),
            "outcome": RefreshOutcome.SUCCESS.value,
            "startedAt": (slot + timedelta(seconds=number)).isoformat(),
            "durationMs": 500 + number,
            "views": 1,
            "failed": 0,
            "correlationId": str(uuid4()),
        }
        for number, slot in enumerate(slots)
    ]


def _started_at(operator: OperatorProcess) -> datetime:
    return datetime.fromtimestamp(psutil.Process(operator.pid).create_time(), UTC)


def _spec(view: str, jitter: int) -> Json:
    return {"views": [{"name": view}], "schedule": {"cron": f"*/{EVERY_MINUTES} * * * *"}, "jitterSeconds": jitter}


def _figure(wave: Wave, *, policies: int, due: str, more: Json) -> dict[str, Any]:
    figure = {
        "policies": policies,
        "due": due,
        "refreshes": len(wave.runs),
        **lags([wave]),
        "runs/s": round(wave.rate, 1),
        **{f"{name} ms": round(seconds * 1000 / policies, 2) for name, seconds in wave.cpu.items()},
        **more,
    }
    print(figure, flush=True)
    return figure


@asynccontextmanager
async def _bench() -> AsyncIterator[_Bench]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PostgresServer.start(version=18, directory=folder, in_memory=True))
        database = await BenchDatabase.make(server, ledger=True)
        await database.make_tiny_views(max(SIZES), rows=ROWS)
        ledger = await asyncpg.connect(server.admin_url(database.name), ssl=False)
        stack.push_async_callback(ledger.close)
        made = await stack.enter_async_context(cluster())
        await made.connect(database, at_once=AT_ONCE)
        yield _Bench(cluster=made, server=server, ledger=ledger, operator=await made.start_operator())
