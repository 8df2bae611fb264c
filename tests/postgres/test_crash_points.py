"""Death between any two statements of a run: the view is old or new, the ledger agrees, the next attempt knows.

So it is with a group, whose views are all old or all new.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import pytest
from sandbox.pgbinaries import VERSIONS
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Loss, Proxy
from tests.refreshes import GatedView, a_run, ended, public, refresh, settled
from tests.worker import Worker, WorkerDied, run_all

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.sql.group import WATCH, WATCHED
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.run import Run, SlotId, slot_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database import Database
    from tests.databases import Databases

    from matview_operator.domain.view import ViewName

Victim = Literal["worker", "backend", "connection"]

RECOVERED = (RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)
LOCK_SECONDS = 1.0
"""How long a lock outlives its holder at most."""
SLACK_SECONDS = 1.0
"""For a machine that does other things."""
RECOVERY_SECONDS = 30.0
LOST = frozenset({RefreshReason.CONNECTION_LOST, RefreshReason.CONNECTION_FAILED})

FIRST, LAST = "begin isolation level", "commit"


@dataclass(slots=True)
class Subject:
    """A view, or a group, of many rows that all bear one generation: the newest of their table at the last refresh."""

    database: Database
    views: list[ViewName]
    slots: itertools.count[int] = field(default_factory=itertools.count)
    generation: int = 0

    @classmethod
    async def make(cls, database: Database, *, grouped: bool) -> Subject:
        views = [await database.make_view(rows=500)]
        if grouped:
            await database.execute_as(
                APP_OWNER,
                """
                create materialized view another as select id, v from mv_base;
                create unique index on another (id);
                """,
            )
            views.append(public("another"))
        return cls(database, views)

    @property
    def grouped(self) -> bool:
        return len(self.views) > 1

    def runs(self, slot: SlotId) -> list[Run]:
        return [a_run(view, slot_id=slot) for view in self.views]

    async def write(self) -> SlotId:
        """Give the table its next generation; return the slot that is to bring it into the views."""
        self.generation += 1
        await self.database.execute_as(APP_OWNER, f"update mv_base set v = {self.generation}")
        return slot_id(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=next(self.slots)))

    async def generations(self) -> list[object]:
        """Of each view, and more of them than views if one is neither old nor new."""
        return [
            row["v"]
            for view in self.views
            for row in await self.database.fetch_as(APP_OWNER, f"select distinct v from {view}")
        ]

    async def versions(self) -> list[object]:
        return [
            await self.database.value_as(APP_OWNER, f"select array_agg(xmin::text order by id) from {view}")
            for view in self.views
        ]

    async def settled(self, slot: SlotId) -> tuple[object, ...]:
        """How many rows settle the slot, of how many views, by how many transactions, as of how many instants."""
        (row,) = await self.database.fetch_as(
            SUPERUSER,
            "select count(*), count(distinct view_name), count(distinct xmin::text), count(distinct data_as_of)"
            " from matview_ops.refresh_run where slot_id = $1 and settles",
            slot,
        )
        return tuple(row)

    async def check(self, slot: SlotId, *, committed: bool, where: str) -> None:
        """Check what a death left behind, and that the next attempt does what is left to do."""
        count = len(self.views)
        once = (count, count, 1, 1)
        assert await self.generations() == [self.generation if committed else self.generation - 1] * count, where
        assert await self.settled(slot) == (once if committed else (0, 0, 0, 0)), where
        before = await self.versions()
        again = await run_all(Refresher(), self.database.url(), self.runs(slot), grouped=self.grouped)
        expected = RECOVERED if committed else (RefreshOutcome.SUCCESS, None)
        assert [ended(result) for result in again] == [expected] * count, where
        assert await self.generations() == [self.generation] * count, where
        assert await self.settled(slot) == once, where
        if committed:
            assert await self.versions() == before, f"refreshed once more: {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An instant at which a run may be hit: before a statement arrives, or before its answer does."""

    number: int
    text: str
    loses: Loss
    committed: bool

    def __str__(self) -> str:
        return f"{self.loses} of statement {self.number}: {' '.join(self.text.split())[:60]}"


async def points(subject: Subject) -> list[Point]:
    """Every one of a worker's run, that keeps its connection afterwards; of a group's only those that tell more.

    What comes before BEGIN is the same for both, and to lose a statement leaves what losing the last answer left, but
    for COMMIT.
    """
    async with Proxy(subject.database.server.port) as proxy:
        runs = subject.runs(await subject.write())
        with Worker() as worker:
            results = await worker.refresh(subject.database.url(via=proxy), *runs, grouped=subject.grouped)
    assert {ended(result) for result in results} == {(RefreshOutcome.SUCCESS, None)}
    first = next(n for n, text in enumerate(proxy.statements) if text.startswith(FIRST))
    last = proxy.statements.index(LAST)
    assert last - first >= 5, "locks, lookup, REFRESH and claim lie between BEGIN and COMMIT"
    assert not subject.grouped or {WATCH.strip(), WATCHED} < {*proxy.statements[first:last]}
    return [
        Point(number=n, text=text, loses=loses, committed=n > last or (n == last and loses == "answer"))
        for n, text in enumerate(proxy.statements)
        for loses in ("request", "answer")
        if not subject.grouped or (n >= first and (loses == "answer" or n == last))
    ]


async def locks(database: Database) -> object:
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
    )


async def backend(database: Database) -> int:
    """Return the process id of the operator's backend."""
    pid = await database.value_as(
        SUPERUSER,
        "select pid from pg_stat_activity where usename = $1 and datname = current_database()",
        MV_OPERATOR,
    )
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize(
    ("databases", "victim", "grouped"),
    [
        *[(version, victim, False) for version in VERSIONS for victim in ("worker", "connection")],
        *[(15, "worker", True), (16, "connection", True), (18, "worker", True), (18, "connection", True)],
    ],
    indirect=["databases"],
)
async def test_fault_11_a_death_between_any_two_statements_neither_repeats_nor_loses_a_slot(
    database: Database, *, victim: Victim, grouped: bool
) -> None:
    subject = await Subject.make(database, grouped=grouped)
    for point in await points(subject):
        where = f"{victim} died, {point}"
        slot = await subject.write()
        fault = Fault(statement="", skips=point.number, loses=point.loses, held=True)
        async with Proxy(database.server.port, fault) as proxy:
            url = database.url(via=proxy)
            with Worker() as worker:
                running = asyncio.create_task(worker.refresh(url, *subject.runs(slot), grouped=grouped))
                await fault.happened.wait()
                if victim == "worker":
                    worker.kill()
                else:
                    await proxy.cut()
                died = time.monotonic()
                await settled(lambda: locks(database), 0, seconds=LOCK_SECONDS + SLACK_SECONDS)
                assert time.monotonic() - died < LOCK_SECONDS + SLACK_SECONDS, where
                if victim == "worker":
                    with pytest.raises(WorkerDied):
                        await running
                else:
                    for result in await running:
                        if point.committed:
                            assert result.outcome is RefreshOutcome.SUCCESS, where
                            assert point.text != LAST or result.error_type is RefreshReason.RECOVERED, where
                        else:
                            assert result.error_type in LOST, (where, result.error_message)
        await subject.check(slot, committed=point.committed, where=where)


@pytest.mark.parametrize("grouped", [False, True], ids=["view", "group"])
async def test_fault_1_a_backend_killed_between_any_two_statements_neither_repeats_nor_loses_a_slot(
    start_server: Callable[..., Databases], *, grouped: bool
) -> None:
    """By SIGKILL, upon which the server ends every session and recovers from its log."""
    databases = start_server(version=18)
    async with databases.lend("ledger") as database:
        subject = await Subject.make(database, grouped=grouped)
        for deaths, point in enumerate(await points(subject), start=1):
            where = f"backend killed, {point}"
            slot = await subject.write()
            fault = Fault(statement="", skips=point.number, loses=point.loses, held=True)
            async with Proxy(database.server.port, fault) as proxy:
                with Worker() as worker:
                    running = asyncio.create_task(
                        worker.refresh(database.url(via=proxy), *subject.runs(slot), grouped=grouped)
                    )
                    await fault.happened.wait()
                    os.kill(await backend(database), signal.SIGKILL)
                    results = await running
            for result in results:
                if result.outcome is RefreshOutcome.UNKNOWN:
                    assert point.text == LAST, (
                        "a server that recovers for long cannot be asked, but only COMMIT is in doubt"
                    )
                elif point.committed:
                    assert result.outcome is RefreshOutcome.SUCCESS, where
                else:
                    assert result.error_type in LOST, (where, result.error_message)
            await restarted(database, deaths + 1)
            assert await locks(database) == 0, where
            await subject.check(slot, committed=point.committed, where=where)


async def restarted(database: Database, times: int) -> None:
    """Wait until the server has come up for the so-manieth time, and take leave of its former sessions."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while database.server.log_text().count("database system is ready to accept connections") < times:
        assert time.monotonic() < deadline, "the server does not come back"
        await asyncio.sleep(0.02)
    await database.close()


async def test_fault_11_a_worker_killed_in_the_middle_of_refresh_gives_its_lock_back_within_a_second(
    database: Database,
) -> None:
    gated = await GatedView.make(database)
    before = await database.value_as(APP_OWNER, "select array_agg(xmin::text) from gated")
    await gated.shut()
    slot = slot_id(datetime(2026, 1, 1, tzinfo=UTC))
    with Worker() as worker:
        running = asyncio.create_task(worker.refresh(database.url(), a_run(gated.view, slot_id=slot)))
        await gated.reached()
        worker.kill()
        # The server looks every 500 ms whether its client is there.
        await settled(lambda: locks(database), 0, seconds=LOCK_SECONDS + SLACK_SECONDS)
        with pytest.raises(WorkerDied):
            await running
    assert await database.value_as(APP_OWNER, "select array_agg(xmin::text) from gated") == before
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 0
    await gated.open()
    assert ended(await refresh(database, gated.view, slot_id=slot)) == (RefreshOutcome.SUCCESS, None)
