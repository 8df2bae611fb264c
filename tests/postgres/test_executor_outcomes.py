"""What goes wrong is told by a reason of the closed set with what to do, and the old rows stay."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandbox.pgtemplate import SUPERUSER
from sandbox.processes import free_port
from tests.database import APP_OWNER, MV_OPERATOR, OTHER_TENANT, RLS_BYPASS_OWNER, quoted
from tests.refreshes import TENANT_A, TENANT_B, GatedView, a_run, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres import queries
from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database

    from matview_operator import RefreshResult
    from matview_operator.domain.connection import ConnectionTarget

ALWAYS = Concurrently.ALWAYS
NEVER = Concurrently.NEVER
TENANT: dict[str, Any] = {"isolation": Isolation.TENANT, "tenant_id": TENANT_A}
CANARY = "r0w-of-another-tenant"


def public(name: str) -> ViewName:
    return ViewName("public", name)


def failure(result: RefreshResult, reason: Reason, *said: str) -> None:
    """Check that a run failed for a reason, and that its message says these things."""
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, reason), result.error_message
    assert result.error_message
    for text in said:
        assert text in result.error_message
    assert result.data_as_of is None
    assert result.verified_at is None


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


@pytest.mark.parametrize(
    "index",
    [
        "",
        "create index on mv (id)",
        "create unique index on mv (id) where id > 0",
        "create unique index on mv ((id + 1))",
    ],
    ids=["none", "not unique", "partial", "expression"],
)
async def test_always_needs_a_usable_unique_index(database: Database, index: str) -> None:
    view = await database.make_view(unique=False)
    if index:
        await database.execute_as(APP_OWNER, index)
    failure(await refresh(database, view, concurrently=ALWAYS), Reason.NO_UNIQUE_INDEX, "unique index", "IfPossible")
    assert (await refresh(database, view)).mode is RefreshMode.BLOCKING


async def test_always_needs_a_populated_view(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(APP_OWNER, "refresh materialized view mv with no data")
    failure(await refresh(database, view, concurrently=ALWAYS), Reason.NOT_POPULATED, "not populated")


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


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_pooler_that_does_not_let_us_in(database: Database, pgbouncer: Callable[..., PgBouncer]) -> None:
    view = await database.make_view()
    target = parse_url(database.url(via=pgbouncer(database)))
    wrong = replace(target, password=SecretStr("wrong"))
    failure(await Refresher().refresh(target=wrong, run=a_run(view)), Reason.CONNECT_REJECTED)


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


# No tenant loses rows.


async def protected_view(database: Database, *, owner: str = APP_OWNER) -> ViewName:
    """Make a view of a table whose rows only their tenant sees, its owner not excepted."""
    view = await database.make_view(rows=0, owner=owner)
    await database.execute_as(
        owner,
        f"""
        insert into mv_base values (1, '{TENANT_A}', 1), (2, '{TENANT_B}', 2);
        refresh materialized view mv;
        alter table mv_base enable row level security, force row level security;
        create policy own on mv_base using (tenant_id = current_setting('app.current_tenant_id', true));
        """,
    )
    return view


async def tenants_in(database: Database, view: str = "mv") -> list[str]:
    rows = await database.fetch_as(SUPERUSER, f"select tenant_id from {view} order by 1")
    return [row["tenant_id"] for row in rows]


@pytest.mark.parametrize("concurrently", [ALWAYS, NEVER])
async def test_shared_fails_closed_under_row_security_and_names_table_and_owner(
    database: Database, concurrently: Concurrently
) -> None:
    view = await protected_view(database)
    result = await refresh(database, view, concurrently=concurrently)
    failure(result, Reason.ROW_SECURITY_HAZARD, "mv_base", f"as {APP_OWNER} (FORCE)", "BYPASSRLS")
    assert await tenants_in(database) == [TENANT_A, TENANT_B]
    (row,) = await database.fetch_as(SUPERUSER, "select reason, sqlstate, message from matview_ops.refresh_run")
    assert (row["reason"], row["sqlstate"], row["message"]) == ("RowSecurityHazard", "42501", result.error_message)


async def test_shared_keeps_everybodys_rows_with_an_owner_whom_row_security_does_not_concern(
    database: Database,
) -> None:
    view = await protected_view(database, owner=RLS_BYPASS_OWNER)
    await database.execute_as(RLS_BYPASS_OWNER, f"insert into mv_base values (3, '{TENANT_A}', 3)")
    assert (await refresh(database, view, tenant_id=TENANT_A)).outcome is RefreshOutcome.SUCCESS
    assert await tenants_in(database) == [TENANT_A, TENANT_A, TENANT_B]


async def test_a_tenants_own_view_holds_that_tenants_rows(database: Database) -> None:
    view = await protected_view(database)
    assert (await refresh(database, view, **TENANT)).outcome is RefreshOutcome.SUCCESS
    assert await tenants_in(database) == [TENANT_A]


async def test_a_view_of_two_tenants_is_not_refreshed_for_one_after_the_other(database: Database) -> None:
    view = await protected_view(database)
    other = {**TENANT, "tenant_id": TENANT_B}
    assert (await refresh(database, view, **TENANT)).outcome is RefreshOutcome.SUCCESS
    failure(await refresh(database, view, **other), Reason.SHARED_VIEW, "isolation: Shared")
    assert await tenants_in(database) == [TENANT_A]
    assert (await refresh(database, view, **TENANT)).outcome is RefreshOutcome.SUCCESS
    await database.execute_as(
        SUPERUSER, "update matview_ops.refresh_run set data_as_of = data_as_of - interval '25 hours'"
    )
    assert (await refresh(database, view, **other)).outcome is RefreshOutcome.SUCCESS


async def test_a_shared_view_is_not_refreshed_for_one_tenant(database: Database) -> None:
    view = await protected_view(database, owner=RLS_BYPASS_OWNER)
    assert (await refresh(database, view)).outcome is RefreshOutcome.SUCCESS
    failure(await refresh(database, view, **TENANT), Reason.SHARED_VIEW)
    assert await tenants_in(database) == [TENANT_A, TENANT_B]


async def test_another_roles_runs_do_not_make_a_view_shared(database: Database) -> None:
    view = await protected_view(database)
    await upgrade(database.admin_url, grant_to=[APP_OWNER])
    assert (await refresh(database, view, role=APP_OWNER, **TENANT)).outcome is RefreshOutcome.SUCCESS
    other = {**TENANT, "tenant_id": TENANT_B}
    assert (await refresh(database, view, **other)).outcome is RefreshOutcome.SUCCESS


async def test_a_tenant_id_that_the_policy_cannot_cast(database: Database) -> None:
    view = await protected_view(database)
    await database.execute_as(
        APP_OWNER,
        "drop policy own on mv_base; create policy own on mv_base "
        "using (tenant_id::uuid = nullif(current_setting('app.current_tenant_id', true), '')::uuid)",
    )
    failure(await refresh(database, view, **{**TENANT, "tenant_id": "not a uuid"}), Reason.TENANT_SETTING_INVALID)
    assert await tenants_in(database) == [TENANT_A, TENANT_B]


async def test_a_stranger_can_neither_read_nor_refresh(database: Database) -> None:
    view = await database.make_view()
    failure(await refresh(database, view, role=OTHER_TENANT), Reason.PERMISSION_DENIED)


# Nothing but REFRESH of the resolved view.


async def test_another_view_under_the_name_is_not_refreshed_by_mistake(database: Database) -> None:
    gated = await GatedView.make(database)
    await database.execute_as(SUPERUSER, f"create schema moving authorization {APP_OWNER}")
    await database.execute_as(
        APP_OWNER, "alter materialized view gated set schema moving; insert into gated_plain_base values (9, 'a', 9)"
    )
    await gated.shut()
    task = asyncio.create_task(refresh(database, ViewName("moving", "gated")))
    await gated.reached()
    # A schema can be renamed while a view in it is refreshed; on 15 not while in blocking mode.
    await database.execute_as(
        SUPERUSER,
        f"""
        alter schema moving rename to moved;
        create schema moving authorization {APP_OWNER};
        create materialized view moving.gated as select 7 as id, 7 as v;
        create unique index on moving.gated (id);
        alter materialized view moving.gated owner to {APP_OWNER};
        """,
    )
    await gated.open()
    failure(await task, Reason.VIEW_REPLACED, "rolled back")
    assert await database.value_as(APP_OWNER, "select count(*) from moved.gated") == 3
    assert await database.value_as(APP_OWNER, "select array_agg(id) from moving.gated") == [7]


HOSTILE = [
    'quo"te',
    '"',
    "semi;colon",
    "x; drop table canary; --",
    'x"; drop table canary; --',
    "it's",
    "back\\slash",
    "UPPER",
    "Größe",
    "表",
    "🙂",
    "with space",
    " edges ",
    "line\nbreak",
    "dotted.name",
    "$1",
    "%s%I",
    "/* comment",
    "select",
    "concurrently",
    "n" * 63,
    "ü" * 31,
]


ODD_SCHEMA = "Odd; \"Schema'"


async def test_of_hostile_names_nothing_but_refresh_and_analyze_of_that_name_is_run(database: Database) -> None:
    known = {squeezed(value) for name, value in vars(queries).items() if name.isupper() and isinstance(value, str)}
    await database.execute_as(SUPERUSER, "create table canary (id int)")
    await database.execute_as(SUPERUSER, f"create schema {quoted(ODD_SCHEMA)} authorization {APP_OWNER}")
    expected = set()
    for schema, name in [*(("public", name) for name in HOSTILE), (ODD_SCHEMA, 'x"; drop table canary; --')]:
        view = ViewName(schema, name)
        sql_name = f"{quoted(schema)}.{quoted(name)}"
        await database.execute_as(
            APP_OWNER, f"create materialized view {sql_name} as select 1 as id; create unique index on {sql_name} (id)"
        )
        for concurrently in (ALWAYS, NEVER):
            result = await refresh(database, view, concurrently=concurrently)
            assert result.outcome is RefreshOutcome.SUCCESS, (name, result.error_message)
        full = await database.value_as(SUPERUSER, "select format('%I.%I', $1::text, $2::text)", schema, name)
        expected |= {
            squeezed(f"{command} {full}")
            for command in ("refresh materialized view concurrently", "refresh materialized view", "analyze")
        }
    seen = statements_of(MV_OPERATOR, database)
    assert expected <= seen
    assert seen <= expected | known
    assert await database.value_as(SUPERUSER, "select to_regclass('canary') is not null")


async def test_a_name_that_postgresql_would_cut_means_no_other_view(database: Database) -> None:
    await database.make_view("n" * 50)
    await database.execute_as(APP_OWNER, f"create materialized view {'m' * 64} as select 1 as id")
    assert await database.value_as(APP_OWNER, "select count(*) from pg_matviews where matviewname = $1", "m" * 63) == 1
    failure(await refresh(database, public("m" * 62)), Reason.VIEW_NOT_FOUND)
    assert (await refresh(database, public("m" * 63))).outcome is RefreshOutcome.SUCCESS


async def test_a_hostile_tenant_or_correlation_id_is_data(database: Database) -> None:
    view = await database.make_view()
    evil = "'; drop table mv_base; --"
    result = await refresh(
        database, view, isolation=Isolation.TENANT, tenant_id=evil, correlation_id=evil, slot_id=f"request:{evil}"
    )
    assert result.outcome is RefreshOutcome.SUCCESS
    (row,) = await database.fetch_as(SUPERUSER, "select lock_token, correlation_id from matview_ops.refresh_run")
    assert tuple(row) == (evil, evil)


def squeezed(statement: str) -> str:
    return re.sub(r"\s+", " ", statement).strip()


def statements_of(role: str, database: Database) -> set[str]:
    """Return every statement that the server logged for a role in this database."""
    entry = re.compile(
        rf"^\S+ \S+ \S+ \[\d+\] {role}@{database.name} LOG:  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)", re.MULTILINE
    )
    return {squeezed(text) for text in entry.findall(database.server.log_text())}
