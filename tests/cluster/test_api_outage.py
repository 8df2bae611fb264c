"""Faults 8 and 9: the API server is out of reach while slots are due, and news is lost meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sandbox.controlplane import Cluster
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.operators import Operators
from tests.cluster.relay import relayed
from tests.cluster.tenant import Tenant, policy

EVERY = 5
SETTLED = "select count(*) from matview_ops.refresh_run where settles and policy_uid = $1"


async def settled(tenant: Tenant, uid: str) -> int:
    """How many slots the ledger has as done."""
    return int(str(await tenant.database.value_as(SUPERUSER, SETTLED, uid)))


async def test_faults_8_and_9_slots_go_on_without_the_api_server_and_all_is_told_and_heard_when_it_is_back(
    operators: Operators, tenant: Tenant, installed: Cluster, tmp_path: Path
) -> None:
    async with relayed(installed, tmp_path) as (relay, kubeconfig):
        operator = await asyncio.to_thread(operators.start, KUBECONFIG=kubeconfig)
        await tenant.database.make_view()
        await asyncio.to_thread(tenant.connect)
        await asyncio.to_thread(tenant.apply, policy("sales", "mv", every=EVERY))
        before = await asyncio.to_thread(tenant.wait, "sales", lambda status: "lastSlotTime" in status)
        uid = tenant.get("sales")["metadata"]["uid"]

        relay.freeze()
        count = await settled(tenant, uid)
        await asyncio.sleep(3 * EVERY + 4)
        assert await settled(tenant, uid) - count >= 2
        assert tenant.get("sales")["status"]["lastSlotTime"] <= before["lastSlotTime"]
        tenant.kubectl("patch", "mvrp", "sales", "--type=merge", "-p", '{"spec": {"suspend": true}}')

        relay.renew()
        status = await asyncio.to_thread(
            tenant.wait, "sales", lambda status: status["lastSlotTime"] > before["lastSlotTime"], seconds=60
        )
        await asyncio.to_thread(
            tenant.wait, "sales", lambda status: status.get("observedGeneration") == 2, seconds=60, what="suspended"
        )
        count = await settled(tenant, uid)
        await asyncio.sleep(2 * EVERY)
        assert await settled(tenant, uid) == count
        await asyncio.to_thread(operator.stop)
    assert status["history"][0]["outcome"] == "SUCCESS"
    slots = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id, count(*) as times from matview_ops.refresh_run where settles group by slot_id"
    )
    assert {row["times"] for row in slots} == {1}
    assert "password" not in operator.log_text()
