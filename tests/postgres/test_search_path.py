"""T6: what a view's functions mean by a name without a schema is never decided by whoever plants objects somewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, OTHER_TENANT, quoted
from tests.refreshes import ended, failure, public, refresh

from matview_operator import RefreshOutcome, refresh_single_async
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.inspection import ViewCheck

if TYPE_CHECKING:
    from tests.database import Database

    from matview_operator import RefreshResult

ODD = 'Odd, "name"; --'
OWN, PLANTED = 1, 666


async def arrange(database: Database, *, schema: str = "app") -> None:
    """Make a view whose function calls `fee` by its bare name: the owner's is in `schema`, a stranger's in public."""
    await database.execute_as(
        SUPERUSER,
        f"create schema {quoted(schema)} authorization {APP_OWNER}; grant create on schema public to {OTHER_TENANT};",
    )
    await database.execute_as(
        APP_OWNER,
        f"""
        create function {quoted(schema)}.fee(n int) returns int language sql as 'select {OWN}';
        create function public.price(n int) returns int language plpgsql as 'begin return fee(n); end';
        create materialized view mv as select 1 as id, public.price(1) as price with no data;
        """,
    )
    await database.execute_as(
        OTHER_TENANT,
        f"""
        create sequence public.planted_runs minvalue 0;
        grant usage on sequence public.planted_runs to public;
        create function public.fee(n int) returns int language sql as
          'select {PLANTED} + 0 * nextval(''public.planted_runs'')::int';
        """,
    )


async def price(database: Database) -> object:
    return await database.value_as(APP_OWNER, "select price from mv")


async def planted_was_run(database: Database) -> object:
    return await database.value_as(OTHER_TENANT, "select is_called from public.planted_runs")


async def test_t6_a_function_that_another_role_plants_in_public_is_not_picked_up(database: Database) -> None:
    await arrange(database)
    failure(await refresh(database, public("mv")), Reason.UNSAFE_SEARCH_PATH, "fee", "SET search_path")
    assert await planted_was_run(database) is False
    # Without the operator's search path it would be.
    if database.version < 17:
        await database.execute_as(APP_OWNER, "refresh materialized view mv")
        assert await price(database) == PLANTED


@pytest.mark.parametrize("schema", ["app", ODD])
async def test_t6_a_search_path_names_the_schemas_that_are_meant(database: Database, schema: str) -> None:
    await arrange(database, schema=schema)
    result = await refresh(database, public("mv"), search_path=(schema,))
    if database.version >= 17:
        failure(result, Reason.UNSAFE_SEARCH_PATH, "SET search_path")
    else:
        assert result.outcome is RefreshOutcome.SUCCESS
        assert await price(database) == OWN
    assert await planted_was_run(database) is False
    called = await refresh_single_async("mv", database_url=database.url(), search_path=[schema])
    assert called.outcome is result.outcome


async def test_t6_a_name_in_the_search_path_is_one_schema_whatever_it_holds(database: Database) -> None:
    await arrange(database)
    for name in ("app, public", 'app", "public', "app\\", "'public'", "PUBLIC"):
        failure(await refresh(database, public("mv"), search_path=(name,)), Reason.UNSAFE_SEARCH_PATH)
    assert await planted_was_run(database) is False


@pytest.mark.parametrize("name", ["pg_temp", "pg_temp_3", "pg_toast", "$user", "", "a\0b", "é" * 32])
async def test_t6_no_schema_of_the_server_and_no_stand_in_comes_into_the_search_path(
    bare_database: Database, name: str
) -> None:
    view = await bare_database.make_view()
    result = await refresh(bare_database, view, search_path=("app", name))
    failure(result, Reason.INVALID_SPEC, "searchPath[1]")


async def test_t6_the_servers_own_functions_come_first_and_temporary_tables_last(bare_database: Database) -> None:
    await bare_database.execute_as(
        APP_OWNER, "create materialized view seen as select current_setting('search_path') as path"
    )
    result = await refresh(bare_database, public("seen"), search_path=("app", ODD))
    assert ended(result)[0] is RefreshOutcome.SUCCESS
    path = await bare_database.value_as(APP_OWNER, "select path from seen")
    between = "" if bare_database.version >= 17 else f"app, {quoted(ODD)}, "
    assert path == f"pg_catalog, {between}pg_temp"


@pytest.mark.parametrize("databases", [15, 16], indirect=True)
async def test_t6_a_schema_in_which_everybody_may_plant_functions_is_no_search_path(database: Database) -> None:
    await arrange(database, schema=ODD)
    await database.execute_as(SUPERUSER, f"grant create on schema {quoted(ODD)} to public")
    result = await refresh(database, public("mv"), search_path=("missing", ODD))
    failure(result, Reason.UNSAFE_SEARCH_PATH, f"names {quoted(ODD)}, where every role may create functions")
    assert result.error_message
    check = ViewCheck(
        view=public("mv"),
        concurrently=Concurrently.IF_POSSIBLE,
        isolation=Isolation.SHARED,
        search_path=("missing", ODD),
    )
    target = parse_url(database.url())
    inspection = await Inspector().inspect(target=target, checks=[check], allow_superuser=False)
    assert str(inspection.answers[check]) == result.error_message
    await database.execute_as(SUPERUSER, result.error_message.partition("Run: ")[2])
    assert (await refresh(database, public("mv"), search_path=("missing", ODD))).outcome is RefreshOutcome.SUCCESS


async def test_t6_a_function_with_a_search_path_of_its_own_works_everywhere(database: Database) -> None:
    await arrange(database)
    await database.execute_as(APP_OWNER, "alter function public.price(int) set search_path = app")
    result: RefreshResult = await refresh(database, public("mv"))
    assert result.outcome is RefreshOutcome.SUCCESS
    assert await price(database) == OWN
