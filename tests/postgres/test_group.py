"""A consistent group: its views agree with each other, all of them are refreshed or none, whoever comes between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import GatedView, backends, ended, ledger_rows, make_pair, public, refresh, refresh_group, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres import overtaking
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import ViewCheck
from matview_operator.domain.lock_keys import lock_keys
from matview_operator.domain.mode import ModeChoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database


FRESH = (RefreshOutcome.SUCCESS, None)
ROLLED_BACK = (RefreshOutcome.INTERRUPTED, RefreshReason.GROUP_ROLLED_BACK)


async def rows(database: Database, *names: str) -> list[object]:
    """Return how many rows each view has."""
    return [await database.value_as(APP_OWNER, f"select count(*) from {name}") for name in names]


async def make_gated_group(database: Database) -> GatedView:
    """Make the pair, and between them a gated view: `first`, `gated` and `last` are refreshed in this order."""
    await make_pair(database)
    return await GatedView.make(database)


GROUP = ("first", "gated", "last")


# At one snapshot.


async def test_views_agree_though_their_table_changes_between_their_refreshes(database: Database) -> None:
    gated = await make_gated_group(database)
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP))
    await gated.reached()
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    await gated.open()
    results = await task
    assert [ended(result) for result in results] == [FRESH] * 3
    assert await rows(database, "first", "last", "base") == [3, 3, 4]
    assert len({result.data_as_of for result in results}) == 1
    # The same, one by one: this is what a group is for.
    await refresh(database, public("first"))
    await database.execute_as(APP_OWNER, "insert into base values (5)")
    await refresh(database, public("last"))
    assert await rows(database, "first", "last", "base") == [4, 5, 5]


@pytest.mark.parametrize("through", ["direct", "pgbouncer"])
async def test_views_agree_after_every_refresh_while_a_writer_never_stops(
    database: Database, pgbouncer: Callable[..., PgBouncer], through: str
) -> None:
    await make_pair(database)
    via = pgbouncer(database, pool_size=2) if through == "pgbouncer" else None
    rounds = 5
    wrote = asyncio.Event()

    async def write() -> None:
        connection = await database.connect(APP_OWNER)
        number = 3
        while True:
            number += 1
            await connection.execute("insert into base values ($1)", number)
            if number % 3 == 0:
                await connection.execute("delete from base where id = $1", number - 2)
            wrote.set()

    async def write_more() -> None:
        wrote.clear()
        await wrote.wait()

    async def disagreements() -> object:
        """In one statement, as a reader who wants both has to ask."""
        return await database.value_as(APP_OWNER, "select count(*) from first full join last using (id) where " + ONE)

    writer = asyncio.create_task(write())
    apart = 0
    try:
        for _ in range(rounds):
            await write_more()
            results = await refresh_group(database, "first", "last", via=via)
            assert [ended(result) for result in results] == [FRESH] * 2
            assert await disagreements() == 0
            for name in ("first", "last"):
                assert ended(await refresh(database, public(name), via=via)) == FRESH
                await write_more()
            apart += await disagreements() != 0
    finally:
        writer.cancel()
        await asyncio.wait([writer])
    assert apart == rounds


ONE = "first.id is null or last.id is null"
"""A row that one of the two has and the other has not."""


async def test_a_table_that_is_loaded_anew_after_the_snapshot_empties_no_view(database: Database) -> None:
    gated = await make_gated_group(database)
    await database.execute_as(
        APP_OWNER,
        """
        create table other (id int);
        insert into other select generate_series(1, 3);
        create materialized view later as select id from other;
        create unique index on later (id);
        """,
    )
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, "first", "gated", "later"))
    await gated.reached()
    await database.execute_as(
        APP_OWNER, "begin; truncate other; insert into other select generate_series(1, 5); commit"
    )
    await gated.open()
    assert [ended(result) for result in await task] == [FRESH] * 3
    assert await rows(database, "later") == [5]


async def test_a_view_sees_what_the_group_did_to_the_views_it_reads(database: Database) -> None:
    await make_pair(database)
    await database.execute_as(
        APP_OWNER,
        """
        create view between as select id from last;
        create materialized view a_sum as select 1 as id, count(*) as n from between;
        create unique index on a_sum (id);
        insert into base values (4);
        """,
    )
    results = await refresh_group(database, "a_sum", "last", "first")
    assert [ended(result) for result in results] == [FRESH] * 3
    assert await rows(database, "first", "last") == [4, 4]
    assert await database.value_as(APP_OWNER, "select n from a_sum") == 4


# All or none.


async def test_a_view_that_fails_leaves_all_of_them_as_they_were(database: Database) -> None:
    await make_pair(database)
    await database.execute_as(
        APP_OWNER,
        """
        create materialized view zero as select id, 1 / (id - 4) as x from base;
        create unique index on zero (id);
        insert into base values (4);
        """,
    )
    first, zero, last = await refresh_group(database, "first", "zero", "last")
    assert ended(zero) == (RefreshOutcome.FAILED, RefreshReason.VIEW_QUERY_FAILED)
    assert (ended(first), ended(last)) == (ROLLED_BACK, ROLLED_BACK)
    assert first.error_message
    assert "zero, which failed" in first.error_message
    assert await rows(database, "first", "zero", "last") == [3, 3, 3]
    assert sorted(await ledger_rows(database), key=str) == [
        ("FAILED", "ViewQueryFailed", 1, False),
        ("INTERRUPTED", "GroupRolledBack", 1, False),
        ("INTERRUPTED", "GroupRolledBack", 1, False),
    ]
    await database.execute_as(APP_OWNER, "delete from base where id = 4")
    assert [ended(result) for result in await refresh_group(database, "first", "zero", "last")] == [FRESH] * 3


async def test_a_backend_killed_between_two_views_leaves_all_of_them_as_they_were(database: Database) -> None:
    gated = await make_gated_group(database)
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP, slot="s"))
    pid = await gated.reached()
    await database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid})")
    lost = (RefreshOutcome.INTERRUPTED, RefreshReason.CONNECTION_LOST)
    assert [ended(result) for result in await task] == [lost] * 3
    assert await rows(database, "first", "last") == [3, 3]
    await gated.open()
    assert [ended(result) for result in await refresh_group(database, *GROUP, slot="s")] == [FRESH] * 3
    assert await rows(database, "first", "last") == [4, 4]


async def test_a_group_has_one_deadline(database: Database) -> None:
    gated = await make_gated_group(database)
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    await gated.shut()
    first, middle, last = await refresh_group(database, *GROUP, timeout_seconds=1.0)
    assert ended(middle) == (RefreshOutcome.FAILED, RefreshReason.TIMEOUT)
    assert (ended(first), ended(last)) == (ROLLED_BACK, ROLLED_BACK)
    assert middle.error_message
    assert "group" in middle.error_message
    assert middle.duration_ms < 1000 + 5000
    assert await rows(database, "first", "last") == [3, 3]


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_cancelled_group_stops_on_the_server_and_tells_of_every_view(database: Database) -> None:
    gated = await make_gated_group(database)
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP))
    await gated.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    stopped = (RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)
    assert [(told.view_name, ended(told)) for told in caught.value.args] == [(name, stopped) for name in GROUP]
    await settled(lambda: backends(database), 0)


# Readers never wait.


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_view_that_readers_would_wait_for_is_refused_before_anything_is_done(database: Database) -> None:
    await make_pair(database)
    await database.make_view("bare", unique=False)
    first, bare = await refresh_group(database, "first", "bare")
    assert ended(bare) == (RefreshOutcome.FAILED, RefreshReason.NO_UNIQUE_INDEX)
    assert ended(first) == ROLLED_BACK
    check = ViewCheck(view=public("bare"), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED)
    inspection = await Inspector().inspect(
        target=parse_url(database.url()), checks=[check, replace(check, grouped=True)], allow_superuser=False
    )
    assert inspection.answers[check] == ModeChoice(RefreshMode.BLOCKING, RefreshReason.NO_UNIQUE_INDEX)
    problem = inspection.answers[replace(check, grouped=True)]
    assert isinstance(problem, Problem)
    assert problem.reason is RefreshReason.NO_UNIQUE_INDEX


async def test_a_view_that_was_never_populated_is_filled_and_the_next_time_refreshed_beside_readers(
    database: Database,
) -> None:
    await make_pair(database)
    await database.execute_as(
        APP_OWNER,
        "create materialized view empty as select id from first with no data; create unique index on empty (id)",
    )
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    for expected in (RefreshMode.BLOCKING, RefreshMode.CONCURRENT):
        results = await refresh_group(database, "empty", "first")
        assert [result.mode for result in results] == [expected, RefreshMode.CONCURRENT]
        assert await rows(database, "empty", "first") == [4, 4]


async def test_readers_read_old_rows_of_all_views_until_the_group_commits(database: Database) -> None:
    gated = await make_gated_group(database)
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP))
    await gated.reached()
    assert await rows(database, *GROUP) == [3, 3, 3]
    await gated.open()
    await task
    assert await rows(database, "first", "last") == [4, 4]


# Guarded.


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_new_rows_that_a_guard_rejects_leave_all_views_as_they_were(database: Database) -> None:
    await make_pair(database)
    await database.execute_as(APP_OWNER, "grant select on first, last to public; delete from base")
    first, last = await refresh_group(database, "first", "last", guard=Guard(min_rows=1))
    assert ended(first) == (RefreshOutcome.REJECTED_BY_GUARD, RefreshReason.TOO_FEW_ROWS)
    assert ended(last) == ROLLED_BACK
    assert await rows(database, "first", "last") == [3, 3]


async def test_a_guard_reads_no_relation_that_takes_the_name_after_the_snapshot(database: Database) -> None:
    gated = await make_gated_group(database)
    await database.execute_as(APP_OWNER, "grant select on first, gated, last to public")
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP, guard=Guard(keep_tenants="id")))
    await gated.reached()
    await database.execute_as(
        APP_OWNER,
        """
        alter materialized view last rename to moved;
        create view last as select id from base;
        grant select on last to public;
        """,
    )
    await gated.open()
    first, middle, last = await task
    assert ended(last) == (RefreshOutcome.REJECTED_BY_GUARD, RefreshReason.VIEW_REPLACED)
    assert (ended(first), ended(middle)) == (ROLLED_BACK, ROLLED_BACK)


# Beside others.


@pytest.mark.parametrize("databases", [18], indirect=True)
@pytest.mark.parametrize("held", ["first", "last"])
async def test_a_held_lock_of_one_view_gives_back_the_others_at_once(database: Database, held: str) -> None:
    await make_pair(database)
    keys = lock_keys(held)
    rival = await database.connect(MV_OPERATOR)
    await rival.fetch("select pg_advisory_lock($1, $2)", keys.view_key, keys.tenant_key)
    results = await refresh_group(database, "first", "last")
    assert [ended(result) for result in results] == [(RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD)] * 2
    assert results[0].error_message
    assert results[0].error_message.startswith(f"{held}: ")
    assert await rival.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 1
    assert await ledger_rows(database) == []


@pytest.mark.parametrize(
    ("change", "mode", "through"),
    [
        ("insert into base values (5)", "concurrently", "direct"),  # and 4, which both add: 23505
        ("insert into base values (5)", "concurrently", "pgbouncer"),
        ("insert into base values (5); delete from base where id = 4", "concurrently", "direct"),  # no error at all
        ("delete from base where id = 1", "concurrently", "direct"),
        ("select 1", "", "direct"),
    ],
)
async def test_somebodys_refresh_between_snapshot_and_lock_is_noticed(
    database: Database, pgbouncer: Callable[..., PgBouncer], change: str, mode: str, through: str
) -> None:
    """Rows that the other one added are in no snapshot of ours: REFRESH … CONCURRENTLY would leave them, silently."""
    gated = await make_gated_group(database)
    via = pgbouncer(database, pool_size=2) if through == "pgbouncer" else None
    await database.execute_as(APP_OWNER, "insert into base values (4)")
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP, via=via))
    await gated.reached()
    await database.execute_as(APP_OWNER, change)
    await database.execute_as(MV_OPERATOR, f"refresh materialized view {mode} last")
    await gated.open()
    assert [ended(result) for result in await task] == [FRESH] * 3
    newest = await database.value_as(APP_OWNER, "select array_agg(id order by id) from base")
    for name in ("first", "last"):
        assert await database.value_as(APP_OWNER, f"select array_agg(id order by id) from {name}") == newest


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_others_who_come_between_too_often_end_the_group_with_what_to_do(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overtaking, "TRIES", 1)
    gated = await make_gated_group(database)
    await gated.shut()
    task = asyncio.create_task(refresh_group(database, *GROUP))
    await gated.reached()
    await database.execute_as(MV_OPERATOR, "refresh materialized view last")
    await gated.open()
    results = await task
    assert {ended(result) for result in results} == {(RefreshOutcome.FAILED, RefreshReason.DEADLOCK)}
    assert results[0].error_message
    assert "truncated last at the same time" in results[0].error_message
    assert {row[:2] for row in await ledger_rows(database)} == {("FAILED", "Deadlock")}


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_duplicate_keys_of_the_view_itself_are_not_tried_again(database: Database) -> None:
    await make_pair(database)
    await database.execute_as(
        APP_OWNER,
        """
        create materialized view twice as select least(id, 3) as id, id as n from base;
        create unique index on twice (id);
        insert into base values (4);
        """,
    )
    first, twice = await refresh_group(database, "first", "twice")
    assert ended(twice) == (RefreshOutcome.FAILED, RefreshReason.DUPLICATE_ROWS)
    assert ended(first) == ROLLED_BACK
