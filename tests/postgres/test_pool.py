"""Connections that are kept for the next run: one is enough, and nothing of a run is left in it for another."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Proxy
from tests.refreshes import TENANT, TENANT_B, GatedView, a_run, backends, ended, public, settled

from matview_operator import RefreshOutcome, refresh_all_for_tenant_async
from matview_operator.adapters.postgres import pool as pool_module
from matview_operator.adapters.postgres.pool import IDLE_PER_TARGET, Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.statements import name_of
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Analyze
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database

    from matview_operator.domain.result import RefreshResult
    from matview_operator.domain.server import ServerFacts
    from matview_operator.domain.view import ViewName

only_18 = pytest.mark.parametrize("databases", [18], indirect=True)
SECONDS = 60.0
"""Idle for longer than a test takes."""


class Runs:
    """Runs of one target over one pool."""

    def __init__(self, database: Database, pool: Pool, target: ConnectionTarget) -> None:
        self.database, self.pool, self.target = database, pool, target
        self._refresher = Refresher(pool)

    async def refresh(self, view: ViewName, *, target: ConnectionTarget | None = None, **fields: Any) -> RefreshResult:
        return await self._refresher.refresh(target=target or self.target, run=a_run(view, **fields))

    async def ahead(
        self, count: int, *, target: ConnectionTarget | None = None, tenant_setting: str | None = None
    ) -> None:
        await self._refresher.connect_ahead(target=target or self.target, tenant_setting=tenant_setting, count=count)

    async def backend(self, **fields: Any) -> object:
        """Refresh a view that shows which backend did it."""
        result = await self.refresh(public("who"), **fields)
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
        return await self.database.value_as(APP_OWNER, "select pid from who")


@asynccontextmanager
async def runs_over(database: Database, *, via: Any = None, **options: Any) -> AsyncIterator[Runs]:
    await database.execute_as(APP_OWNER, "create materialized view if not exists who as select pg_backend_pid() as pid")
    async with Pool(**{"idle_seconds": SECONDS, **options}) as pool:
        yield Runs(database, pool, parse_url(database.url(via=via)))


async def test_runs_one_after_another_use_one_connection(database: Database) -> None:
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        assert len({await runs.backend() for _ in range(4)}) == 1
        assert proxy.connections == 1
    assert await backends(database) == 0


async def test_runs_at_once_never_share_one_and_two_are_kept(bare_database: Database) -> None:
    views = [await GatedView.make(bare_database, f"gated_{number}") for number in range(4)]
    async with runs_over(bare_database) as runs:
        for each in views:
            await each.shut()
        at_work = [asyncio.create_task(runs.refresh(each.view)) for each in views]
        await settled(lambda: backends(bare_database), 4)
        for each in views:
            await each.open()
        assert {(await task).outcome for task in at_work} == {RefreshOutcome.SUCCESS}
        await settled(lambda: backends(bare_database), IDLE_PER_TARGET)


HOSTILE = """
create sequence public.numbers;
create function public.attempt(what text) returns text language plpgsql as $$
  begin
    execute what;
    return what || ': done';
  exception when others then
    return what || ': ' || sqlstate;
  end $$;
create materialized view hostile as
  select pg_backend_pid() as pid, public.attempt(what) as outcome, random() as drawn
  from unnest(array[
    $$select setseed(0.5)$$,
    $$select set_config('search_path', 'hostile', false), set_config('app.current_tenant_id', 'hostile', false),
      set_config('row_security', 'on', false), set_config('statement_timeout', '1ms', false),
      set_config('application_name', 'hostile', false), set_config('timezone', 'Asia/Tokyo', false),
      set_config('default_transaction_read_only', 'on', false)$$,
    $$set search_path = hostile$$,
    $$set role app_owner$$,
    $$set session authorization mv_operator$$,
    $$select set_config('role', 'app_owner', false)$$,
    $$create temp table pg_class (id int)$$,
    $$create temp view hidden as select 1$$,
    $$select pg_advisory_lock(1234567, 7654321)$$,
    $$select pg_advisory_lock_shared(1234567890123)$$,
    $$prepare hidden as select 1$$,
    $$declare hidden cursor with hold for select 1$$,
    $$listen hidden$$,
    $$select nextval('public.numbers')$$,
    $$load 'plpgsql'$$
  ]) as what
with no data;
"""
WITNESS = """
create function public.last_value_of_the_session() returns text language plpgsql as $$
  begin return lastval();
  -- The ledger's own sequence is not for everybody; who asks for it learns nothing.
  exception when insufficient_privilege then return '55000'; when others then return sqlstate; end $$;
create function public.current_value_of_the_session() returns text language plpgsql as $$
  begin return currval('public.numbers'); exception when others then return sqlstate; end $$;
create materialized view witness as select
  array(select name || '=' || setting from pg_settings
        where name not in ('statement_timeout', 'transaction_timeout') order by name) as settings,
  (select setting::int > 15000 from pg_settings where name = 'statement_timeout') as is_given_its_time,
  nullif(current_setting('app.current_tenant_id', true), '') as tenant,
  current_user as owner, session_user as role, current_schemas(true) as schemas, pg_my_temp_schema() as temporary,
  (select count(*) from pg_class where relpersistence = 't') as temporaries,
  array(select classid || ' ' || objid || ' ' || objsubid from pg_locks
        where locktype = 'advisory' and pid = pg_backend_pid() order by 1) as locks,
  (select count(*) from pg_prepared_statements where from_sql) as prepared, array(select name from pg_cursors
    where is_holdable) as cursors,
  array(select pg_listening_channels()) as channels, public.last_value_of_the_session() as last_value,
  public.current_value_of_the_session() as current_value;
create materialized view drawn as select pg_backend_pid() as pid, random() as number;
"""


async def witnessed(runs: Runs, **fields: Any) -> dict[str, object]:
    result = await runs.refresh(public("witness"), **fields)
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
    (row,) = await runs.database.fetch_as(APP_OWNER, "select * from witness")
    return dict(row)


async def test_a_hostile_view_leaves_nothing_for_the_next_run(database: Database) -> None:
    await database.execute_as(APP_OWNER, HOSTILE + WITNESS)
    async with runs_over(database, idle_seconds=0) as runs:
        fresh = await witnessed(runs)
    async with runs_over(database) as runs:
        backend = await runs.backend()
        draws = []
        for analyze in Analyze:
            await runs.refresh(public("hostile"), analyze=analyze)
            # What it did is done: it is what it is here for, and none of it may be seen below.
            outcomes = await database.fetch_as(APP_OWNER, "select pid, outcome from hostile")
            assert {row["pid"] for row in outcomes} == {backend}
            done = [row["outcome"] for row in outcomes if row["outcome"].endswith(": done")]
            assert [what.split("(")[0] for what in done] == [
                "select setseed",
                "select set_config",
                "set search_path = hostile: done",
                "select pg_advisory_lock",
                "select pg_advisory_lock_shared",
                "select nextval",
            ]
            assert await database.value_as(SUPERUSER, "select count(*) from pg_locks where locktype = 'advisory'") == 0
            await runs.refresh(public("drawn"))
            draws += await database.fetch_as(APP_OWNER, "select pid, number from drawn")
            assert await witnessed(runs) == fresh
        assert {row["pid"] for row in draws} == {backend}
        assert len({row["number"] for row in draws}) == 2


LEFTOVERS = {
    "lock": "select pg_advisory_lock(1234567, 7654321)",
    "shared lock": "select pg_advisory_lock_shared(1234567890123)",
    "sequence": "select nextval('public.numbers')",
}


LEAVING = """
create table source (n int);
create sequence public.numbers;
create function public.leave(n int) returns int language plpgsql immutable as $$
  begin perform * from ({what}) as done; return n; end $$;
create materialized view leaving as select pg_backend_pid() as pid, {column} as n from source;
insert into source values (1);
"""


@pytest.mark.parametrize("what", LEFTOVERS.values(), ids=LEFTOVERS)
@pytest.mark.parametrize("by", ["view", "view, no ledger", "index"])
@pytest.mark.parametrize("whose", [{}, TENANT], ids=["shared", "tenant"])
async def test_one_thing_that_a_view_leaves_is_taken_away(
    database: Database, what: str, by: str, whose: dict[str, Any]
) -> None:
    column = "n" if by == "index" else "public.leave(n)"
    await database.execute_as(APP_OWNER, LEAVING.format(what=what, column=column) + WITNESS)
    if by == "index":
        # While the view is empty; its function runs again at ANALYZE.
        await database.execute_as(APP_OWNER, "delete from source; refresh materialized view leaving")
        await database.execute_as(
            APP_OWNER, "create index on leaving ((public.leave(n))); insert into source values (1)"
        )
    if by == "view, no ledger":
        await database.execute_as(SUPERUSER, "drop schema matview_ops cascade")
    async with runs_over(database, idle_seconds=0) as runs:
        fresh = await witnessed(runs, **whose)
    for analyze in Analyze:
        # A session that was reset once is reset after each run from then on, so each way has one of its own.
        async with runs_over(database) as runs:
            backend = await runs.backend(**whose)
            result = await runs.refresh(public("leaving"), analyze=analyze, concurrently=Concurrently.NEVER, **whose)
            assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
            assert await database.value_as(APP_OWNER, "select max(pid) from leaving") == backend
            assert await witnessed(runs, **whose) == fresh


@pytest.mark.parametrize("what", LEFTOVERS.values(), ids=LEFTOVERS)
async def test_what_a_try_has_left_that_was_rolled_back_is_not_forgotten(database: Database, what: str) -> None:
    await database.execute_as(APP_OWNER, LEAVING.format(what=what, column="public.leave(n)"))
    session = await Session.open(parse_url(database.url()))
    await session.begin()
    await session.rows(queries.PATH)
    await session.utility("refresh materialized view public.leaving")
    await session.rollback()
    assert session.needs_reset
    await session.begin()
    await session.rows(queries.PATH)
    if what == LEFTOVERS["sequence"]:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await session.rows("select pg_catalog.lastval()")
    await session.close()


@only_18
async def test_a_hostile_view_leaves_nothing_for_the_next_run_through_a_transaction_pooler(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    # But for locks and values of the session's sequences, which are the pooler's session's: a connection for each run
    # would find them there as well.
    of_the_pooler = {"locks", "last_value", "current_value"}
    await database.execute_as(APP_OWNER, HOSTILE + WITNESS)
    bouncer = pgbouncer(database, pool_size=1)
    async with runs_over(database, idle_seconds=0, via=bouncer) as runs:
        fresh = await witnessed(runs)
    async with runs_over(database, via=bouncer) as runs:
        for _ in range(2):
            assert (await runs.refresh(public("hostile"))).outcome is RefreshOutcome.SUCCESS
            found = await witnessed(runs)
            assert {name for name in found if found[name] != fresh[name]} <= of_the_pooler
    lines = [line for line in database.server.log_text().splitlines() if f"@{database.name} " in line]
    assert any("refresh materialized view" in line for line in lines)
    # It would take from the pooler's other clients what they have prepared there.
    assert not any("discard all" in line for line in lines)


KEPT = """
create materialized view kept as select pg_backend_pid() as pid,
  (select count(*) from pg_prepared_statements where name like 'matview_%') as statements;
create unique index on kept (pid);
"""


async def kept_statements(runs: Runs, **fields: Any) -> int:
    result = await runs.refresh(public("kept"), **fields)
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
    (row,) = await runs.database.fetch_as(APP_OWNER, "select statements from kept")
    statements: int = row["statements"]
    return statements


async def test_the_server_keeps_our_statements_until_others_code_could_change_them(database: Database) -> None:
    await database.execute_as(APP_OWNER, KEPT)
    async with runs_over(database) as runs:
        first, *later = [await kept_statements(runs) for _ in range(4)]
        assert first > 3
        assert {*later} == {first + 1}  # what discards the values of sequences
        # A guard's reads may run code of the owner's, as our role: it could put its own statement under our names.
        await kept_statements(runs, guard=Guard(min_rows=1))
        assert await kept_statements(runs) == 0


@only_18
async def test_a_pooler_keeps_no_statements_for_us(database: Database, pgbouncer: Callable[..., PgBouncer]) -> None:
    await database.execute_as(APP_OWNER, KEPT)
    async with runs_over(database, via=pgbouncer(database, pool_size=1)) as runs:
        assert [await kept_statements(runs) for _ in range(2)] == [0, 0]


@only_18
async def test_a_pooler_that_passes_for_the_server_itself_fails_no_run(
    database: Database, pgbouncer: Callable[..., PgBouncer], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_facts = Session.read_facts

    async def fooled(session: Session) -> ServerFacts:
        facts = await read_facts(session)
        session.is_direct = True
        return facts

    monkeypatch.setattr(Session, "read_facts", fooled)
    await database.execute_as(APP_OWNER, KEPT)
    bouncer = pgbouncer(database, pool_size=1)
    async with runs_over(database, via=bouncer) as runs:
        await kept_statements(runs)
        assert await kept_statements(runs) > 3
        # Somebody else gets the session in between, and leaves of our statements the first only.
        other = await asyncpg.connect(database.url(via=bouncer), ssl=False, statement_cache_size=0)
        await other.execute("deallocate all")
        prepared = await other.prepare(queries.BEGIN, name=name_of(queries.BEGIN))
        await other.execute("select")  # else the pooler would wait for the end of what the driver asks
        assert await kept_statements(runs) == 0
        del prepared
        await other.close()


async def test_a_tenants_setting_is_never_seen_by_a_run_that_makes_none(database: Database) -> None:
    # Not even as '', which is what a setting is once it has been made and taken back: not every view takes it for null.
    await database.execute_as(
        APP_OWNER,
        "create materialized view seen as"
        " select pg_backend_pid() as pid, current_setting('app.current_tenant_id', true) as tenant",
    )

    async def seen(runs: Runs, **fields: Any) -> tuple[object, object]:
        result = await runs.refresh(public("seen"), **fields)
        assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
        (row,) = await database.fetch_as(APP_OWNER, "select pid, tenant from seen")
        return row["pid"], row["tenant"]

    async with runs_over(database) as runs:
        a, tenant_a = await seen(runs, **TENANT)
        nobody, none = await seen(runs)
        await database.execute_as(SUPERUSER, "delete from matview_ops.refresh_run")  # else this view would be shared
        b, tenant_b = await seen(runs, **TENANT | {"tenant_id": TENANT_B})
        await database.execute_as(SUPERUSER, "delete from matview_ops.refresh_run")
        other, tenant_a_again = await seen(runs, **TENANT, tenant_setting="shop.tenant")
    assert (tenant_a, none, tenant_b, tenant_a_again) == (TENANT["tenant_id"], None, TENANT_B, None)
    assert a == b
    assert len({a, nobody, other}) == 3


async def test_a_run_that_did_not_end_well_closes_its_connection(bare_database: Database) -> None:
    gated = await GatedView.make(bare_database)
    await bare_database.execute_as(
        APP_OWNER,
        """
        create table zero (n int);
        insert into zero values (1);
        create materialized view divided as select 1 / n as n from zero;
        update zero set n = 0;
        """,
    )
    async with runs_over(bare_database) as runs:
        seen = {await runs.backend()}
        assert ended(await runs.refresh(public("divided"))) == (RefreshOutcome.FAILED, RefreshReason.VIEW_QUERY_FAILED)
        seen.add(await runs.backend())
        await gated.shut()
        late = await runs.refresh(gated.view, timeout_seconds=0.5)
        assert ended(late) == (RefreshOutcome.FAILED, RefreshReason.TIMEOUT)
        seen.add(await runs.backend())
        cancelled = asyncio.create_task(runs.refresh(gated.view))
        await gated.reached()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        seen.add(await runs.backend())
        assert len(seen) == 4
        await settled(lambda: backends(bare_database), 1)


@only_18
async def test_a_run_that_was_skipped_keeps_its_connection(database: Database) -> None:
    view = await database.make_view()
    async with runs_over(database) as runs:
        backend = await runs.backend()
        keys = a_run(view).lock_keys
        await database.execute_as(APP_OWNER, "begin")
        await database.fetch_as(APP_OWNER, "select pg_advisory_xact_lock($1, $2)", keys.view_key, keys.tenant_key)
        assert (await runs.refresh(view)).outcome is RefreshOutcome.SKIPPED_LOCK_HELD
        await database.execute_as(APP_OWNER, "rollback")
        assert await runs.backend() == backend


@only_18
async def test_t3_a_rotated_secret_drops_its_own_idle_connections_at_once(database: Database) -> None:
    gated = await GatedView.make(database)
    async with runs_over(database) as runs:
        before = replace(runs.target, owner="shop/analytics")
        rotated = replace(before, host="localhost")
        # Equal in all but the owner: another namespace's, though it names the same role and password.
        stranger = replace(before, owner="other/analytics")
        idle = await runs.backend(target=before)
        of_stranger = await runs.backend(target=stranger)
        assert of_stranger != idle
        newer = await runs.backend(target=rotated)
        await settled(lambda: _alive(database, idle), False)
        assert await runs.backend(target=rotated) == newer
        # And back, while a run is at work: it ends, and its connection with it.
        await gated.shut()
        at_work = asyncio.create_task(runs.refresh(gated.view, target=rotated))
        assert await gated.reached() == newer
        await runs.backend(target=before)
        await gated.open()
        assert (await at_work).outcome is RefreshOutcome.SUCCESS
        await settled(lambda: _alive(database, newer), False)
        assert await runs.backend(target=stranger) == of_stranger


async def _alive(database: Database, pid: object) -> bool:
    return bool(await database.value_as(SUPERUSER, "select count(*) from pg_stat_activity where pid = $1", pid))


async def test_an_idle_connection_that_the_server_ended_fails_no_run(database: Database) -> None:
    async with runs_over(database) as runs:
        first = await runs.backend()
        await database.value_as(SUPERUSER, "select pg_terminate_backend($1, 5000)", first)
        assert await runs.backend() != first


@only_18
@pytest.mark.parametrize("silent", [True, False], ids=["silence", "reset"])
async def test_an_idle_connection_that_a_firewall_forgot_fails_no_run(database: Database, *, silent: bool) -> None:
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        first = await runs.backend()
        proxy.add(Fault(statement="begin", loses="request", silent=silent))
        async with asyncio.timeout(15):
            assert await runs.backend(timeout_seconds=10) != first
        if not silent:
            await settled(lambda: backends(database), 1)


@only_18
async def test_a_lost_server_drops_all_its_idle_connections_at_once(database: Database) -> None:
    gated = await GatedView.make(database)
    async with runs_over(database) as runs:
        await gated.shut()
        at_work = [asyncio.create_task(runs.refresh(view)) for view in (gated.view, public("who"))]
        victim = await gated.reached()
        await at_work[1]
        await settled(lambda: backends(database), 2)
        await database.value_as(SUPERUSER, "select pg_terminate_backend($1, 5000)", victim)
        assert (await at_work[0]).error_type is RefreshReason.CONNECTION_LOST
        await settled(lambda: backends(database), 0)


@only_18
async def test_a_connection_waits_for_seconds_and_lives_a_minute(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with runs_over(database, idle_seconds=0.2) as runs:
        await runs.backend()
        await settled(lambda: backends(database), 0)
    async with runs_over(database) as runs:
        first = await runs.backend()
        monkeypatch.setattr(pool_module, "AGE_SECONDS", 0)
        assert await runs.backend() != first
        await settled(lambda: backends(database), 0)


@only_18
async def test_idle_connections_are_bounded_in_all(database: Database) -> None:
    async with runs_over(database, idle_in_all=3) as runs:
        pids = [await runs.backend(target=replace(runs.target, owner=f"tenant-{number}/db")) for number in range(5)]
        await settled(lambda: backends(database), 3)
        assert await runs.backend(target=replace(runs.target, owner="tenant-4/db")) == pids[4]


async def test_a_run_uses_a_connection_that_was_opened_ahead_and_no_more_are_than_there_is_use_for(
    database: Database,
) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        await runs.ahead(2)
        assert await backends(database) == 2
        at_work = asyncio.create_task(runs.refresh(gated.view))
        await gated.reached()
        await runs.ahead(3)
        await runs.ahead(1)
        assert await backends(database) == 3
        await runs.ahead(IDLE_PER_TARGET + 5)
        assert await backends(database) == IDLE_PER_TARGET
        await gated.open()
        assert (await at_work).outcome is RefreshOutcome.SUCCESS
        assert await runs.backend()
        assert proxy.connections == IDLE_PER_TARGET


@only_18
async def test_connections_opened_ahead_are_bounded_and_kept_like_all_others(database: Database) -> None:
    async with Proxy(database.server.port) as proxy:
        async with runs_over(database, via=proxy, idle_in_all=3) as runs:
            await runs.ahead(2, target=replace(runs.target, owner="other/db"))
            await runs.ahead(4)
            assert (await backends(database), proxy.connections) == (3, 3)
        await settled(lambda: backends(database), 0)
        await runs.ahead(2)
        assert proxy.connections == 3, "the pool is closed"
        async with runs_over(database, via=proxy, idle_seconds=0) as runs:
            await runs.ahead(2)
            assert proxy.connections == 3, "nothing is kept"
    async with runs_over(database, idle_seconds=0.2) as runs:
        await runs.ahead(2)
        await settled(lambda: backends(database), 0)


@only_18
async def test_what_will_be_too_old_for_the_run_is_replaced_ahead(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        await runs.backend()
        await runs.ahead(1)
        assert proxy.connections == 1
        monkeypatch.setattr(pool_module, "AGE_SECONDS", pool_module.IDLE_SECONDS)
        await runs.ahead(1)
        assert proxy.connections == 2


@only_18
async def test_a_connection_that_cannot_be_opened_ahead_says_why(database: Database) -> None:
    async with runs_over(database) as runs:
        with pytest.raises(Problem) as caught:
            await runs.ahead(2, target=replace(runs.target, user="nobody"))
        assert caught.value.reason is RefreshReason.AUTHENTICATION_FAILED


@only_18
async def test_a_tenants_run_uses_the_connection_that_was_opened_ahead_for_its_setting(database: Database) -> None:
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        await runs.ahead(1, tenant_setting="app.current_tenant_id")
        await runs.backend(**TENANT)
        assert proxy.connections == 1
        await runs.ahead(1)
        assert proxy.connections == 2
        await runs.backend()
        assert proxy.connections == 2


@only_18
async def test_closing_the_pool_closes_what_is_taken_back_later(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    async with runs_over(database) as runs:
        await runs.backend()
        at_work = asyncio.create_task(runs.refresh(gated.view))
        await gated.reached()
    await gated.open()
    assert (await at_work).outcome is RefreshOutcome.SUCCESS
    assert await backends(database) == 0


@only_18
async def test_a_kept_connection_notices_that_the_ledger_was_dropped(database: Database) -> None:
    async with runs_over(database) as runs:
        first = await runs.backend()
        await database.execute_as(SUPERUSER, "drop schema matview_ops cascade")
        assert await runs.backend() == first


@only_18
async def test_a_kept_connection_measures_the_clock_again_when_it_was_set(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await Session.open(parse_url(database.url()))
    measured = await session.clock_offset()
    asked: list[str] = []
    row = session.row

    async def counted(statement: str, *arguments: Any) -> Any:
        asked.append(statement)
        return await row(statement, *arguments)

    monkeypatch.setattr(session, "row", counted)
    assert await session.clock_offset() == measured
    assert asked == []
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    await session.clock_offset()
    assert len(asked) == 3
    await session.close()


@only_18
async def test_the_functions_for_all_views_use_one_connection_for_them(database: Database) -> None:
    for number in range(3):
        await database.make_view(f"mv_{number}")
    async with Proxy(database.server.port) as proxy:
        results = await refresh_all_for_tenant_async(None, database_url=database.url(via=proxy))
        assert {result.outcome for result in results} == {RefreshOutcome.SUCCESS}
        assert len(results) == 3
        assert proxy.connections == 2  # one that lists the views
    await settled(lambda: backends(database, MV_OPERATOR), 0)


@only_18
async def test_a_consistent_group_leaves_nothing_for_the_next_run(database: Database) -> None:
    await database.execute_as(APP_OWNER, WITNESS)
    views = [await database.make_view(f"mv_{number}") for number in range(2)]
    async with runs_over(database, idle_seconds=0) as runs:
        fresh = await witnessed(runs)
    async with runs_over(database) as runs:
        first = await runs.backend()
        results = await Refresher(runs.pool).refresh_group(
            target=runs.target, runs=[a_run(view) for view in views], timeout_seconds=20
        )
        assert [result.outcome for result in results] == [RefreshOutcome.SUCCESS] * 2
        assert await runs.backend() == first
        # REFRESH CONCURRENTLY makes a temporary table and drops it; its schema stays, empty, as long as the session.
        own = {"schemas", "temporary"}
        found = await witnessed(runs)
        assert {name: found[name] for name in found if name not in own} == {
            name: fresh[name] for name in fresh if name not in own
        }
