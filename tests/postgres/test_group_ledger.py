"""A consistent group and the ledger: its slot is worked on exactly once, whoever dies when, and by one transaction."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Loss, Proxy
from tests.refreshes import (
    POLICY,
    GatedView,
    counted_view,
    ended,
    executions,
    ledger_rows,
    make_pair,
    public,
    refresh,
    refresh_group,
)

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.run import request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database import Database
    from tests.databases import Databases

FRESH = (RefreshOutcome.SUCCESS, None)
RECOVERED = (RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)
COVERED = (RefreshOutcome.SKIPPED_COVERED, RefreshReason.COVERED)
OTHER_POLICY = uuid.UUID("00000000-0000-4000-8000-00000000000b")
SETTLED = (
    "select view_name, count(*), count(distinct data_as_of) from matview_ops.refresh_run where settles"
    " group by 1 order by 1"
)


async def counted_pair(database: Database) -> None:
    for name in ("one", "two"):
        await counted_view(database, name)


async def times(database: Database) -> list[object]:
    """How often each of the pair was refreshed."""
    return [await executions(database, name) for name in ("one", "two")]


async def test_a_settled_group_is_not_refreshed_again(database: Database) -> None:
    await counted_pair(database)
    first = await refresh_group(database, "one", "two", slot="s")
    again = await refresh_group(database, "one", "two", slot="s")
    assert [ended(result) for result in first] == [FRESH] * 2
    assert [ended(result) for result in again] == [RECOVERED] * 2
    assert [result.data_as_of for result in again] == [result.data_as_of for result in first]
    assert await times(database) == [1, 1]
    assert await ledger_rows(database) == [("SUCCESS", None, 1, True)] * 2


async def test_a_group_of_which_a_part_is_settled_is_refreshed_together_once(database: Database) -> None:
    """The policy was no group yet when the slot was begun, or had fewer views."""
    await counted_pair(database)
    await refresh(database, public("one"), slot_id=request_id("s"))
    for expected in (FRESH, RECOVERED):
        assert [ended(result) for result in await refresh_group(database, "one", "two", slot="s")] == [expected] * 2
    assert await times(database) == [2, 1]
    assert [tuple(row) for row in await database.fetch_as(SUPERUSER, SETTLED)] == [("one", 1, 1), ("two", 1, 1)]


async def test_a_group_is_covered_by_one_transaction_and_never_by_several(database: Database) -> None:
    await counted_pair(database)
    due = datetime.now(UTC)
    for name in ("one", "two"):
        await refresh(database, public(name), due_at=due)
    theirs = await refresh_group(database, "one", "two", due_at=due, policy_uid=OTHER_POLICY)
    assert [ended(result) for result in theirs] == [FRESH] * 2
    ours = await refresh_group(database, "one", "two", due_at=due)
    assert [ended(result) for result in ours] == [COVERED] * 2
    assert ours[0].data_as_of == theirs[0].data_as_of
    # One view moved on since: the two do not agree any more.
    await refresh(database, public("two"))
    assert [ended(result) for result in await refresh_group(database, "one", "two", due_at=due)] == [FRESH] * 2


@pytest.mark.parametrize("template", ["ledger", "bare"])
@pytest.mark.parametrize(
    ("loses", "expected", "count"),
    [("answer", RECOVERED, 4), ("request", (RefreshOutcome.INTERRUPTED, RefreshReason.CONNECTION_LOST), 3)],
)
@pytest.mark.parametrize("databases", [15, 18], indirect=True)
async def test_a_commit_without_an_answer_is_the_same_for_all_views(
    databases: Databases,
    template: str,
    loses: Loss,
    expected: tuple[RefreshOutcome, RefreshReason | None],
    count: int,
) -> None:
    async with databases.lend(template) as database:
        await make_pair(database)
        await database.execute_as(APP_OWNER, "insert into base values (4)")
        async with Proxy(database.server.port, Fault(statement="commit", loses=loses)) as proxy:
            results = await refresh_group(database, "first", "last", via=proxy, slot="s")
        assert [ended(result) for result in results] == [expected] * 2
        for name in ("first", "last"):
            assert await database.value_as(APP_OWNER, f"select count(*) from {name}") == count


async def test_a_slot_that_somebody_settles_after_the_snapshot_is_noticed_by_the_claim(database: Database) -> None:
    """Somebody who ignores the locks, and whose row the snapshot cannot see: the unique index can."""
    await make_pair(database)
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, "first", "gated", "last", slot="s"))
    await gated.reached()
    await database.execute_as(
        MV_OPERATOR,
        f"""
        insert into matview_ops.refresh_run (policy_uid, view_oid, view_name, slot_id, outcome, lock_token, data_as_of,
          correlation_id)
        values ('{POLICY}', 'last'::regclass, 'last', 'request:s', 'SUCCESS', 'GLOBAL', now(), 'faster')
        """,
    )
    await gated.open()
    assert [ended(result) for result in await task] == [FRESH] * 3
    rows = await database.fetch_as(
        SUPERUSER, "select view_name, correlation_id from matview_ops.refresh_run order by 1"
    )
    assert [tuple(row) for row in rows] == [("first", "test"), ("gated", "test"), ("last", "faster")]


async def test_a_timeout_in_a_later_view_is_recorded_too(database: Database) -> None:
    """The server's own timeout is what is left of the group's, not all of it once more."""
    await make_pair(database)
    gated = await GatedView.make(database)
    await database.execute_as(
        APP_OWNER,
        """
        create materialized view always_slow as select id, (select 0 from pg_sleep(0.5)) as slept from base;
        create unique index on always_slow (id);
        """,
    )
    await gated.shut()
    slow, middle = await refresh_group(database, "always_slow", "gated", timeout_seconds=1.0)
    assert ended(middle) == (RefreshOutcome.FAILED, RefreshReason.TIMEOUT)
    assert ended(slow) == (RefreshOutcome.INTERRUPTED, RefreshReason.GROUP_ROLLED_BACK)
    assert {row[:2] for row in await ledger_rows(database)} == {
        ("FAILED", "Timeout"),
        ("INTERRUPTED", "GroupRolledBack"),
    }


async def test_a_backend_killed_between_two_views_leaves_nothing(start_server: Callable[..., Databases]) -> None:
    async with start_server(version=18).lend("ledger") as database:
        await make_pair(database)
        gated = await GatedView.make(database)
        await database.execute_as(APP_OWNER, "insert into base values (4)")
        await gated.shut()
        witness = await database.connect(SUPERUSER)
        task = asyncio.create_task(refresh_group(database, "first", "gated", "last", slot="s"))
        os.kill(await gated.reached(), signal.SIGKILL)
        lost = (RefreshOutcome.INTERRUPTED, RefreshReason.CONNECTION_LOST)
        assert [ended(result) for result in await task] == [lost] * 3
        # The server ends all its sessions a moment after the killed one.
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await witness.fetchval("select pg_sleep(60)")
        await opened_again(gated)
        assert await database.value_as(APP_OWNER, "select count(*) from first") == 3
        assert [ended(result) for result in await refresh_group(database, "first", "last", slot="s")] == [FRESH] * 2
        assert await database.value_as(APP_OWNER, "select count(*) from first") == 4


async def opened_again(gated: GatedView) -> None:
    """Open the gate, as soon as the server is there again."""
    while True:
        try:
            return await gated.open()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_each_slot_of_a_group_exactly_once_and_whole_under_two_workers_and_deaths(database: Database) -> None:
    slots = 12
    await counted_pair(database)
    chance = random.Random(7)  # noqa: S311 - which connections die

    async def worker() -> None:
        for slot in range(slots):
            while True:
                faults = []
                if chance.random() < 0.4:
                    statement = chance.choice(["refresh", "fetch all", "with claim", "commit"])
                    loses: Loss = chance.choice(["request", "answer"])
                    faults = [Fault(statement=statement, loses=loses)]
                async with Proxy(database.server.port, *faults) as proxy:
                    results = await refresh_group(database, "one", "two", via=proxy, slot=str(slot))
                if {result.outcome for result in results} == {RefreshOutcome.SUCCESS}:
                    break
                await asyncio.sleep(0.005)

    await asyncio.gather(worker(), worker())
    rows = await database.fetch_as(
        SUPERUSER,
        "select slot_id, count(*) as views, count(distinct data_as_of) as snapshots from matview_ops.refresh_run"
        " where settles group by slot_id",
    )
    assert len(rows) == slots
    assert {(row["views"], row["snapshots"]) for row in rows} == {(2, 1)}
