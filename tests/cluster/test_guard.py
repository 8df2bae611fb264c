"""A guard in a policy: what it rejects is in condition, event, metric, log and status, and the old rows are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.pgtemplate import SUPERUSER
from tests.cluster.exposition import scrape
from tests.cluster.tenant import Tenant, condition, is_ready, not_ready_because, policy
from tests.cluster.test_main_job import log_of
from tests.database import APP_OWNER

from matview_operator import refresh_single_async

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

GUARD = {"minRows": 1, "maxRowLossPercent": 50, "keepTenants": "tenant_id"}


async def test_guard_a_rejected_refresh_is_told_everywhere_and_changes_nothing(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    await tenant.database.make_view(rows=10)
    tenant.connect()
    tenant.apply(policy("sales", {"name": "mv", "guard": GUARD}))
    tenant.wait("sales", is_ready)
    (view,) = tenant.refresh_now("sales", "good")["views"]
    assert (view["outcome"], view["rowsBefore"], view["rowsAfter"], view["tenantsBefore"], view["tenantsLost"]) == (
        "SUCCESS",
        *(10, 10, 2, 0),
    )

    await tenant.database.execute_as(APP_OWNER, "delete from mv_base where tenant_id = 'b'")
    for token in ("bad", "still-bad"):
        status = tenant.refresh_now("sales", token)
        (view,) = status["views"]
        assert (view["outcome"], view["reason"]) == ("REJECTED_BY_GUARD", "TenantsLost")
        assert (view["rowsBefore"], view["rowsAfter"], view["tenantsBefore"], view["tenantsLost"]) == (10, 5, 2, 1)
        assert "Of 2 values that tenant_id had, the new rows lack 1" in view["message"]
        fresh = condition(status, "Fresh")
        assert (fresh["status"], fresh["reason"]) == ("False", "TenantsLost")
        assert view["message"] in fresh["message"]
        # One rejected slot is no reason to call the policy broken; three in a row are.
        assert condition(status, "Ready")["status"] == "True"
        assert status["history"][0]["outcome"] == "REJECTED_BY_GUARD"
    assert await tenant.database.value_as(APP_OWNER, "select count(*) from mv") == 10
    assert [event["type"] for event in tenant.events("sales") if event["reason"] == "TenantsLost"] == ["Warning"]
    counted = f'{{namespace="{tenant.namespace}",outcome="REJECTED_BY_GUARD",policy="sales",reason="TenantsLost"}} 2.0'
    assert f"matview_runs_total{counted}" in scrape(operator)
    (line,) = [line for line in log_of(operator) if line.get("action") == "refresh" and line["correlation_id"] == "bad"]
    assert (line["outcome"], line["rows_before"], line["rows_after"]) == ("REJECTED_BY_GUARD", 10, 5)
    recorded = await tenant.database.fetch_as(
        SUPERUSER, "select outcome, reason from matview_ops.refresh_run where outcome <> 'SUCCESS'"
    )
    assert [tuple(row) for row in recorded] == [("REJECTED_BY_GUARD", "TenantsLost")] * 2

    # Somebody finds that b has left for good, and says so by a refresh without the guard.
    assert (await refresh_single_async("mv", database_url=tenant.database.url())).rows_deleted == 5
    status = tenant.refresh_now("sales", "accepted")
    assert condition(status, "Fresh")["status"] == "True"
    assert (status["views"][0]["rowsBefore"], status["views"][0]["tenantsLost"]) == (5, 0)


async def test_guard_that_cannot_be_checked_shows_before_anything_is_due(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", {"name": "mv", "guard": {"keepTenants": "tennant_id"}}))
    status = tenant.wait("sales", not_ready_because("GuardFailed"))
    assert condition(status, "Stalled")["reason"] == "GuardFailed"
    assert "no column tennant_id" in condition(status, "Ready")["message"]
    tenant.apply(policy("sales", {"name": "mv", "guard": {"keepTenants": "tenant_id"}}))
    assert condition(tenant.wait("sales", is_ready), "Stalled") == {}
