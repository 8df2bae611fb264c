"""Tables that are emptied and filled again while a view of them is refreshed: no view loses rows by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.refreshes import GatedView, ended, public, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres import overtaking
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.view import Concurrently

if TYPE_CHECKING:
    from tests.database import Database

FRESH = (RefreshOutcome.SUCCESS, None)
RELOAD = "begin; truncate {table}; insert into {table} select n, 'a', n from generate_series(1, 5) n"


async def waits_for_a_lock(database: Database) -> None:
    """Wait until a refresh waits for a lock on a relation."""
    waiting = (
        "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not l.granted"
        " and l.locktype = 'relation' and a.datname = current_database() and a.query ilike 'refresh%'"
    )
    await settled(lambda: database.value_as(SUPERUSER, waiting), 1, seconds=20)


@pytest.mark.parametrize("concurrently", [Concurrently.ALWAYS, Concurrently.NEVER])
async def test_a_view_whose_table_is_loaded_anew_meanwhile_has_the_new_rows(
    database: Database, concurrently: Concurrently
) -> None:
    view = await database.make_view()
    load = await database.connect(APP_OWNER)
    await load.execute(RELOAD.format(table="mv_base"))
    task = asyncio.create_task(refresh(database, view, concurrently=concurrently, lock_timeout_millis=20_000))
    await waits_for_a_lock(database)
    await load.execute("commit")
    assert ended(await task) == FRESH
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 5


async def test_partitions_and_what_ordinary_views_read_count_too(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        """
        create table parted (id int, tenant_id text, v int) partition by range (id);
        create table part partition of parted for values from (0) to (10);
        create view between as select id from parted;
        create materialized view mv as select id from between;
        create unique index on mv (id);
        """,
    )
    load = await database.connect(APP_OWNER)
    await load.execute(RELOAD.format(table="part"))
    task = asyncio.create_task(refresh(database, public("mv"), lock_timeout_millis=20_000))
    await waits_for_a_lock(database)
    await load.execute("commit")
    assert ended(await task) == FRESH
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 5


async def test_what_the_view_did_not_read_may_be_emptied_while_it_is_refreshed(database: Database) -> None:
    """A long refresh is not done again because an old partition, which its query leaves out, is emptied."""
    await database.execute_as(
        APP_OWNER,
        """
        create table parted (k int, id int) partition by list (k);
        create table old partition of parted for values in (1);
        create table new partition of parted for values in (2);
        insert into parted values (1, 1), (2, 2);
        """,
    )
    gated = await GatedView.make(database)
    await database.execute_as(
        APP_OWNER,
        """
        create sequence runs minvalue 0;
        create materialized view kept as
          select id, nextval('public.runs') as run, public.gated_wait() as gate from parted where k = 2;
        create unique index on kept (id);
        """,
    )
    await gated.shut()
    task = asyncio.create_task(refresh(database, public("kept")))
    await gated.reached()
    await database.execute_as(APP_OWNER, "truncate old")
    await gated.open()
    assert ended(await task) == FRESH
    assert await database.value_as(APP_OWNER, "select run from kept") == 1  # created as the one before


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_loads_that_come_every_time_end_the_run_with_what_to_do(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overtaking, "TRIES", 1)
    view = await database.make_view()
    load = await database.connect(APP_OWNER)
    await load.execute(RELOAD.format(table="mv_base"))
    task = asyncio.create_task(refresh(database, view, lock_timeout_millis=20_000))
    await waits_for_a_lock(database)
    await load.execute("commit")
    result = await task
    assert ended(result) == (RefreshOutcome.FAILED, RefreshReason.DEADLOCK)
    assert result.error_message
    assert "truncated public.mv_base at the same time" in result.error_message
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 3
