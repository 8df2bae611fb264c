"""Fault 22: the view is dropped, replaced, renamed or given away by a second session, in the middle of a run."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, OTHER_TENANT
from tests.proxy import Fault, Proxy
from tests.refreshes import ended, failure, ledger_rows, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason as Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.database import Database

    from matview_operator.domain.result import RefreshResult

pytestmark = pytest.mark.parametrize("databases", [15, 18], indirect=True, ids=["pg15", "pg18"])

BETWEEN_LOOKUP_AND_REFRESH = {
    "dropped": ("drop materialized view mv", Reason.VIEW_NOT_FOUND),
    "renamed": ("alter materialized view mv rename to former", Reason.VIEW_NOT_FOUND),
    "replaced by a materialized view": (
        (
            "alter materialized view mv rename to former;"
            " create materialized view mv as select id, 0 as v from mv_base; create unique index on mv (id)"
        ),
        Reason.VIEW_REPLACED,
    ),
    "replaced by a view": (
        "drop materialized view mv; create view mv as select id, v from mv_base",
        Reason.NOT_MATERIALIZED_VIEW,
    ),
    "replaced by a table": ("drop materialized view mv; create table mv (id int, v int)", Reason.NOT_MATERIALIZED_VIEW),
}


@asynccontextmanager
async def paused(database: Database, statement: str) -> AsyncIterator[asyncio.Task[RefreshResult]]:
    """A run that waits before this statement until the block ends."""
    fault = Fault(statement=statement, loses="request", until=asyncio.Event())
    assert fault.until is not None
    async with Proxy(database.server.port, fault) as proxy:
        running = asyncio.create_task(refresh(database, await database.make_view(), via=proxy))
        await fault.happened.wait()
        yield running
        fault.until.set()
        await running


@pytest.mark.parametrize("change", BETWEEN_LOOKUP_AND_REFRESH)
async def test_fault_22_a_view_replaced_between_lookup_and_refresh_is_neither_refreshed_nor_recorded_as_done(
    database: Database, change: str
) -> None:
    statements, reason = BETWEEN_LOOKUP_AND_REFRESH[change]
    async with paused(database, "refresh") as running:
        await database.execute_as(APP_OWNER, f"update mv_base set v = 1; {statements}")
    failure(running.result(), reason)
    assert [row[0] for row in await ledger_rows(database)] == ["FAILED"]
    if change == "replaced by a materialized view":
        assert await database.value_as(APP_OWNER, "select array_agg(v) from mv") == [0, 0, 0]
        assert await database.value_as(APP_OWNER, "select array_agg(v order by id) from former") == [10, 20, 30]


async def test_fault_22_a_view_given_to_another_owner_after_the_lookup_is_left_alone(database: Database) -> None:
    async with paused(database, "refresh") as running:
        await database.execute_as(SUPERUSER, f"alter materialized view mv owner to {OTHER_TENANT}")
    failure(running.result(), Reason.PERMISSION_DENIED)


@pytest.mark.parametrize("statement", ["with claim", "commit"])
async def test_fault_22_a_refreshed_view_cannot_be_dropped_before_commit(database: Database, statement: str) -> None:
    dropper = await database.connect(APP_OWNER)
    async with paused(database, statement) as running:
        # The claim leaves with REFRESH, which need not have begun when the claim is held back.
        locks = "select count(*) from pg_locks where relation = 'mv'::regclass"
        await settled(lambda: database.value_as(SUPERUSER, f"{locks} and mode = 'ExclusiveLock' and granted"), 1)
        dropping = asyncio.create_task(dropper.execute("drop materialized view mv"))
        await settled(lambda: database.value_as(SUPERUSER, f"{locks} and not granted"), 1)
    assert ended(running.result()) == (RefreshOutcome.SUCCESS, None)
    await dropping
    assert await ledger_rows(database) == [("SUCCESS", None, 1, True)]


async def test_fault_22_a_schema_renamed_before_commit_changes_no_other_view(database: Database) -> None:
    """The recheck went by before: what is committed is the view that was refreshed, wherever it is called from now."""
    await database.execute_as(SUPERUSER, f"create schema moving authorization {APP_OWNER}")
    view = await database.make_view(schema="moving")
    fault = Fault(statement="commit", loses="request", until=asyncio.Event())
    assert fault.until is not None
    async with Proxy(database.server.port, fault) as proxy:
        await database.execute_as(APP_OWNER, "update moving.mv_base set v = 1")
        running = asyncio.create_task(refresh(database, view, via=proxy))
        await fault.happened.wait()
        await database.execute_as(
            SUPERUSER,
            "alter schema moving rename to moved; create schema moving;"
            " create materialized view moving.mv as select 7 as id",
        )
        fault.until.set()
        assert ended(await running) == (RefreshOutcome.SUCCESS, None)
    assert await database.value_as(APP_OWNER, "select array_agg(v) from moved.mv") == [1, 1, 1]
    assert await database.value_as(SUPERUSER, "select array_agg(id) from moving.mv") == [7]
    assert await database.value_as(
        SUPERUSER, "select view_oid = 'moved.mv'::regclass from matview_ops.refresh_run where settles"
    )
