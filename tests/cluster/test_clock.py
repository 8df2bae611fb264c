"""The operator's own clock is set while it runs: no slot is run again, and nothing stops."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sandbox.controlplane import Cluster
from sandbox.faketime import FakeTime
from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, policy

SLOTS = "select slot_id from matview_ops.refresh_run order by run_id"


async def test_a_clock_set_forward_and_back_again_replays_no_slot_and_stops_no_timers(
    installed: Cluster, tenant: Tenant, tmp_path: Path
) -> None:
    clock = FakeTime.make(tmp_path)
    await tenant.database.make_view()
    tenant.connect()
    with OperatorProcess.start(
        control_plane=installed, directory=tmp_path / "operator", namespaces=[tenant.namespace], env=clock.environment
    ) as operator:
        operator.wait_ready()
        tenant.apply(policy("sales", "mv", every=5))
        tenant.wait("sales", lambda status: "lastSlotTime" in status)

        clock.set(hours=1)
        begun = time.monotonic()
        status = tenant.wait("sales", lambda status: _ahead(status) > timedelta(minutes=59))
        assert time.monotonic() - begun < 5
        assert 700 < status["missedSlots"] < 730
        first = status["lastSlotTime"]
        tenant.wait("sales", lambda status: status["lastSlotTime"] > first)

        clock.set(hours=0)
        status = tenant.refresh_now("sales", "asked")
        assert status["history"][0]["outcome"] == "SUCCESS"
        await asyncio.sleep(6)  # a slot of the hour before would be due
        assert _ahead(tenant.get("sales")["status"]) > timedelta(minutes=59)
        assert operator.alive
        clock.set(hours=1)
        last = status["lastSlotTime"]
        tenant.wait("sales", lambda status: status["lastSlotTime"] > last)
        assert operator.exit_code is None
    slots = Counter(row["slot_id"] for row in await tenant.database.fetch_as(SUPERUSER, SLOTS))
    assert max(slots.values()) == 1
    assert len(slots) >= 4  # a slot of the hour ahead that a run of the real hour covers is not among them


def _ahead(status: Json) -> timedelta:
    """How far the newest slot is ahead of the real time."""
    return datetime.fromisoformat(status["lastSlotTime"]) - datetime.now(UTC)
