"""No tenant loses rows: REFRESH rebuilds the whole view as its owner, who may see only some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, OTHER_TENANT, RLS_BYPASS_OWNER
from tests.refreshes import TENANT, TENANT_A, TENANT_B, failure, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.view import Concurrently
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from tests.database import Database


ALWAYS = Concurrently.ALWAYS
NEVER = Concurrently.NEVER


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
