"""The CRDs in a real API server: what it fills in and stores, and what kubectl shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.controlplane import KubectlFailed
from tests.cluster.objects import DATABASE, POLICY, create, establish_crds, manifest_of, write_status

from matview_operator.api.crd import RESOURCES, crd
from matview_operator.api.database import MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.model import API_VERSION
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.reading import read_database_status, read_policy_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.controlplane import Cluster

TIME = "2026-11-22T10:00:00Z"
OTHER_GROUP = "zz.example.org"
"""Behind ours in the alphabet: kubectl resolves a bare plural to the first group that has it."""

pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture(scope="module")
def crds(control_plane: Cluster) -> None:
    establish_crds(control_plane)


def test_the_server_fills_in_what_the_models_default(control_plane: Cluster, namespace: str) -> None:
    policy = create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", POLICY))
    database = create(control_plane, namespace, manifest_of("MatviewDatabase", DATABASE))

    assert policy["spec"] == MatviewRefreshPolicySpec.model_validate(POLICY).to_document()
    assert database["spec"] == MatviewDatabaseSpec.model_validate(DATABASE).to_document()
    assert database["spec"]["limits"] == {"maxConcurrentRefreshes": 2, "minIntervalSeconds": 10, "timeoutSeconds": 3600}
    assert "status" not in policy


def test_a_written_null_means_not_written(control_plane: Cluster, namespace: str) -> None:
    nulls = {"tenantId": None, "historyLimit": None, "schedule": {"everySeconds": 30, "cron": None}}
    policy = create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", POLICY | nulls))
    nulls = {"limits": {"lockTimeoutMillis": None}}
    database = create(control_plane, namespace, manifest_of("MatviewDatabase", DATABASE | nulls))

    assert policy["spec"] == MatviewRefreshPolicySpec.model_validate(POLICY).to_document()
    assert database["spec"] == MatviewDatabaseSpec.model_validate(DATABASE).to_document()


def test_selectable_fields_select(control_plane: Cluster, namespace: str) -> None:
    for name, database, tenant in (("one", "analytics", "a"), ("two", "analytics", "b"), ("three", "other", "a")):
        spec = POLICY | {"databaseRef": {"name": database}, "tenantId": tenant}
        create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", spec, name=name))
    create(control_plane, namespace, manifest_of("MatviewDatabase", DATABASE))

    def select(kind: str, selector: str) -> list[str]:
        done = control_plane.run_kubectl("get", kind, "-n", namespace, f"--field-selector={selector}", "-o", "name")
        return [line.rpartition("/")[2] for line in done.stdout.splitlines()]

    assert select("mvrp", "spec.databaseRef.name=analytics") == ["one", "two"]
    assert select("mvrp", "spec.databaseRef.name=analytics,spec.tenantId=a") == ["one"]
    assert select("mvrp", "spec.tenantId!=a") == ["two"]
    assert select("mvdb", "spec.secretRef.name=analytics-app") == ["subject"]
    assert select("mvdb", "spec.secretRef.name=other") == []


CONDITIONS = [
    {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "As expected.",
        "lastTransitionTime": TIME,
        "observedGeneration": 1,
    }
    for kind, status, reason in (("Ready", "True", "Refreshed"), ("Fresh", "False", "LockHeld"))
]
POLICY_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": CONDITIONS,
    "schedule": "*/5 * * * * Europe/Berlin",
    "lastSlotTime": "2026-11-22T10:00:00.123456Z",
    "nextSlotTime": "2026-11-22T10:05:00Z",
    "missedSlots": 2,
    "consecutiveFailures": 1,
    "lastSuccessTime": TIME,
    "lastHandledRequest": "now!",
    "views": [
        {
            "schema": "public",
            "name": "mv_realtime_revenue",
            "outcome": "SKIPPED_LOCK_HELD",
            "reason": "ANewerOperatorsWord",
            "message": "Another session is refreshing the view.",
            "mode": "Concurrent",
            "correlationId": "c" * 128,
            "startedAt": TIME,
            "durationMs": 86_400_000,
            "dataAsOf": TIME,
            "verifiedAt": TIME,
            "rowsInserted": 10**12,
            "rowsDeleted": 0,
            "estimatedRows": 10**12,
            "sizeBytes": 10**15,
            "attempts": 4,
            "consecutiveFailures": 3,
        }
    ],
    "history": [
        {
            "request": "now!",
            "outcome": "SKIPPED_LOCK_HELD",
            "startedAt": TIME,
            "durationMs": 12,
            "views": 1,
            "failed": 0,
            "message": "Another session is refreshing the view.",
            "correlationId": "now!",
        },
        {
            "slotTime": TIME,
            "outcome": "SUCCESS",
            "startedAt": TIME,
            "durationMs": 7,
            "views": 1,
            "failed": 0,
            "correlationId": "9f0c",
        },
    ],
}
DATABASE_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": CONDITIONS[:1],
    "server": {
        "version": "18.4",
        "systemIdentifier": "7583947593847593847",
        "database": "analytics",
        "role": "matview_operator",
        "superuser": False,
        "inRecovery": False,
        "bookkeeping": "Installed",
    },
}


def test_rem_4_a_whole_status_survives_the_server_and_is_read_back(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", POLICY))
    create(control_plane, namespace, manifest_of("MatviewDatabase", DATABASE))
    policy = MatviewRefreshPolicyStatus.model_validate(POLICY_STATUS)
    database = MatviewDatabaseStatus.model_validate(DATABASE_STATUS)

    stored_policy = write_status(control_plane, namespace, "mvrp", policy.to_document())
    stored_database = write_status(control_plane, namespace, "mvdb", database.to_document())

    assert stored_policy["status"] == POLICY_STATUS
    assert stored_database["status"] == DATABASE_STATUS
    assert read_policy_status(stored_policy) == policy
    assert read_database_status(stored_database) == database


def test_the_schema_knows_the_outcomes_and_lets_reasons_grow(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", POLICY))
    unknown = [{"schema": "public", "name": "mv", "outcome": "TELEPORTED", "reason": "not a word"}]
    with pytest.raises(KubectlFailed) as caught:
        write_status(control_plane, namespace, "mvrp", {"views": unknown})
    assert "status.views[0].outcome: Unsupported value" in caught.value.stderr
    assert "status.views[0].reason: Invalid value" in caught.value.stderr


@pytest.fixture
def unwatched(control_plane: Cluster) -> Iterator[dict[str, str]]:
    """Both CRDs under another group, their names by kind: an operator on this cluster writes no status there."""
    names = {resource.model.KIND: f"{resource.model.PLURAL}.{OTHER_GROUP}" for resource in RESOURCES}
    for resource in RESOURCES:
        definition = crd(resource)
        definition["metadata"]["name"] = names[resource.model.KIND]
        definition["spec"]["group"] = OTHER_GROUP
        del definition["spec"]["names"]["shortNames"], definition["spec"]["names"]["categories"]
        establish_crds(control_plane, json.dumps(definition))
    yield names
    control_plane.run_kubectl("delete", "crd", *names.values())


def table_of(printed: str) -> dict[str, str]:
    """Return the cells of kubectl's one row by their headings."""
    header, row = printed.splitlines()
    starts = [0, *(n for n in range(3, len(header)) if header[n - 3 : n] == "   " and header[n] != " ")]
    ends = [*starts[1:], None]
    return {header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}


def test_kubectl_get_prints_the_columns(control_plane: Cluster, namespace: str, unwatched: dict[str, str]) -> None:
    def printed(kind: str, spec: dict[str, Any], status: dict[str, Any]) -> dict[str, str]:
        create(control_plane, namespace, manifest_of(kind, spec, api_version=f"{OTHER_GROUP}/v1beta1"))
        write_status(control_plane, namespace, unwatched[kind], status)
        return table_of(control_plane.run_kubectl("get", unwatched[kind], "-n", namespace).stdout)

    policy = printed("MatviewRefreshPolicy", POLICY | {"tenantId": "acme"}, POLICY_STATUS)
    database = printed("MatviewDatabase", DATABASE | {"suspend": True}, DATABASE_STATUS)

    assert list(policy)[:8] == [*"NAME READY FRESH REASON TENANT SCHEDULE SUSPENDED".split(), "LAST SUCCESS"]
    assert list(policy)[8:] == ["NEXT", "AGE"]
    assert policy | {"LAST SUCCESS": "", "AGE": ""} == {
        "NAME": "subject",
        "READY": "True",
        "FRESH": "False",
        "REASON": "Refreshed",
        "TENANT": "acme",
        "SCHEDULE": "*/5 * * * * Europe/Berlin",
        "SUSPENDED": "false",
        "LAST SUCCESS": "",
        "NEXT": "2026-11-22T10:05:00Z",
        "AGE": "",
    }
    assert policy["LAST SUCCESS"]
    assert database | {"AGE": ""} == {
        "NAME": "subject",
        "READY": "True",
        "REASON": "Refreshed",
        "VERSION": "18.4",
        "DATABASE": "analytics",
        "BOOKKEEPING": "Installed",
        "SUSPENDED": "true",
        "AGE": "",
    }


def test_both_kinds_are_one_category(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, manifest_of("MatviewRefreshPolicy", POLICY))
    create(control_plane, namespace, manifest_of("MatviewDatabase", DATABASE))
    listed = control_plane.run_kubectl("get", "matviews", "-n", namespace, "-o", "name").stdout.split()
    assert sorted(listed) == [
        "matviewdatabase.matviews.skeldir.io/subject",
        "matviewrefreshpolicy.matviews.skeldir.io/subject",
    ]


def test_kubectl_explain_reads_like_documentation(control_plane: Cluster) -> None:
    said = " ".join(control_plane.run_kubectl("explain", "mvrp.spec.schedule").stdout.split())
    assert "When the views are due." in said
    assert "A fixed interval in seconds, at least 5." in said
    assert "as in Europe/Berlin" in said
    isolation = " ".join(control_plane.run_kubectl("explain", "mvrp.spec.isolation").stdout.split())
    assert "rather than lose another tenant's rows" in isolation


def test_everything_that_kubectl_can_explain_is_explained(control_plane: Cluster) -> None:
    document = json.loads(control_plane.run_kubectl("get", "--raw", f"/openapi/v3/apis/{API_VERSION}").stdout)[
        "components"
    ]["schemas"]

    def unexplained(schema: dict[str, Any], path: str) -> list[str]:
        found = [] if schema.get("description") or path.endswith("[]") else [path]
        for name, part in schema.get("properties", {}).items():
            found += unexplained(part, f"{path}.{name}")
        return found + (unexplained(schema["items"], f"{path}[]") if "items" in schema else [])

    ours = [name for name in document if name.endswith((".MatviewDatabase", ".MatviewRefreshPolicy"))]
    assert len(ours) == 2
    for name in ours:
        properties = document[name]["properties"]
        assert unexplained(properties["spec"], "spec") + unexplained(properties["status"], "status") == []
