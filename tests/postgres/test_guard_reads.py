"""How a guard reads: nobody's functions run as its role, nobody is made to wait, and what it may not read it says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import ended, refresh, settled

from matview_operator.adapters.postgres.guard import watch
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import guard as guard_queries
from matview_operator.adapters.postgres.sql.lookup import LOOKUP
from matview_operator.adapters.postgres.sql.queries import DRIVER_ERRORS
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.guard import Rejection
from matview_operator.domain.inspection import ViewCheck
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.database import Database

    from matview_operator.adapters.postgres.wire.authentication import Row

VIEW = ViewName("app", "mv")
KEEP = Guard(keep_tenants="tenant_id")
EVIL = """
    grant usage on schema app to public;
    create sequence public.ran;
    create function public.evil_inside() returns int language plpgsql volatile as $$
      begin
        if current_user = 'mv_operator' then
          perform pg_advisory_lock(4242);  -- outlives every rollback
          perform nextval('public.ran');
        end if;
        return 1;
      exception when others then return 1;
      end $$;
    create function public.evil(int) returns int language plpgsql immutable as
      $$ begin return (select public.evil_inside()); end $$;
"""
NEW_VIEW = "create view {schema}.mv as select public.evil(1) as id, tenant_id from {former}.mv_base"
NEW_TABLE = """
    create table {schema}.mv as table {former}.mv_base;
    alter table {schema}.mv enable row level security; alter table {schema}.mv force row level security;
    create policy evil on {schema}.mv using (public.evil(1) = 1);
"""
SAME_SCHEMA = "alter materialized view app.mv rename to former;" + NEW_VIEW.format(schema="app", former="app")
"""While the name is not locked."""
OTHER_SCHEMA = "alter schema app rename to former; create schema app;"
"""At any time: no lock on a relation keeps its schema from being renamed."""


class Intruded(Session):
    """A session into which somebody breaks at the worst moment: after it was checked whose the name is."""

    intrusion: Callable[[], Awaitable[object]] | None = None

    async def row(self, statement: str, *arguments: Any) -> Row | None:
        row = await super().row(statement, *arguments)
        if statement == guard_queries.SAME_VIEW and self.intrusion is not None:
            intrusion, self.intrusion = self.intrusion, None
            await intrusion()
        return row


@asynccontextmanager
async def operating(database: Database) -> AsyncIterator[tuple[Intruded, Row]]:
    """A session of the operator in a transaction, in which the view app.mv was looked up."""
    session = await Intruded.open(parse_url(database.url()))
    try:
        await session.begin()
        await session.rows("select set_config('search_path', 'pg_catalog, pg_temp', true), pg_advisory_xact_lock(7, 7)")
        found = await session.row(LOOKUP, *VIEW_ARGUMENTS)
        assert found is not None
        yield session, found
    finally:
        await session.close()


VIEW_ARGUMENTS = (VIEW.schema, VIEW.name)


async def make(database: Database) -> None:
    await database.make_view(schema="app", rows=4)
    await database.execute_as(SUPERUSER, f"grant create on database {database.name} to {APP_OWNER}")
    await database.execute_as(APP_OWNER, EVIL)


async def nothing_ran_as_the_operator(database: Database) -> None:
    assert await database.value_as(SUPERUSER, "select is_called from public.ran") is False
    assert await database.value_as(SUPERUSER, "select count(*) from pg_locks where objid = 4242") == 0


async def test_the_trap_would_work(database: Database) -> None:
    """The tests after this one are worth nothing if it does not."""
    await make(database)
    await database.execute_as(APP_OWNER, SAME_SCHEMA)
    operator = await database.connect(MV_OPERATOR)
    await operator.fetch("select count(id) from app.mv")
    assert await database.value_as(SUPERUSER, "select is_called from public.ran") is True
    assert await database.value_as(SUPERUSER, "select count(*) from pg_locks where objid = 4242") == 1


async def test_t5_an_ordinary_view_under_the_name_is_not_read(database: Database) -> None:
    await make(database)
    async with operating(database) as (session, found):
        await database.execute_as(APP_OWNER, SAME_SCHEMA)
        with pytest.raises(Rejection) as caught:
            await watch(session, KEEP, view=VIEW, found=found, mode=RefreshMode.CONCURRENT)
        assert caught.value.reason is RefreshReason.VIEW_REPLACED
        await nothing_ran_as_the_operator(database)


async def test_t5_while_it_is_read_the_name_cannot_be_given_to_another(database: Database) -> None:
    await make(database)
    async with operating(database) as (session, found):
        refused: list[str] = []

        async def intrude() -> None:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await database.execute_as(APP_OWNER, "set lock_timeout = '50ms';" + SAME_SCHEMA)
            refused.append(SAME_SCHEMA)

        session.intrusion = intrude
        await watch(session, KEEP, view=VIEW, found=found, mode=RefreshMode.CONCURRENT)
        assert refused == [SAME_SCHEMA]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("trap", [NEW_VIEW, NEW_TABLE], ids=["view", "row policy"])
async def test_t5_nor_what_comes_with_another_schema_at_the_last_moment(
    database: Database, when: str, trap: str
) -> None:
    await make(database)
    intrusion = OTHER_SCHEMA + trap.format(schema="app", former="former")
    async with operating(database) as (session, found):

        async def intrude() -> None:
            await database.execute_as(APP_OWNER, intrusion)

        async def guarded() -> None:
            if when == "before":
                session.intrusion = intrude
            watching = await watch(session, KEEP, view=VIEW, found=found, mode=RefreshMode.CONCURRENT)
            assert watching is not None
            await session.utility("refresh materialized view concurrently app.mv")
            session.intrusion = intrude
            await watching.check()

        with pytest.raises(Rejection) as caught:
            await guarded()
        assert caught.value.reason is RefreshReason.GUARD_FAILED
        assert caught.value.sqlstate == ("55000" if trap == NEW_VIEW else "42501")
        await nothing_ran_as_the_operator(database)


async def test_t5_a_function_in_an_index_cannot_write(database: Database) -> None:
    await make(database)
    await database.execute_as(APP_OWNER, "create index on app.mv ((id + public.evil(1)))")
    result = await refresh(database, VIEW, guard=KEEP)
    assert result.outcome is RefreshOutcome.SUCCESS
    assert await database.value_as(SUPERUSER, "select is_called from public.ran") is False


@pytest.mark.parametrize("guard", [KEEP, Guard(max_row_loss_percent=1)], ids=["keepTenants", "maxRowLossPercent"])
async def test_reads_before_a_blocking_refresh_hold_no_lock_on_the_view(database: Database, guard: Guard) -> None:
    await database.make_view(schema="app")
    async with operating(database) as (session, found):
        assert await watch(session, guard, view=VIEW, found=found, mode=RefreshMode.BLOCKING) is not None
        held = await session.rows(
            "select locktype, mode from pg_locks where pid = pg_backend_pid()"
            " and (locktype = 'advisory' or relation = $1)",
            found.oid,
        )
        assert [tuple(row) for row in held] == [("advisory", "ExclusiveLock")]
        settings = await session.row(
            "select current_setting('transaction_read_only'), current_setting('row_security'),"
            " coalesce(current_setting('restrict_nonsystem_relation_kind', true), '')"
        )
        assert settings is not None
        assert tuple(settings) == ("off", "on", "")


async def test_so_that_two_sessions_do_not_deadlock(database: Database) -> None:
    await database.make_view(schema="app")
    await database.execute_as(SUPERUSER, f"alter database {database.name} set deadlock_timeout = '100ms'")
    async with operating(database) as (session, found):
        other = await database.connect(APP_OWNER)
        await other.execute("begin; select count(*) from app.mv")
        await watch(session, KEEP, view=VIEW, found=found, mode=RefreshMode.BLOCKING)
        refreshing = asyncio.create_task(session.utility("refresh materialized view app.mv"))
        waiting = "select exists (select from pg_locks where not granted and relation = $1)"
        await settled(lambda: database.value_as(SUPERUSER, waiting, found.oid), expected=True)
        # With a lock of ours on the view, one of the two would be ended with 40P01 here.
        await other.execute("refresh materialized view app.mv; commit")
        await refreshing


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_lock_that_the_guard_waits_for_is_no_rejection(database: Database) -> None:
    view = await database.make_view()
    other = await database.connect(APP_OWNER)
    await other.execute("begin; refresh materialized view mv")
    result = await refresh(database, view, guard=KEEP, lock_timeout_millis=100, concurrently=Concurrently.ALWAYS)
    assert ended(result) == (RefreshOutcome.FAILED, RefreshReason.LOCK_TIMEOUT)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_lost_connection_is_no_rejection(database: Database) -> None:
    await database.make_view(schema="app")
    async with operating(database) as (session, found):
        (row,) = await session.rows("select pg_backend_pid() as pid")

        async def kill() -> None:
            await database.value_as(SUPERUSER, "select pg_terminate_backend($1, 5000)", row.pid)

        session.intrusion = kill
        # What the driver says depends on whether it has read the server's last word by then.
        with pytest.raises((OSError, *DRIVER_ERRORS)) as caught:
            await watch(session, KEEP, view=VIEW, found=found, mode=RefreshMode.CONCURRENT)
        assert problem_of(caught.value, view_found=True).reason is RefreshReason.CONNECTION_LOST


async def preflight(database: Database, guard: Guard, *, role: str = MV_OPERATOR) -> object:
    check = ViewCheck(
        view=ViewName("public", "mv"), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED, guard=guard
    )
    target = parse_url(database.url(role))
    inspection = await Inspector().inspect(target=target, checks=[check], allow_superuser=False)
    return inspection.answers[check]


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_preflight_says_what_maintain_alone_lacks_for_a_guard(database: Database) -> None:
    await database.make_view()
    await database.allow_login("maintainer")
    await database.execute_as(APP_OWNER, "grant maintain on mv to maintainer")
    guard = Guard(min_rows=1)
    for guard in (Guard(min_rows=1), KEEP):
        problem = await preflight(database, guard, role="maintainer")
        assert isinstance(problem, Problem)
        assert problem.reason is RefreshReason.PERMISSION_DENIED
        assert problem.message.endswith("Run: GRANT SELECT ON public.mv TO maintainer;")
        result = await refresh(database, role="maintainer", guard=guard)
        assert ended(result) == (RefreshOutcome.REJECTED_BY_GUARD, RefreshReason.PERMISSION_DENIED)
        assert result.error_message == problem.message
    await database.execute_as(APP_OWNER, "grant select (id) on mv to maintainer")
    assert (await refresh(database, role="maintainer", guard=guard)).error_type is RefreshReason.PERMISSION_DENIED
    assert (await refresh(database, role="maintainer", guard=Guard(min_rows=1))).outcome is RefreshOutcome.SUCCESS
    await database.execute_as(APP_OWNER, "GRANT SELECT ON public.mv TO maintainer;")
    assert not isinstance(await preflight(database, KEEP, role="maintainer"), Problem)
    assert (await refresh(database, role="maintainer", guard=KEEP)).outcome is RefreshOutcome.SUCCESS


async def test_preflight_says_which_column_cannot_be_guarded(database: Database) -> None:
    await database.make_view()
    await database.execute_as(
        APP_OWNER,
        "alter table mv_base add j json; drop materialized view mv; create materialized view mv as table mv_base",
    )
    assert not isinstance(await preflight(database, KEEP), Problem)
    for column, said in (("tenant", "no column tenant"), ("j", "whose type is json")):
        problem = await preflight(database, Guard(keep_tenants=column))
        assert isinstance(problem, Problem)
        assert problem.reason is RefreshReason.GUARD_FAILED
        assert said in problem.message
