"""An operator that was told of no host goes nowhere near itself."""

from __future__ import annotations

from pathlib import Path

from sandbox.operator_process import OperatorProcess
from tests.cluster.tenant import Tenant, condition, not_ready_because, policy


async def test_a_database_beside_the_operator_is_refused_unless_it_is_allowed(tenant: Tenant, tmp_path: Path) -> None:
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv"))
    with OperatorProcess.start(
        control_plane=tenant.cluster,
        directory=tmp_path / "operator",
        namespaces=[tenant.namespace],
        env={"MATVIEW_ALLOWED_HOSTS": ""},
    ) as process:
        process.wait_ready()
        for kind, name in (("mvdb", "analytics"), ("mvrp", "sales")):
            status = tenant.wait(name, not_ready_because("HostNotAllowed"), kind=kind)
            assert "MATVIEW_ALLOWED_HOSTS" in condition(status, "Ready")["message"]
        status = tenant.refresh_now("sales", "r1")
        assert [view["reason"] for view in status["views"]] == ["HostNotAllowed"]
