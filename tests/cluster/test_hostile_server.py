"""What a hostile server says of itself keeps no status from being written: the API server takes each of them."""

from __future__ import annotations

import asyncio

import pytest
from sandbox.operator_process import OperatorProcess
from tests.cluster.tenant import Json, Tenant, condition, database, policy
from tests.liar import Liar

JUDGED = ("True", "False")
LONG = b"x" * 100_000
UNPRINTABLE = "a\x1b[2J\u202e\ufeffb\r\n\x7f".encode()
LIES: dict[str, dict[str, bytes | None]] = {
    "long": dict.fromkeys(["version", "database", "role", "owner", "quoted"], LONG),
    "unprintable": dict.fromkeys(["version", "database", "role", "owner", "quoted"], UNPRINTABLE),
    "not-yours": {"may_refresh": b"\0", "owner": LONG, "quoted": LONG},
    "negative": dict.fromkeys(["inserted", "deleted", "size_bytes", "estimated_rows"], b"\xff" * 8),
    "huge": dict.fromkeys(["inserted", "deleted", "size_bytes", "estimated_rows"], b"\x7f" + b"\xff" * 7),
    "at-the-end-of-time": {"data_as_of": b"\x7f" + b"\xff" * 7},
    "nothing": dict.fromkeys(["version", "role", "populated", "relkind", "data_as_of"]),
}


@pytest.mark.parametrize("lie", LIES)
async def test_fault_21_the_api_server_takes_the_status_of_a_lying_servers_policy(
    operator: OperatorProcess, tenant: Tenant, lie: str
) -> None:
    await tenant.database.make_view()
    said_before = len(operator.log_text())
    async with Liar(tenant.database.server.port, lies=LIES[lie]).listen() as liar:

        def tried() -> Json:
            tenant.apply(tenant.secret("analytics", port=str(liar.port)), database())
            tenant.apply(policy("p", "mv", retry={"limit": 0}))
            tenant.wait("p", lambda status: condition(status, "Ready").get("status") in JUDGED, what="judged")
            return tenant.refresh_now("p", "r1")

        # The liar works in this loop, and kubectl would stop it.
        status = await asyncio.to_thread(tried)
    assert len(status["views"]) == 1
    assert status["views"][0]["outcome"] in ("SUCCESS", "FAILED")
    assert condition(tenant.get("analytics", "mvdb")["status"], "Ready")
    log = operator.log_text()[said_before:]
    assert "refuses this status" not in log
    writes = [entry for entry in tenant.audited() if entry["verb"] in ("patch", "create")]
    assert writes
    assert {entry["responseStatus"]["code"] for entry in writes} <= {200, 201, 409}
