"""The functions that a script imports: four to refresh, one for the lock keys, two types."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import TENANT_A, TENANT_B, GatedView

import matview_operator
from matview_operator import (
    MatviewError,
    RefreshOutcome,
    RefreshResult,
    lock_keys,
    refresh_all_for_tenant,
    refresh_all_for_tenant_async,
    refresh_single,
    refresh_single_async,
)
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.dependencies import InvalidDependencies
from matview_operator.domain.errors import InvalidName, InvalidRequest, InvalidTarget, Problem

if TYPE_CHECKING:
    from tests.database import Database

SUCCESS = RefreshOutcome.SUCCESS


async def make_chain(database: Database) -> None:
    """Make views whose names are in the wrong order: z_first ← (an ordinary view) ← a_second ← b_third, and m_alone."""
    await database.execute_as(
        APP_OWNER,
        """
        create table source (id int primary key, divisor int);
        insert into source values (1, 1);
        create materialized view z_first as select id, 1 / divisor as x from source;
        create view between as select id, x from z_first;
        create materialized view a_second as select id, x from between;
        create materialized view b_third as select id, x from a_second;
        create materialized view m_alone as select count(*) as n from source;
        """,
    )


def outcomes(results: list[RefreshResult]) -> list[tuple[str, str]]:
    return [(result.view_name, result.outcome.value) for result in results]


async def test_a_guard_is_given_by_keywords(database: Database) -> None:
    await database.make_view(rows=4)
    await database.execute_as(APP_OWNER, "delete from mv_base where tenant_id = 'b'")
    url = database.url()
    for guard, reason in (
        ({"min_rows": 3}, RefreshReason.TOO_FEW_ROWS),
        ({"max_row_loss_percent": 49}, RefreshReason.TOO_MANY_ROWS_LOST),
        ({"keep_tenants": "tenant_id"}, RefreshReason.TENANTS_LOST),
    ):
        result = await refresh_single_async("mv", database_url=url, **guard)
        assert (result.outcome, result.error_type) == (RefreshOutcome.REJECTED_BY_GUARD, reason)
        (result,) = await refresh_all_for_tenant_async(None, database_url=url, **guard)
        assert result.error_type is reason
    with pytest.raises(InvalidRequest, match="max_row_loss_percent"):
        await refresh_single_async("mv", database_url=url, max_row_loss_percent=101)
    assert (await refresh_single_async("mv", database_url=url, min_rows=2, max_row_loss_percent=50)).rows_after == 2


def test_executor_api_has_the_sources_names_and_parameters() -> None:
    for single in (refresh_single, refresh_single_async):
        assert [*inspect.signature(single).parameters][:3] == ["view_name", "tenant_id", "correlation_id"]
    for every in (refresh_all_for_tenant, refresh_all_for_tenant_async):
        assert [*inspect.signature(every).parameters][:2] == ["tenant_id", "correlation_id"]
    assert lock_keys("mv_realtime_revenue") == (1673308721, -2014051537)
    assert set(matview_operator.__all__) <= set(dir(matview_operator))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        matview_operator.nothing  # noqa: B018 - the access is what is tested


def test_importing_the_resources_loads_no_driver() -> None:
    code = "import sys, matview_operator, matview_operator.api.policy; print('asyncpg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"


async def test_executor_api_refreshes_one_view(database: Database) -> None:
    await database.make_view()
    await database.execute_as(APP_OWNER, "insert into mv_base values (9, 'a', 9)")
    result = await refresh_single_async("mv", "tenant", "correlation", database_url=database.url())
    assert isinstance(result, RefreshResult)
    assert (result.outcome, result.rows_inserted, result.rows_deleted) == (SUCCESS, 1, 0)
    assert (result.view_name, result.tenant_id, result.correlation_id) == ("mv", "tenant", "correlation")
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 4


async def test_executor_api_of_synchronous_scripts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_chain(database)
    monkeypatch.setenv("DATABASE_URL", database.url())
    # A script has no event loop; a thread has none either.
    result = await asyncio.to_thread(refresh_single, "m_alone", correlation_id="script")
    assert (result.outcome, result.correlation_id) == (SUCCESS, "script")
    results = await asyncio.to_thread(refresh_all_for_tenant, "tenant")
    assert {result.outcome for result in results} == {SUCCESS}
    for call in (lambda: refresh_single("m_alone"), lambda: refresh_all_for_tenant(None)):
        with pytest.raises(RuntimeError, match="_async"):
            call()


async def test_executor_api_names_are_raw(database: Database) -> None:
    for schema, name in (("public", "Odd name"), ("finance", "costs"), ("public", "with.dot")):
        await database.make_view(name, schema=schema)
    url = database.url()
    for name in ("Odd name", "finance.costs", "public.with.dot"):
        assert (await refresh_single_async(name, database_url=url)).outcome is SUCCESS
    assert (await refresh_single_async("FINANCE.costs", database_url=url)).error_type is RefreshReason.VIEW_NOT_FOUND


async def test_executor_api_refuses_arguments_that_make_no_sense(database: Database) -> None:
    url = database.url()
    for name in ("", "a" * 64, "a\0", "schema."):
        with pytest.raises(InvalidName):
            await refresh_single_async(name, database_url=url)
    for tenant in ("GLOBAL", "", "t" * 64, "a\x1b"):
        with pytest.raises(InvalidRequest):
            await refresh_single_async("mv", tenant, database_url=url)
        with pytest.raises(InvalidRequest):
            await refresh_all_for_tenant_async(tenant, database_url=url)
    with pytest.raises(InvalidRequest, match="tenant"):
        await refresh_single_async("mv", database_url=url, isolation="Tenant")
    with pytest.raises(InvalidRequest, match="'shared' is not a valid Isolation"):
        await refresh_single_async("mv", database_url=url, isolation="shared")  # type: ignore[arg-type]
    with pytest.raises(InvalidTarget, match="DATABASE_URL"):
        await refresh_single_async("mv")
    with pytest.raises(TypeError):
        await refresh_single_async("mv", unknown=1)  # type: ignore[call-arg]


async def test_correlation_is_made_up_where_none_is_given(database: Database) -> None:
    await make_chain(database)
    one = await refresh_single_async("m_alone", database_url=database.url())
    other = await refresh_single_async("m_alone", database_url=database.url())
    assert len({one.correlation_id, other.correlation_id, ""}) == 3
    together = await refresh_all_for_tenant_async(None, database_url=database.url())
    assert len({result.correlation_id for result in together}) == 1


async def test_idempotent_calls_do_their_work_once(database: Database) -> None:
    await database.make_view()

    async def call(*, tenant: str | None = None, **options: object) -> RefreshReason | None:
        result = await refresh_single_async(
            "mv",
            tenant,
            "order-1",
            database_url=database.url(),
            **options,  # type: ignore[arg-type]
        )
        assert result.outcome is SUCCESS
        return result.error_type

    assert [await call() for _ in range(2)] == [None, None]
    assert [await call(idempotent=True) for _ in range(2)] == [None, RefreshReason.RECOVERED]
    # Under Shared the tenant is a label: it is the same work.
    assert await call(idempotent=True, tenant="b") is RefreshReason.RECOVERED
    assert await call() is None


async def test_h_d_a_tenants_own_refresh_is_explicit(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create materialized view seen as select current_setting('app.current_tenant_id', true) as tenant",
    )
    url = database.url()
    keys = lock_keys("seen", TENANT_A)
    shared = await refresh_single_async("seen", TENANT_A, database_url=url)
    assert not await database.value_as(APP_OWNER, "select tenant from seen")
    assert shared.lock_key_debug == str(lock_keys("seen"))
    await database.execute_as(SUPERUSER, "delete from matview_ops.refresh_run")
    own = await refresh_single_async("seen", TENANT_A, database_url=url, isolation="Tenant")
    assert await database.value_as(APP_OWNER, "select tenant from seen") == TENANT_A
    assert own.lock_key_debug == f"view_key={keys.view_key},tenant_key={keys.tenant_key}"
    # Nobody rebuilds it globally, or for another tenant, without its being said.
    other = await refresh_single_async("seen", TENANT_B, database_url=url, isolation="Tenant")
    assert other.error_type is RefreshReason.SHARED_VIEW
    assert await database.value_as(APP_OWNER, "select tenant from seen") == TENANT_A


async def test_gate_2c_all_views_come_in_dependency_order(database: Database) -> None:
    await make_chain(database)
    await database.execute_as(APP_OWNER, "insert into source values (2, 1)")
    results = await refresh_all_for_tenant_async("tenant", database_url=database.url())
    assert outcomes(results) == [(name, "SUCCESS") for name in ("m_alone", "z_first", "a_second", "b_third")]
    # One pass is enough: each read what the one before it had just written.
    assert await database.value_as(APP_OWNER, "select count(*) from b_third") == 2


async def test_gate_2c_a_failed_view_stops_those_that_read_it_and_names_itself(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await make_chain(database)
    await database.execute_as(APP_OWNER, "update source set divisor = 0")
    caplog.set_level(logging.INFO, "matview_operator")
    results = await refresh_all_for_tenant_async(None, database_url=database.url())
    assert outcomes(results) == [
        ("m_alone", "SUCCESS"),
        ("z_first", "FAILED"),
        ("a_second", "SKIPPED_UPSTREAM"),
        ("b_third", "SKIPPED_UPSTREAM"),
    ]
    for skipped in results[2:]:
        assert skipped.error_type is RefreshReason.UPSTREAM_FAILED
        assert skipped.error_message
        assert "z_first" in skipped.error_message
    logged = [vars(record)["outcome"] for record in caplog.records if vars(record).get("action") == "refresh"]
    assert logged == [result.outcome.value for result in results]


async def test_gate_2c_a_skipped_upstream_view_does_not_stop_those_that_read_it(database: Database) -> None:
    await make_chain(database)
    keys = lock_keys("z_first")
    await database.execute_as(APP_OWNER, f"select pg_advisory_lock({keys.view_key}, {keys.tenant_key})")
    results = await refresh_all_for_tenant_async(None, database_url=database.url())
    assert outcomes(results)[1:] == [
        ("z_first", "SKIPPED_LOCK_HELD"),
        ("a_second", "SUCCESS"),
        ("b_third", "SUCCESS"),
    ]


async def test_gate_2c_a_cycle_is_named_before_anything_is_refreshed(database: Database) -> None:
    await make_chain(database)
    await database.execute_as(APP_OWNER, "create or replace view between as select id, x from b_third")
    with pytest.raises(InvalidDependencies, match=r"(a_second → b_third → a_second|b_third → a_second → b_third)\.$"):
        await refresh_all_for_tenant_async(None, database_url=database.url())
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 0


async def test_gate_2c_a_view_that_may_not_be_refreshed_is_named(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await database.execute_as(
        SUPERUSER,
        f"create materialized view theirs as select 1 as x; grant select on theirs to {APP_OWNER}",
    )
    await database.execute_as(APP_OWNER, "create materialized view ours as select * from theirs")
    results = await refresh_all_for_tenant_async(None, database_url=database.url())
    assert outcomes(results) == [("ours", "SUCCESS")]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (vars(warning)["view_name"], vars(warning)["missing"]) == ("ours", "public.theirs")


async def test_all_means_what_the_role_may_refresh(database: Database) -> None:
    await make_chain(database)
    await database.execute_as(SUPERUSER, "create materialized view theirs as select 1 as x")
    assert "theirs" not in [
        name for name, _ in outcomes(await refresh_all_for_tenant_async(None, database_url=database.url()))
    ]
    assert await refresh_all_for_tenant_async(None, database_url=database.url("other_tenant")) == []
    with pytest.raises(Problem, match="superuser"):
        await refresh_all_for_tenant_async(None, database_url=database.admin_url)


async def test_views_that_cannot_be_listed_are_an_error_without_a_password(database: Database) -> None:
    wrong = database.url().replace(database.passwords[MV_OPERATOR], "c4n4ry")
    with pytest.raises(MatviewError) as caught:
        await refresh_all_for_tenant_async(None, database_url=wrong)
    assert "c4n4ry" not in repr(caught.value) + str(caught.value.__cause__)
    result = await refresh_single_async("mv", database_url=wrong)
    assert result.error_type is RefreshReason.AUTHENTICATION_FAILED
    assert "c4n4ry" not in result.model_dump_json()


async def test_a_callers_own_timeout_works(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await refresh_single_async("gated", database_url=database.url())
    await gated.open()
    assert (await refresh_single_async("gated", database_url=database.url())).outcome is SUCCESS
