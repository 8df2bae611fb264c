"""A database that is closed now, and opens in a moment: real clock, real API server, real REFRESH."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, condition, policy

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")


def deny_until(end: datetime) -> Json:
    """A window that opened a minute or two ago."""
    opened = (datetime.now(UTC) - timedelta(minutes=1)).replace(second=0, microsecond=0)
    seconds = int((end - opened).total_seconds())
    return {"windows": [{"kind": "Deny", "cron": f"{opened:%M %H} * * *", "durationSeconds": seconds}]}


async def test_what_is_due_in_a_deny_window_waits_for_its_end(operator: OperatorProcess, tenant: Tenant) -> None:
    await tenant.database.make_view()
    opens_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=13)
    if opens_at.second % 5 == 0:
        opens_at += timedelta(seconds=1)  # else a slot is due just then, and may go first
    tenant.connect(spec=deny_until(opens_at))
    tenant.apply(policy("sales", "mv", every=5, startingDeadlineSeconds=1), policy("asked", "mv"))
    tenant.request("asked", "r1")
    status = tenant.wait("asked", lambda status: condition(status, "Reconciling"), seconds=10)
    assert condition(status, "Reconciling")["reason"] == "WaitingForWindow"
    assert f"before {opens_at:%Y-%m-%dT%H:%M:%SZ}" in condition(status, "Reconciling")["message"]
    status = tenant.wait("sales", lambda status: condition(status, "Fresh").get("reason") == "WindowClosed", seconds=12)
    assert status["missedSlots"] >= 1
    assert [event["reason"] for event in tenant.events("sales")] == ["Scheduled", "WindowClosed"]

    status = tenant.wait("asked", lambda status: status.get("lastHandledRequest") == "r1", seconds=20)
    assert condition(status, "Reconciling") == {}
    tenant.wait("sales", lambda status: condition(status, "Fresh").get("status") == "True", seconds=10, what="fresh")
    runs = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id, data_as_of from matview_ops.refresh_run order by run_id"
    )
    assert runs[0]["slot_id"] == "request:r1"
    assert timedelta() <= runs[0]["data_as_of"] - opens_at < timedelta(seconds=3)
    assert operator.alive
