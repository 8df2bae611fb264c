"""Each slot exactly once, though workers, backends, servers and answers die at random; at least once without ledger.

Some slots are a group's: its views are refreshed by one transaction or not at all.

The oracle is not the ledger: the views' own query writes a row into a table, with the transaction's id. It is there if
and only if that refresh committed. EXACTLY_ONCE_SLOTS makes it longer (`make torture`), EXACTLY_ONCE_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.errors import SandboxError
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Loss, Proxy
from tests.refreshes import a_run, public
from tests.worker import Worker, WorkerDied

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.run import SlotId, slot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.database import Database
    from tests.databases import Databases

    from matview_operator.domain.result import RefreshResult
    from matview_operator.domain.view import ViewName

SLOTS = int(os.environ.get("EXACTLY_ONCE_SLOTS", "1000"))
"""Over the three versions together."""
SEED = int(os.environ.get("EXACTLY_ONCE_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECONDS_PER_SLOT = 2
"""Before the test gives up; it takes less than a tenth of that."""

_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

CONCURRENT, ANOTHER, BLOCKING, READER = (public(name) for name in ("concurrent", "another", "blocking", "reader"))
WORK = [(READER, ANOTHER, CONCURRENT), (BLOCKING,), (CONCURRENT,), (ANOTHER,), (CONCURRENT,)]
"""What is refreshed for one slot, by turns. Several views are a group, and meet those who refresh one of them alone."""
SCHEMA = """
create table base (id int primary key, v int);
insert into base select n, n from generate_series(1, 50) n;
create table committed (view text, xid xid8 default pg_catalog.pg_current_xact_id(), primary key (view, xid));
create function note(view text) returns int language plpgsql as
  $$ begin insert into public.committed (view) values ($1); return 1; end $$;
create materialized view concurrent as select id, v, noted from base, note('concurrent') noted;
create unique index on concurrent (id);
create materialized view another as select id, v, noted from base, note('another') noted;
create unique index on another (id);
create materialized view blocking as select id, v, noted from base, note('blocking') noted;
create materialized view reader as select id, v, noted.noted from concurrent, note('reader') noted(noted);
create unique index on reader (id);
truncate committed;
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One slot of one view, or of a group."""

    slot: SlotId
    views: tuple[ViewName, ...]

    @property
    def grouped(self) -> bool:
        return len(self.views) > 1


@dataclass(slots=True, kw_only=True)
class Scene:
    """Workers with a shared list of slots, and what befalls them. Whatever is random comes from `chance`."""

    database: Database
    chance: random.Random
    todo: deque[Job]
    sharing: float
    """How likely a worker takes a slot that another one is at."""
    slots: int = 0
    at_work: dict[int, Job] = field(default_factory=dict)
    workers: dict[int, Worker] = field(default_factory=dict)
    done: set[Job] = field(default_factory=set)
    told: Counter[str] = field(default_factory=Counter)
    """How runs ended, as far as somebody lived to tell."""
    befell: Counter[str] = field(default_factory=Counter)
    networks_to_lose: Counter[bool] = field(default_factory=Counter)
    """How often the network is still to go away for good during COMMIT, of a view's slot and of a group's (True)."""
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.slots = len(self.todo)

    async def work(self, number: int) -> None:
        """Take slots until all are done; be replaced when killed."""
        self.workers[number] = Worker()
        try:
            while len(self.done) < self.slots:
                job = self.take(number)
                if job is None:
                    await asyncio.sleep(0.01)
                    continue
                try:
                    self.tell(job, await self.attempt(number, job))
                except WorkerDied:
                    self.told["nothing, killed"] += 1
                    self.workers[number].kill()
                    self.workers[number] = Worker()
                finally:
                    del self.at_work[number]
                if job not in self.done:
                    self.todo.appendleft(job)
                    # A server that is down is not to be asked without a pause.
                    await asyncio.sleep(0.02)
        finally:
            self.workers.pop(number).kill()

    def take(self, number: int) -> Job | None:
        others = sorted({job for job in self.at_work.values() if job not in self.done}, key=lambda job: job.slot)
        if others and (not self.todo or self.chance.random() < self.sharing):
            job = self.chance.choice(others)
        elif self.todo:
            job = self.todo.popleft()
        else:
            return None
        self.at_work[number] = job
        return job

    async def attempt(self, number: int, job: Job) -> tuple[RefreshResult, ...]:
        """Directly, or through a network that loses a statement or the answer to it."""
        fault, seconds = None, 20.0
        if self.networks_to_lose[job.grouped]:
            # Nobody answers any more: the run cannot know, the next attempt must.
            fault = Fault(statement="commit", loses=self.chance.choice(["request", "answer"]), silent=True)
            fault.network_too, seconds = True, 1.0
            self.networks_to_lose[job.grouped] -= 1
        elif self.chance.random() < 0.1:
            statement = self.chance.choice(["refresh", "with claim", "commit", "commit"])
            loses: Loss = self.chance.choice(["request", "answer"])
            # A group may get as far as its last view.
            skips = 0 if statement == "commit" else self.chance.randrange(len(job.views))
            fault = Fault(statement=statement, loses=loses, skips=skips)
            self.befell[f"{loses} lost"] += 1
        runs = [
            a_run(view, slot_id=job.slot, timeout_seconds=seconds, correlation_id=f"worker {number}")
            for view in job.views
        ]
        worker = self.workers[number]
        if fault is None:
            return await worker.refresh(self.database.url(), *runs, grouped=job.grouped)
        async with Proxy(self.database.server.port, fault) as proxy:
            try:
                results = await worker.refresh(self.database.url(via=proxy), *runs, grouped=job.grouped)
            except WorkerDied:
                self.networks_to_lose[job.grouped] += fault.network_too
                raise
            # It did not come so far: another one is to.
            unknown = results[0].outcome is RefreshOutcome.UNKNOWN
            self.networks_to_lose[job.grouped] += fault.network_too and not unknown
            return results

    def tell(self, job: Job, results: tuple[RefreshResult, ...]) -> None:
        # Of a group one view may fail and the others with it, but all succeed or none.
        ends = {"SUCCESS, recovered" if done_before(result) else result.outcome.value for result in results}
        how = " and ".join(sorted(ends))
        self.told[f"group {how}" if job.grouped else how] += 1
        if any(end.startswith("SUCCESS") for end in ends):
            assert len(ends) == 1, how
            assert len({result.data_as_of for result in results}) == 1, "a group has one snapshot"
            self.done.add(job)
            self.progress.set()

    async def befall(self, events: list[str]) -> None:
        """Have these happen in this order, spread over the slots."""
        for number, event in enumerate(events, start=1):
            while len(self.done) < number * self.slots // (len(events) + 2):
                self.progress.clear()
                await self.progress.wait()
            await asyncio.sleep(self.chance.uniform(0, 0.05))
            self.befell[event] += 1
            await EVENTS[event](self)

    # What befalls them.

    async def kill_worker(self) -> None:
        if self.workers:  # else the next one is being started
            self.workers[self.chance.choice(sorted(self.workers))].kill()

    async def kill_backend(self) -> None:
        pid = await self.a_backend()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.database.close()

    async def end_backend(self) -> None:
        pid = await self.a_backend()
        if pid is not None:
            # An earlier event may just be ending all sessions, this one too.
            with suppress(*_LOST):
                await self.database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid})")

    async def a_backend(self) -> int | None:
        """A backend that works for a worker; the server may be recovering from what befell it before."""
        while True:
            try:
                pids = await self.database.fetch_as(
                    SUPERUSER,
                    "select pid from pg_stat_activity where usename = $1 and datname = current_database() order by pid",
                    MV_OPERATOR,
                )
            except _LOST:
                await self.database.close()
                await asyncio.sleep(0.05)
            else:
                return self.chance.choice(pids)["pid"] if pids else None

    async def crash(self) -> None:
        await self.database.close()
        await asyncio.to_thread(self.database.server.restart, "immediate")

    async def kill_postmaster(self) -> None:
        await self.database.close()
        server = self.database.server
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(server.halt, "immediate")
        deadline = time.monotonic() + 30
        while True:
            try:
                # It does not start while a backend of the former one lives.
                await asyncio.to_thread(server.resume)
            except SandboxError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            else:
                return

    async def play(self, *, workers: int, events: list[str]) -> None:
        """Have all slots done, and these events happen in a random order meanwhile, but for the last slots.

        Who has lost the network waits for seconds before he tells that he does not know: all who did may be killed
        first. One that is left alone with the last slots is not.
        """
        self.chance.shuffle(events)
        last = [self.todo.pop() for _ in WORK]
        self.slots -= len(last)
        try:
            async with asyncio.timeout(60 + SECONDS_PER_SLOT * self.slots):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.befall(events))
                    for number in range(workers):
                        tasks.create_task(self.work(number))
                self.todo.extend(last)
                self.slots += len(last)
                await self.work(0)
        finally:
            print(f"seed {SEED}, PostgreSQL {self.database.version}: {workers} workers, {self.slots} slots")  # noqa: T201 - for whoever has to repeat it
            print(f"befell: {dict(self.befell)}\nended: {dict(self.told)}")  # noqa: T201 - as above


EVENTS = {
    "worker killed": Scene.kill_worker,
    "backend killed": Scene.kill_backend,
    "backend ended": Scene.end_backend,
    "server crashed": Scene.crash,
    "postmaster killed": Scene.kill_postmaster,
}


def done_before(result: RefreshResult) -> bool:
    return result.error_type is RefreshReason.RECOVERED


def jobs(count: int) -> Iterator[Job]:
    for number in range(count):
        instant = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        yield Job(slot_id(instant), WORK[number % len(WORK)])


async def transactions(database: Database) -> list[tuple[str, ...]]:
    """The views that each committed transaction refreshed."""
    rows = await database.fetch_as(
        SUPERUSER, "select array_agg(view order by view) as views from committed group by xid"
    )
    return sorted(tuple(row["views"]) for row in rows)


def wanted(count: int) -> list[tuple[str, ...]]:
    """What they are to be: each slot's views in one transaction of its own."""
    return sorted(tuple(sorted(str(view) for view in job.views)) for job in jobs(count))


@pytest.mark.timeout(120 + SECONDS_PER_SLOT * SLOTS)
@pytest.mark.parametrize(("version", "share", "workers"), [(18, 0.5, 3), (16, 0.25, 2), (15, 0.25, 2)])
async def test_h_g_each_slot_exactly_once_whatever_dies(
    start_server: Callable[..., Databases], version: int, share: float, workers: int
) -> None:
    databases = start_server(version=version, settings={"log_statement": "none"})
    slots = round(SLOTS * share)
    async with databases.lend("ledger") as database:
        await database.execute_as(APP_OWNER, SCHEMA)
        scene = Scene(
            database=database,
            chance=random.Random(f"{SEED} {version}"),  # noqa: S311 - to be repeated by its seed
            todo=deque(jobs(slots)),
            sharing=0.2,
            networks_to_lose=Counter({False: max(1, slots // 300), True: max(1, slots // 300)}),
        )
        often = max(1, slots // 100)
        await scene.play(
            workers=workers,
            events=[
                *["worker killed"] * 5 * often,
                *["backend ended"] * 5 * often,
                *["backend killed"] * often,
                *["server crashed", "postmaster killed"] * max(1, often // 3),
            ],
        )
        await database.close()
        settled = await database.fetch_as(
            SUPERUSER,
            "select slot_id, array_agg(view_name order by view_name) as views, count(distinct xmin::text) as xids,"
            " count(distinct data_as_of) as instants from matview_ops.refresh_run where settles group by 1",
        )
        assert {row["slot_id"]: tuple(row)[1:] for row in settled} == {
            job.slot: (sorted(str(view) for view in job.views), 1, 1) for job in jobs(slots)
        }
        # What committed, and what the ledger says, are the same transactions, one to one.
        assert await transactions(database) == wanted(slots)
        assert (
            await database.fetch_as(
                SUPERUSER,
                """
                select c.view, c.xid, r.slot_id
                from committed c full join (select * , xmin as xid from matview_ops.refresh_run where settles) r
                  on r.xid = c.xid::xid and r.view_name = c.view
                where c.xid is null or r.slot_id is null
                """,
            )
            == []
        )
        assert scene.told["SUCCESS"] + scene.told["group SUCCESS"] <= slots
        for whose in ("", "group "):
            assert scene.told[f"{whose}SUCCESS, recovered"] > 0
            assert scene.told[f"{whose}UNKNOWN"] > 0


@pytest.mark.timeout(240)
async def test_without_the_ledger_a_crash_repeats_one_refresh_at_most(start_server: Callable[..., Databases]) -> None:
    slots = max(60, SLOTS // 10)
    databases = start_server(version=18, settings={"log_statement": "none"})
    async with databases.lend("bare") as database:
        await database.execute_as(APP_OWNER, SCHEMA)
        scene = Scene(
            database=database,
            chance=random.Random(f"{SEED} bare"),  # noqa: S311 - to be repeated by its seed
            todo=deque(jobs(slots)),
            sharing=0,
        )
        await scene.play(workers=2, events=["worker killed"] * (slots // 5) + ["backend ended"] * (slots // 5))
        await database.close()
        committed = Counter(await transactions(database))
        assert Counter(wanted(slots)) <= committed
        assert {*committed} == {*wanted(slots)}, "a group was refreshed in part"
        assert committed.total() <= slots + scene.befell.total()
