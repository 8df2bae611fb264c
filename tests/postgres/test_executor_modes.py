"""With CONCURRENTLY and without: what each tells, and that readers wait as little as can be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.refreshes import refresh

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.view import Concurrently

if TYPE_CHECKING:
    from tests.database import Database


async def test_concurrent_mode_tells_the_exact_difference(database: Database) -> None:
    view = await database.make_view(rows=100)
    await database.execute_as(
        APP_OWNER,
        "delete from mv_base where id <= 10; update mv_base set v = 0 where id > 95; "
        "insert into mv_base values (101, 'a', 1), (102, 'b', 2)",
    )
    before = datetime.now(UTC)
    result = await refresh(database, view)
    assert (result.outcome, result.mode, result.error_type) == (RefreshOutcome.SUCCESS, RefreshMode.CONCURRENT, None)
    # A changed row is one deletion and one insertion.
    assert (result.rows_inserted, result.rows_deleted) == (7, 15)
    assert result.data_as_of == result.verified_at
    assert result.data_as_of is not None
    assert before <= result.data_as_of <= datetime.now(UTC)
    assert result.size_bytes is not None
    assert result.size_bytes > 0
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 92


@pytest.mark.parametrize("case", ["never", "no index", "unpopulated"])
async def test_blocking_mode_where_it_is_wished_or_the_only_one(database: Database, case: str) -> None:
    view = await database.make_view(rows=100, unique=case != "no index")
    if case == "unpopulated":
        await database.execute_as(APP_OWNER, "refresh materialized view mv with no data")
    result = await refresh(
        database, view, concurrently=Concurrently.NEVER if case == "never" else Concurrently.IF_POSSIBLE
    )
    reasons = {
        "never": None,
        "no index": RefreshReason.NO_UNIQUE_INDEX,
        "unpopulated": RefreshReason.FIRST_POPULATE,
    }
    assert (result.outcome, result.mode) == (RefreshOutcome.SUCCESS, RefreshMode.BLOCKING)
    assert result.error_type is reasons[case]
    assert (result.rows_inserted, result.rows_deleted, result.estimated_rows) == (100, None, 100)
    # ANALYZE came after it: the planner knows the new rows.
    assert await database.value_as(APP_OWNER, "select reltuples from pg_class where relname = 'mv'") == 100
    assert await database.value_as(APP_OWNER, "select count(*) from pg_stats where tablename = 'mv'") == 3


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_maintain_alone_is_enough_on_17_and_later(database: Database) -> None:
    view = await database.make_view()
    await database.allow_login("maintainer")
    await database.execute_as(APP_OWNER, "grant maintain on mv to maintainer")
    assert (await refresh(database, view, role="maintainer")).outcome is RefreshOutcome.SUCCESS


async def test_without_track_counts_there_is_no_difference_to_tell(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(SUPERUSER, f"alter database {database.name} set track_counts = off")
    result = await refresh(database, view)
    assert (result.outcome, result.rows_inserted, result.rows_deleted) == (RefreshOutcome.SUCCESS, None, None)
