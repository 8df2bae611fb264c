"""Changes, restarts and rivals: what is promised to hold across them."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from datetime import UTC, datetime

from sandbox.pgtemplate import SUPERUSER
from tests.cluster.operators import Operators
from tests.cluster.tenant import Tenant, condition, is_ready, not_ready_because, policy
from tests.database import APP_OWNER

from matview_operator import refresh_single_async

SLOW = "create function {name}() returns int language sql as $$ select 1 from pg_catalog.pg_sleep({seconds}) $$"


async def test_suspend_resume_change_and_delete_take_effect_at_once(operators: Operators, tenant: Tenant) -> None:
    operator = operators.start()
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=5))
    tenant.wait("sales", lambda status: "lastSlotTime" in status, what="run")
    tenant.kubectl("patch", "mvrp", "sales", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    status = tenant.wait("sales", lambda status: condition(status, "Ready").get("reason") == "Suspended")
    assert "nextSlotTime" not in status
    count = await runs(tenant)
    await asyncio.sleep(6)
    assert await runs(tenant) == count
    changed = {"spec": {"suspend": False, "schedule": {"everySeconds": 7}}}
    tenant.kubectl("patch", "mvrp", "sales", "--type=merge", "-p", json.dumps(changed))
    status = tenant.wait("sales", lambda status: status.get("schedule") == "every 7s" and "nextSlotTime" in status)
    assert datetime.fromisoformat(status["nextSlotTime"]).timestamp() % 7 == 0
    tenant.wait("sales", lambda status: datetime.fromisoformat(status["lastSlotTime"]).timestamp() % 7 == 0)
    tenant.kubectl("delete", "mvrp", "sales")
    await asyncio.sleep(0.5)
    count = await runs(tenant)
    await asyncio.sleep(8)
    assert await runs(tenant) == count
    assert 'policy="sales"' not in operator.log_text()


async def test_a_suspended_database_stops_requests_too_with_a_reason(operators: Operators, tenant: Tenant) -> None:
    operators.start()
    await tenant.database.make_view()
    tenant.connect(spec={"suspend": True})
    tenant.apply(policy("sales", "mv", every=5))
    tenant.wait("sales", not_ready_because("DatabaseSuspended"))
    status = tenant.refresh_now("sales", "r1")
    assert (status["views"][0]["outcome"], status["views"][0]["reason"]) == ("FAILED", "DatabaseSuspended")
    assert await runs(tenant) == 0
    tenant.kubectl("patch", "mvdb", "analytics", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    tenant.wait("sales", is_ready)
    tenant.wait("sales", lambda status: condition(status, "Fresh").get("status") == "True", what="fresh")


async def test_after_a_restart_the_newest_slot_runs_once_and_old_ones_count_as_missed(
    operators: Operators, tenant: Tenant
) -> None:
    first = operators.start()
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=5), policy("yearly", "mv"))
    tenant.wait("sales", lambda status: "lastSlotTime" in status)
    tenant.request("yearly", "r1")
    tenant.wait("yearly", lambda status: status.get("lastHandledRequest") == "r1")
    first.kill()
    before = tenant.get("sales")["status"]
    await asyncio.sleep(16)
    tenant.request("yearly", "asked-while-down")
    operators.start()
    status = tenant.wait("sales", lambda status: status["lastSlotTime"] != before["lastSlotTime"])
    assert status.get("missedSlots", 0) - before.get("missedSlots", 0) >= 2
    tenant.wait("yearly", lambda status: status.get("lastHandledRequest") == "asked-while-down")
    slots = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id from matview_ops.refresh_run where slot_id like 'slot:%' order by run_id"
    )
    assert max(Counter(row["slot_id"] for row in slots).values()) == 1
    requests = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id from matview_ops.refresh_run where slot_id like 'request:%' order by run_id"
    )
    assert [row["slot_id"] for row in requests] == ["request:r1", "request:asked-while-down"]


async def test_a_slot_later_than_its_deadline_is_missed_and_said(operators: Operators, tenant: Tenant) -> None:
    first = operators.start()
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=20, startingDeadlineSeconds=1))
    tenant.wait("sales", lambda status: "lastSlotTime" in status)
    first.kill()
    count = await runs(tenant)
    due = (time.time() // 20 + 1) * 20
    await asyncio.sleep(due + 3 - time.time())
    operators.start()
    status = tenant.wait("sales", lambda status: condition(status, "Fresh").get("reason") == "SlotMissed", seconds=12)
    assert status["missedSlots"] >= 1
    assert await runs(tenant) == count
    assert "SlotMissed" in [event["reason"] for event in tenant.events("sales")]


async def test_h_g_two_operators_and_a_manual_run_refresh_each_slot_exactly_once(
    operators: Operators, tenant: Tenant
) -> None:
    await tenant.database.make_view()
    tenant.connect()
    one, two = operators.start(), operators.start()
    tenant.apply(policy("sales", "mv", every=5))
    tenant.wait("sales", lambda status: "lastSlotTime" in status)
    for number in range(4):
        await refresh_single_async("mv", database_url=tenant.database.url(), correlation_id=f"manual-{number}")
        await asyncio.sleep(4)
    one.stop()
    two.stop()
    rows = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id, outcome from matview_ops.refresh_run where slot_id like 'slot:%'"
    )
    counts = Counter(row["slot_id"] for row in rows if row["outcome"] == "SUCCESS")
    assert len(counts) >= 3
    assert set(counts.values()) == {1}
    told = one.log_text() + two.log_text()
    assert '"outcome": "SKIPPED_LOCK_HELD"' in told or '"reason": "Recovered"' in told or "Covered" in told


async def test_policies_of_one_view_due_together_cover_each_other(operators: Operators, tenant: Tenant) -> None:
    operators.start()
    await tenant.database.make_view()
    tenant.connect()
    names = ["one", "two", "three"]
    tenant.apply(*(policy(name, "mv", every=10, tenantId=name) for name in names))
    ends = [
        tenant.wait(name, lambda status: condition(status, "Fresh").get("status") == "True", what="fresh")
        for name in names
    ]
    newest = max(end["lastSlotTime"] for end in ends)
    ends = [tenant.wait(name, lambda status: status["lastSlotTime"] >= newest) for name in names]
    rows = await tenant.database.fetch_as(
        SUPERUSER,
        "select slot_id, count(*) from matview_ops.refresh_run where outcome = 'SUCCESS' group by 1 order by 1",
    )
    # How many runs a slot takes depends on the race for the lock; each slot was refreshed, and at least one covered.
    assert all(1 <= row["count"] <= 3 for row in rows)
    covered = [view for end in ends for view in end["views"] if view["outcome"] == "SKIPPED_COVERED"]
    assert all("refreshed it after this slot was due" in view["message"] for view in covered)
    assert len(covered) >= 1


async def test_tenant_policies_may_not_share_a_view(operators: Operators, tenant: Tenant) -> None:
    operators.start()
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("alone", "mv", tenantId="a", isolation="Tenant"))
    tenant.wait("alone", is_ready)
    tenant.apply(policy("intruder", "mv", tenantId="b", isolation="Tenant"))
    for name in ("alone", "intruder"):
        status = tenant.wait(name, not_ready_because("SharedView"))
        assert condition(status, "Stalled")["reason"] == "SharedView"
    assert tenant.refresh_now("intruder", "r1")["views"][0]["reason"] == "SharedView"
    assert await runs(tenant) == 0
    tenant.kubectl("delete", "mvrp", "intruder")
    tenant.wait("alone", is_ready)


async def test_sigterm_stops_a_run_on_the_server_and_its_slot_stays_due(operators: Operators, tenant: Tenant) -> None:
    first = operators.start(MATVIEW_SHUTDOWN_GRACE_SECONDS="0")
    await tenant.database.execute_as(APP_OWNER, SLOW.format(name="slow", seconds=60))
    await tenant.database.execute_as(
        APP_OWNER, "create materialized view mv as select slow() as id with no data; create unique index on mv (id)"
    )
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=5))
    await refreshing(tenant, wanted=1)
    asked = time.monotonic()
    first.send(signal.SIGTERM)
    await refreshing(tenant, wanted=0)
    assert time.monotonic() - asked < 5
    status = tenant.wait("sales", lambda status: status.get("views"))
    assert (status["views"][0]["outcome"], status["views"][0]["reason"]) == ("INTERRUPTED", "Shutdown")
    assert "lastSlotTime" not in status
    locks = "select count(*) from pg_locks where locktype = 'advisory'"
    assert await tenant.database.value_as(SUPERUSER, locks) == 0
    await tenant.database.execute_as(
        APP_OWNER, "create or replace function slow() returns int language sql as $$ select 1 $$"
    )
    operators.start()
    tenant.wait("sales", lambda status: condition(status, "Fresh").get("status") == "True", what="fresh")


async def test_suspending_a_database_or_deleting_a_policy_stops_its_run_on_the_server_within_a_second(
    operators: Operators, tenant: Tenant
) -> None:
    operators.start()
    await tenant.database.execute_as(APP_OWNER, SLOW.format(name="slow", seconds=60))
    await tenant.database.execute_as(
        APP_OWNER, "create materialized view mv as select slow() as id with no data; create unique index on mv (id)"
    )
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=5))
    await refreshing(tenant, wanted=1)
    tenant.kubectl("patch", "mvdb", "analytics", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    asked = time.monotonic()
    await refreshing(tenant, wanted=0)
    assert time.monotonic() - asked < 1
    status = tenant.wait("sales", lambda status: status.get("views"))
    assert (status["views"][0]["outcome"], status["views"][0]["reason"]) == ("INTERRUPTED", "DatabaseSuspended")
    assert status["consecutiveFailures"] == 0
    tenant.kubectl("patch", "mvdb", "analytics", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    await refreshing(tenant, wanted=1)
    tenant.kubectl("delete", "mvrp", "sales", "--wait=false")
    asked = time.monotonic()
    await refreshing(tenant, wanted=0)
    assert time.monotonic() - asked < 1


async def runs(tenant: Tenant) -> int:
    """How often the ledger says a view was refreshed."""
    count = await tenant.database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run")
    assert isinstance(count, int)
    return count


async def refreshing(tenant: Tenant, *, wanted: int) -> None:
    """Wait until so many backends run REFRESH."""
    query = "select count(*) from pg_stat_activity where query ilike 'refresh%' and state = 'active'"
    deadline = time.monotonic() + 20
    while await tenant.database.value_as(SUPERUSER, query) != wanted:
        assert time.monotonic() < deadline, f"not {wanted} backends at REFRESH; it is {datetime.now(UTC)}"
        await asyncio.sleep(0.05)
