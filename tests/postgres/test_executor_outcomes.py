"""What goes wrong is told by a reason of the closed set with what to do, and the old rows stay."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from sandbox.pgtemplate import SUPERUSER
from sandbox.processes import free_port
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import GatedView, a_run, failure, public, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from tests.database import Database

    from matview_operator import RefreshResult
    from matview_operator.domain.connection import ConnectionTarget

ALWAYS = Concurrently.ALWAYS
NEVER = Concurrently.NEVER
CANARY = "r0w-of-another-tenant"


# What the catalogue says before anything is tried.


async def test_a_missing_view(database: Database) -> None:
    failure(await refresh(database, public("nowhere")), Reason.VIEW_NOT_FOUND, "nowhere", database.name, "upper case")
    failure(await refresh(database, ViewName("no_schema", "mv")), Reason.VIEW_NOT_FOUND, "no_schema.mv")


@pytest.mark.parametrize(
    ("kind", "ddl", "said"),
    [
        ("table", "create table x (id int)", "a table"),
        ("partitioned table", "create table x (id int) partition by range (id)", "a partitioned table"),
        ("view", "create view x as select 1 as id", "an ordinary view"),
        ("index", "create table y (id int); create index x on y (id)", "an index"),
        ("sequence", "create sequence x", "another kind of relation"),
    ],
)
async def test_what_is_not_a_materialized_view(database: Database, kind: str, ddl: str, said: str) -> None:
    del kind
    await database.execute_as(APP_OWNER, ddl)
    failure(await refresh(database, public("x")), Reason.NOT_MATERIALIZED_VIEW, said)


async def test_a_view_of_somebody_else_names_the_grant_that_mends_it(database: Database) -> None:
    view = await database.make_view()
    await database.allow_login("plain")
    result = await refresh(database, view, role="plain")
    failure(result, Reason.PERMISSION_DENIED, "plain", "public.mv", APP_OWNER)
    assert result.error_message
    grant = result.error_message.partition("Run: ")[2]
    assert grant.startswith("GRANT MAINTAIN ON public.mv" if database.version >= 17 else f"GRANT {APP_OWNER} TO")
    await database.execute_as(SUPERUSER, grant)
    try:
        assert (await refresh(database, view, role="plain")).outcome is RefreshOutcome.SUCCESS
    finally:
        await database.execute_as(SUPERUSER, f"revoke {APP_OWNER} from plain")


async def test_no_temp_privilege_for_the_owner_names_the_grant_that_mends_it(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(SUPERUSER, f"revoke temp on database {database.name} from public")
    result = await refresh(database, view)
    failure(result, Reason.PERMISSION_DENIED, "TEMP")
    assert result.error_message
    await database.execute_as(SUPERUSER, result.error_message.partition("Run: ")[2])
    assert (await refresh(database, view)).mode is RefreshMode.CONCURRENT


async def test_a_superuser_is_refused_unless_allowed(database: Database) -> None:
    view = await database.make_view()
    failure(await refresh(database, view, role=SUPERUSER), Reason.SUPERUSER_REFUSED, SUPERUSER, "allowSuperuser")
    assert (await refresh(database, view, role=SUPERUSER, allow_superuser=True)).outcome is RefreshOutcome.SUCCESS


# What REFRESH says.


async def test_duplicate_rows_do_not_show_the_rows(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        f"""
        create table source (id int, name text);
        insert into source values (1, 'one');
        create materialized view mv as select * from source;
        create unique index on mv (id);
        insert into source values (2, '{CANARY}'), (2, '{CANARY}');
        """,
    )
    for concurrently in (ALWAYS, NEVER):
        result = await refresh(database, public("mv"), concurrently=concurrently)
        failure(result, Reason.DUPLICATE_ROWS, "SQLSTATE 2")
        assert CANARY not in result.model_dump_json()
    rows = await database.fetch_as(SUPERUSER, "select reason, sqlstate, message from matview_ops.refresh_run")
    assert [row["reason"] for row in rows] == ["DuplicateRows"] * 2
    assert CANARY not in str(rows)
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 1


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("100 / (v - 10)", Reason.VIEW_QUERY_FAILED),
        ("(tenant_id || v)::int", Reason.VIEW_QUERY_FAILED),
        ("public.raises(v)", Reason.VIEW_QUERY_FAILED),
        ("public.unsafe(v)", Reason.UNSAFE_SEARCH_PATH),
        ("public.unsafe_call(v)", Reason.UNSAFE_SEARCH_PATH),
        ("public.unsafe_type(v)", Reason.UNSAFE_SEARCH_PATH),
    ],
)
async def test_an_error_inside_the_views_query(database: Database, expression: str, reason: Reason) -> None:
    await database.execute_as(
        APP_OWNER,
        f"""
        create table source (id int, tenant_id text, v int);
        create function raises(v int) returns int language plpgsql as
          $$ begin raise exception 'no, said the function'; end $$;
        create function unsafe(v int) returns int language plpgsql as
          $$ begin return (select count(*) from source); end $$;
        create function unsafe_call(v int) returns int language plpgsql as $$ begin return raises(v); end $$;
        create domain own as int;
        create function unsafe_type(v int) returns int language plpgsql as $$ begin return v::own; end $$;
        create materialized view mv as select id, {expression} as x from source;
        create unique index on mv (id);
        insert into source values (1, 'a', 10);
        """,
    )
    failure(await refresh(database, public("mv")), reason, "SQLSTATE")
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 0


@pytest.mark.parametrize(
    "expression",
    ["(name || v)::int", "public.raises(name)", "public.raises_as_resources(name)"],
    ids=["cast", "raise", "raise under a state of ours"],
)
async def test_t9_rows_in_an_error_of_the_views_query_are_not_repeated(database: Database, expression: str) -> None:
    await database.execute_as(
        APP_OWNER,
        f"""
        create table source (id int, name text, v int);
        create function raises(name text) returns int language plpgsql as
          $$ begin raise exception 'no %', name using detail = name, hint = name; end $$;
        create function raises_as_resources(name text) returns int language plpgsql as
          $$ begin raise exception 'no %', name using errcode = '53400'; end $$;
        create materialized view mv as select id, {expression} as x from source;
        create unique index on mv (id);
        insert into source values (1, '{CANARY}', 10);
        """,
    )
    result = await refresh(database, public("mv"))
    assert result.outcome is RefreshOutcome.FAILED
    assert CANARY not in result.model_dump_json()
    assert CANARY not in str(await database.fetch_as(SUPERUSER, "select * from matview_ops.refresh_run"))
    verbose = Refresher(verbose_errors=True)
    told = await verbose.refresh(target=parse_url(database.url()), run=a_run(public("mv")))
    assert told.error_message
    assert CANARY in told.error_message
    assert "DETAIL" not in told.error_message


async def test_cancelled_by_somebody_is_not_a_timeout(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view))
    pid = await gated.reached()
    await database.execute_as(SUPERUSER, f"select pg_cancel_backend({pid})")
    failure(await task, Reason.CANCELLED)


async def test_a_run_that_takes_too_long_is_a_timeout(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    failure(await refresh(database, gated.view, timeout_seconds=0.5), Reason.TIMEOUT, "0.5 s", "old rows stay")
    (row,) = await database.fetch_as(SUPERUSER, "select outcome, reason from matview_ops.refresh_run")
    assert tuple(row) == ("FAILED", "Timeout")


async def test_a_terminated_backend_is_an_interruption(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view))
    pid = await gated.reached()
    await database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid})")
    result = await task
    assert (result.outcome, result.error_type) == (RefreshOutcome.INTERRUPTED, Reason.CONNECTION_LOST)


@pytest.mark.parametrize("concurrently", [ALWAYS, NEVER])
async def test_a_lock_that_is_not_given_up_is_a_lock_timeout(database: Database, concurrently: Concurrently) -> None:
    view = await database.make_view()
    other = await database.connect(APP_OWNER)
    await other.execute("begin; refresh materialized view concurrently mv")
    failure(await refresh(database, view, concurrently=concurrently, lock_timeout_millis=50), Reason.LOCK_TIMEOUT)


async def test_a_limit_of_the_server_is_its_resources(database: Database) -> None:
    view = await database.make_view(rows=20_000)
    await database.execute_as(
        SUPERUSER,
        f"""
        alter database {database.name} set temp_file_limit = '64kB';
        alter database {database.name} set work_mem = '64kB';
        """,
    )
    failure(await refresh(database, view), Reason.SERVER_RESOURCES, "53400")


async def test_a_read_only_default_of_the_database_is_overridden(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(SUPERUSER, f"alter database {database.name} set default_transaction_read_only = on")
    await database.execute_as(
        SUPERUSER, f"alter database {database.name} set default_transaction_isolation = 'serializable'"
    )
    assert (await refresh(database, view)).outcome is RefreshOutcome.SUCCESS


# What the connection says.


async def test_a_server_that_does_not_let_us_in(database: Database) -> None:
    view = await database.make_view()
    target = parse_url(database.url())

    async def attempt(**changes: object) -> RefreshResult:
        other: ConnectionTarget = replace(target, **changes)  # type: ignore[arg-type]
        return await Refresher().refresh(target=other, run=a_run(view))

    failure(await attempt(password=SecretStr("wrong")), Reason.AUTHENTICATION_FAILED, MV_OPERATOR)
    failure(await attempt(database="nowhere"), Reason.AUTHENTICATION_FAILED, "nowhere")
    failure(await attempt(port=free_port()), Reason.CONNECTION_FAILED)
    await database.execute_as(SUPERUSER, f"alter database {database.name} connection limit 0")
    failure(await attempt(), Reason.SERVER_BUSY)
    await database.execute_as(SUPERUSER, f"revoke connect on database {database.name} from public")
    failure(await attempt(), Reason.PERMISSION_DENIED)


async def test_neither_environment_nor_files_of_the_home_are_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = await database.make_view()
    target = parse_url(database.url())
    monkeypatch.setenv("PGPASSWORD", database.passwords[MV_OPERATOR])
    monkeypatch.setenv("PGSSLNEGOTIATION", "direct")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=evil")
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    assert (await Refresher().refresh(target=target, run=a_run(view))).outcome is RefreshOutcome.SUCCESS
    without = replace(target, password=SecretStr(""))
    failure(await Refresher().refresh(target=without, run=a_run(view)), Reason.AUTHENTICATION_FAILED)
