"""The operator under exactly the role of its manifests: it is denied nothing it needs and asks for nothing more."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sandbox.operator_process import OperatorProcess
from tests.cluster.tenant import Json, Tenant, audit, is_ready, policy

ALLOWED = {
    ("matviewdatabases", None): {"list", "watch"},
    ("matviewrefreshpolicies", None): {"list", "watch"},
    ("matviewdatabases", "status"): {"get", "patch"},
    ("matviewrefreshpolicies", "status"): {"get", "patch"},
    ("secrets", None): {"get"},
    ("events", None): {"create"},
    ("leases", None): {"get", "create", "update"},
}


async def test_h_f_the_cluster_role_is_enough_and_no_secret_is_listed(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    assert operator.alive
    begun = datetime.now(UTC)
    await work(tenant)
    check(asked_by("matview-system:matview-operator", tenant, since=begun))


async def test_h_f_the_role_of_one_namespace_is_enough_there(tenant: Tenant, overlay: Path, tmp_path: Path) -> None:
    tenant.cluster.run_kubectl("apply", "-k", str(overlay))
    with OperatorProcess.start(
        control_plane=tenant.cluster,
        directory=tmp_path / "operator",
        namespaces=[tenant.namespace],
        account_namespace=tenant.namespace,
        env={"MATVIEW_LEADER_ELECT": "true", "MATVIEW_LEASE_NAMESPACE": tenant.namespace},
    ) as process:
        process.wait_ready()
        begun = datetime.now(UTC)
        await work(tenant)
    asked = asked_by(f"{tenant.namespace}:matview-operator", tenant, since=begun)
    check(asked)
    assert {entry["objectRef"]["namespace"] for entry in asked if "namespace" in entry.get("objectRef", {})} == {
        tenant.namespace
    }


async def work(tenant: Tenant) -> None:
    """All that an operator does: preflight, run, status, events."""
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv"), policy("bad", "nowhere"))
    tenant.wait("sales", is_ready)
    assert tenant.refresh_now("sales", "r1")["history"][0]["outcome"] == "SUCCESS"


def asked_by(account: str, tenant: Tenant, *, since: datetime) -> list[Json]:
    """What the account asked since then; before it was ready, the API server may not have heard of its role yet."""
    name = f"system:serviceaccount:{account}"
    entries = [entry for entry in audit(tenant.cluster) if entry["user"]["username"] == name]
    return [entry for entry in entries if datetime.fromisoformat(entry["requestReceivedTimestamp"]) > since]


def check(entries: list[Json]) -> None:
    assert entries
    # By the role's word, not by the answer: nothing is created in a namespace that another test is deleting.
    decision = "authorization.k8s.io/decision"
    assert [entry["requestURI"] for entry in entries if entry["annotations"][decision] != "allow"] == []
    asked: dict[tuple[str, str | None], set[str]] = {}
    for entry in entries:
        about = entry.get("objectRef")
        if about is not None and "resource" in about:
            asked.setdefault((about["resource"], about.get("subresource")), set()).add(entry["verb"])
    for place, verbs in asked.items():
        assert verbs <= ALLOWED.get(place, set()), (place, verbs)
    assert asked[("secrets", None)] == {"get"}
    assert all(
        entry["objectRef"].get("name") for entry in entries if entry.get("objectRef", {}).get("resource") == "secrets"
    )
