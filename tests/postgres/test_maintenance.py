"""ANALYZE after a blocking refresh: of that view alone, after COMMIT, and never a reason to fail. Never VACUUM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.refreshes import refresh
from tests.statements import StatementLog

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.policy import Analyze
from matview_operator.api.view import Concurrently

if TYPE_CHECKING:
    import pytest
    from tests.database import Database

NEVER = Concurrently.NEVER


async def analyzed(database: Database) -> list[str]:
    """The relations of whose columns the planner knows something."""
    rows = await database.fetch_as(
        SUPERUSER, "select distinct tablename from pg_stats where schemaname = 'public' order by 1"
    )
    return [row["tablename"] for row in rows]


async def test_a_view_is_analyzed_after_a_blocking_refresh_and_nothing_else_is(database: Database) -> None:
    view = await database.make_view()
    assert (await refresh(database, view, concurrently=NEVER)).outcome is RefreshOutcome.SUCCESS
    assert await analyzed(database) == ["mv"]


async def test_a_view_is_not_analyzed_where_the_policy_says_never_or_the_refresh_let_readers_read(
    database: Database,
) -> None:
    view = await database.make_view()
    assert (await refresh(database, view)).mode is RefreshMode.CONCURRENT
    assert (await refresh(database, view, concurrently=NEVER, analyze=Analyze.NEVER)).mode is RefreshMode.BLOCKING
    assert await analyzed(database) == []


async def test_analyze_that_fails_does_not_fail_the_refresh(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    view = await database.make_view()
    # ANALYZE and REFRESH run this function of the index, and only REFRESH says that it is the worker.
    await database.execute_as(
        APP_OWNER,
        """
        create function moody(n int) returns int language plpgsql immutable as
          $$ begin
            if current_setting('app.execution_context', true) is distinct from 'worker' then raise 'moody'; end if;
            return n;
          end $$;
        set app.execution_context = 'worker';
        create index on mv (public.moody(id));
        """,
    )
    result = await refresh(database, view, concurrently=NEVER)
    assert (result.outcome, result.error_type) == (RefreshOutcome.SUCCESS, None)
    assert "ANALYZE failed: " in caplog.text
    assert "moody" not in caplog.text
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run where settles") == 1


async def test_nothing_is_ever_vacuumed(database: Database) -> None:
    view = await database.make_view()
    log = StatementLog(database)
    for concurrently in Concurrently:
        assert (await refresh(database, view, concurrently=concurrently)).outcome is RefreshOutcome.SUCCESS
    said = [statement.text.lower() for statement in log.read()]
    assert "analyze public.mv" in said
    assert not any(text.lstrip().startswith("vacuum") for text in said)
