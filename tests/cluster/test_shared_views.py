"""Policies of many tenants that name the same views: PostgreSQL refreshes each once in a slot, every status is true."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, condition, policy
from tests.refreshes import counted_view, executions

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

TENANTS = 20
EVERY = 8


@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "no-ledger"])
async def test_shared_views_of_twenty_tenants_are_refreshed_once_in_each_slot(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
    ledger: bool,  # noqa: FBT001 - pytest
) -> None:
    views = [str(await counted_view(tenant.database, name)) for name in ("first", "second")]
    if not ledger:
        await tenant.database.execute_as(SUPERUSER, "drop schema matview_ops cascade")
    before = [await executions(tenant.database, view) for view in views]
    tenant.connect()
    fields: Json = {"every": EVERY, "historyLimit": 50}
    tenant.apply(*(policy(f"p{n}", *views, tenantId=f"tenant-{n}", **fields) for n in range(TENANTS)))

    while True:
        statuses = await _statuses(tenant)
        counted = [await executions(tenant.database, view) for view in views]
        times = {status.get("lastSlotTime") for status in statuses}
        if len(times) == 1 and None not in times:
            due = datetime.fromisoformat(str(times.pop()))
            if datetime.now(UTC) < due + timedelta(seconds=EVERY):  # else the next slot may have been counted
                break
    slots = {entry["slotTime"] for status in statuses for entry in status["history"]}
    ran = [int(str(after)) - int(str(earlier)) for after, earlier in zip(counted, before, strict=True)]
    assert ran == [len(slots)] * 2
    for number in range(2):
        told = [status["views"][number] for status in statuses]
        (ran_itself,) = [view for view in told if view["outcome"] == "SUCCESS"]
        covered = [view for view in told if view["outcome"] == "SKIPPED_COVERED"]
        assert len(covered) == TENANTS - 1
        for view in covered:
            assert view["message"] == f"Run {ran_itself['correlationId']} refreshed it after this slot was due."
            assert view["dataAsOf"] == view["verifiedAt"] == ran_itself["dataAsOf"]
            assert datetime.fromisoformat(view["dataAsOf"]) >= due
            assert view["correlationId"] != ran_itself["correlationId"]
    assert all(condition(status, "Fresh")["status"] == "True" for status in statuses)


async def _statuses(tenant: Tenant) -> list[Json]:
    found = json.loads(tenant.kubectl("get", "mvrp", "-o", "json"))["items"]
    assert len(found) == TENANTS
    return [item.get("status", {}) for item in found]
