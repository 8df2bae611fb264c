"""What a run sets for itself, what the view's query sees of it, and that none of it outlives the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import TENANT, TENANT_A, TENANT_B, a_run, refresh

import matview_operator
from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.transaction import work_through
from matview_operator.adapters.postgres.work import Job
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.domain.connection import parse_url
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database


SETTINGS = (
    "app.current_tenant_id app.execution_context row_security search_path statement_timeout lock_timeout "
    "idle_in_transaction_session_timeout client_connection_check_interval "
    "tcp_keepalives_idle tcp_keepalives_interval tcp_keepalives_count client_min_messages"
).split()
READ_SETTINGS = "select name, nullif(current_setting(name, true), '') from unnest($1::text[]) as name"


async def test_g3_nothing_set_for_a_run_outlives_it_on_its_connection(bare_database: Database) -> None:
    view = await bare_database.make_view()
    before = await bare_database.fetch_as(MV_OPERATOR, READ_SETTINGS, SETTINGS)
    for each in (view, ViewName("public", "missing")):
        job = Job(runs=[a_run(each, **TENANT)], target=parse_url(bare_database.url()), timeout_seconds=20)
        try:
            await work_through(job, Pool(idle_seconds=0))
        except matview_operator.MatviewError:
            assert job.session is not None
            await job.session.rollback()
        assert job.session is not None
        after = await job.session._rows(READ_SETTINGS, SETTINGS)
        await job.session.close()
        assert [tuple(row.values()) for row in after] == [tuple(row.values()) for row in before]


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_g3_nothing_leaks_through_a_transaction_pooler(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    view = await database.make_view()
    pool = pgbouncer(database, pool_size=1)
    before = await database.fetch_as(MV_OPERATOR, READ_SETTINGS, SETTINGS)
    assert (await refresh(database, view, via=pool, **TENANT)).outcome is RefreshOutcome.SUCCESS
    assert (await refresh(database, view, via=pool, timeout_seconds=5)).outcome is RefreshOutcome.SUCCESS
    client = await database.connect(via=pool)
    after = await client.fetch(READ_SETTINGS, SETTINGS)
    assert [tuple(row.values()) for row in after] == [tuple(row.values()) for row in before]


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_g3_a_setting_that_somebody_else_leaked_stops_a_shared_run(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    view = await database.make_view()
    pool = pgbouncer(database, pool_size=1)
    client = await database.connect(via=pool)
    await client.execute(f"set app.current_tenant_id = '{TENANT_B}'")
    result = await refresh(database, view, via=pool)
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, RefreshReason.TENANT_SETTING_LEAKED)
    # A tenant's own run says whose it is anyway.
    assert (await refresh(database, view, via=pool, **TENANT)).outcome is RefreshOutcome.SUCCESS


async def test_g3_g4_the_views_query_sees_the_tenant_and_the_worker(bare_database: Database) -> None:
    await bare_database.execute_as(
        APP_OWNER,
        """
        create materialized view seen as select current_setting('app.current_tenant_id', true) as tenant,
          current_setting('app.execution_context', true) as context, current_setting('search_path') as path,
          current_setting('row_security') as row_security, current_setting('transaction_isolation') as isolation
        """,
    )
    view = ViewName("public", "seen")

    async def seen() -> dict[str, str | None]:
        (row,) = await bare_database.fetch_as(APP_OWNER, "select * from seen")
        return dict(row)

    await refresh(bare_database, view, **TENANT)
    under_tenant = await seen()
    await refresh(bare_database, view)
    under_shared = await seen()
    assert under_tenant == {
        "tenant": TENANT_A,
        "context": "worker",
        "path": "pg_catalog, pg_temp",
        "row_security": "on",
        "isolation": "read committed",
    }
    assert under_shared == under_tenant | {"tenant": under_shared["tenant"], "row_security": "off"}
    assert not under_shared["tenant"]


async def test_the_tenant_setting_is_the_policys(bare_database: Database) -> None:
    await bare_database.execute_as(
        APP_OWNER, "create materialized view seen as select current_setting('shop.tenant', true) as tenant"
    )
    await refresh(bare_database, ViewName("public", "seen"), tenant_setting="shop.tenant", **TENANT)
    assert await bare_database.value_as(APP_OWNER, "select tenant from seen") == TENANT_A


@pytest.mark.parametrize("setting", ["role", "search_path", "app.execution_context", "App.Execution_Context"])
async def test_a_tenant_setting_that_is_the_servers_or_ours_is_refused(bare_database: Database, setting: str) -> None:
    view = await bare_database.make_view()
    result = await refresh(bare_database, view, tenant_setting=setting, isolation=Isolation.TENANT, tenant_id=SUPERUSER)
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, RefreshReason.INVALID_SPEC)
