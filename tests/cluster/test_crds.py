"""The CRDs in a real API server: what it fills in, what it refuses and why, and what kubectl shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from matview_operator.api.crd import RESOURCES, crd
from matview_operator.api.database import MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.model import API_VERSION
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.reading import read_database_status, read_policy_status

if TYPE_CHECKING:
    from sandbox.controlplane import Cluster

ROOT = Path(__file__).parents[2]
DATABASE: dict[str, Any] = {"secretRef": {"name": "analytics-app"}}
POLICY: dict[str, Any] = {
    "databaseRef": {"name": "analytics"},
    "views": [{"name": "mv_realtime_revenue"}],
    "schedule": {"everySeconds": 30},
}
TIME = "2026-11-22T10:00:00Z"

pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture(scope="module")
def crds(control_plane: Cluster) -> None:
    control_plane.run_kubectl("apply", "-k", str(ROOT / "crds"))
    control_plane.run_kubectl(
        "wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in crd_names())
    )


def crd_names() -> list[str]:
    return [crd(resource)["metadata"]["name"] for resource in RESOURCES]


def manifest(kind: str, spec: dict[str, Any], name: str = "subject") -> str:
    return json.dumps({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})


def create(cluster: Cluster, namespace: str, kind: str, spec: dict[str, Any], name: str = "subject") -> dict[str, Any]:
    """Create an object and return it as stored."""
    done = cluster.run_kubectl("create", "-n", namespace, "-f", "-", "-o", "json", input=manifest(kind, spec, name))
    stored: dict[str, Any] = json.loads(done.stdout)
    return stored


@pytest.fixture(scope="module")
def refusals(control_plane: Cluster) -> dict[str, str]:
    """Try to create everything that must be refused, and return by name what the API server says."""
    manifests = [
        json.loads(manifest(kind, base_of(kind) | changes, name=f"case-{number}"))
        for number, (kind, changes, _) in enumerate(REFUSED)
    ]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    done = control_plane.run_kubectl("create", "--dry-run=server", "-f", "-", input=everything, check=False)
    said = re.split(r'"(case-\d+)" is invalid: ', done.stderr)
    return dict(zip(said[1::2], said[2::2], strict=True))


def cron(expression: str, zone: str = "Etc/UTC") -> dict[str, Any]:
    return {"schedule": {"cron": expression, "timeZone": zone}}


def view(name: str) -> dict[str, Any]:
    return {"views": [{"name": name}]}


NAME_TOO_LONG = "a PostgreSQL name has at most 63 bytes; write it as the catalogue has it"
NAME_WITH_NUL = "a PostgreSQL name cannot hold a NUL character"
FIVE_FIELDS = "cron takes five fields: minute hour day-of-month month day-of-week, as in */5 * * * *"
ZONE = "timeZone takes a name of the IANA time zone database, as in Etc/UTC or Europe/Berlin"
PRINTABLE = "tenantId takes 1 to 63 printable characters"
DOTTED = "tenantSetting takes the name of a setting with a dot, as in app.current_tenant_id"
RESERVED = "tenantSetting must not be app.execution_context, which the operator sets itself"
ONE_SCHEDULE = "write exactly one of schedule.cron and schedule.everySeconds"

BROKEN_RULES: list[tuple[str, dict[str, Any], str]] = [
    ("MatviewRefreshPolicy", {"schedule": {}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"cron": "* * * * *", "everySeconds": 30}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"cron": None, "everySeconds": None}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", cron("* * * * * *"), FIVE_FIELDS),
    ("MatviewRefreshPolicy", cron("@hourly and then"), FIVE_FIELDS),
    ("MatviewRefreshPolicy", cron("* * * * *\n* * * * *"), FIVE_FIELDS),
    ("MatviewRefreshPolicy", cron("* * * * *", "../../etc/passwd"), ZONE),
    ("MatviewRefreshPolicy", cron("* * * * *", "/Etc/UTC"), ZONE),
    (
        "MatviewRefreshPolicy",
        {"isolation": "Tenant"},
        "isolation Tenant needs a tenantId: write whose views these are, or use isolation Shared",
    ),
    (
        "MatviewRefreshPolicy",
        {"tenantId": "GLOBAL"},
        "tenantId must not be GLOBAL, which stands for no tenant; leave it out",
    ),
    ("MatviewRefreshPolicy", {"tenantId": "a\nb"}, PRINTABLE),
    ("MatviewRefreshPolicy", {"tenantId": "a\u202eb"}, PRINTABLE),
    ("MatviewRefreshPolicy", {"tenantSetting": "role"}, DOTTED),
    ("MatviewRefreshPolicy", {"tenantSetting": "app.tenant id"}, DOTTED),
    ("MatviewRefreshPolicy", {"tenantSetting": "app.execution_context"}, RESERVED),
    ("MatviewRefreshPolicy", {"tenantSetting": "App.EXECUTION_context"}, RESERVED),
    ("MatviewRefreshPolicy", view("é" * 32), NAME_TOO_LONG),
    ("MatviewRefreshPolicy", {"views": [{"schema": "é" * 32, "name": "mv"}]}, NAME_TOO_LONG),
    ("MatviewRefreshPolicy", view("a\0b"), NAME_WITH_NUL),
    ("MatviewDatabase", {"database": "é" * 32}, NAME_TOO_LONG),
    ("MatviewDatabase", {"database": "a\0b"}, NAME_WITH_NUL),
]

OUT_OF_BOUNDS: list[tuple[str, dict[str, Any], str]] = [
    ("MatviewRefreshPolicy", {"views": []}, "spec.views"),
    ("MatviewRefreshPolicy", {"views": [{"name": f"mv_{n}"} for n in range(101)]}, "must have at most 100 items"),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv"}, {"name": "mv"}]}, "spec.views[1]: Duplicate value"),
    ("MatviewRefreshPolicy", view("v" * 300), "spec.views[0].name: Too long"),
    ("MatviewRefreshPolicy", view(""), "spec.views[0].name"),
    ("MatviewRefreshPolicy", {"tenantId": "t" * 64}, "spec.tenantId: Too long"),
    ("MatviewRefreshPolicy", {"schedule": {"everySeconds": 4}}, "greater than or equal to 5"),
    ("MatviewRefreshPolicy", {"databaseRef": {"name": "../other"}}, "spec.databaseRef.name"),
    ("MatviewRefreshPolicy", {"concurrently": "Sometimes"}, 'supported values: "IfPossible", "Always", "Never"'),
    ("MatviewRefreshPolicy", {"historyLimit": 51}, "less than or equal to 50"),
    ("MatviewRefreshPolicy", {"startingDeadlineSeconds": 0}, "greater than or equal to 1"),
    ("MatviewDatabase", {"secretRef": {"name": "../x"}}, "spec.secretRef.name"),
    ("MatviewDatabase", {"secretRef": {"name": "UPPER"}}, "spec.secretRef.name"),
    ("MatviewDatabase", {"secretRef": {"name": "s" * 300}}, "spec.secretRef.name: Too long"),
    ("MatviewDatabase", {"sslMode": "prefer"}, "spec.sslMode: Unsupported value"),
    ("MatviewDatabase", {"limits": {"lockTimeoutMillis": 0}}, "greater than or equal to 1"),
]

REFUSED = [*BROKEN_RULES, *OUT_OF_BOUNDS]

TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("MatviewRefreshPolicy", cron("  30 2 * * MON-FRI ", "America/Argentina/Buenos_Aires")),
    ("MatviewRefreshPolicy", cron("0 0 L * 5#3", "Etc/GMT+5")),
    ("MatviewRefreshPolicy", {"tenantId": "Müller & Söhne, 東京", "isolation": "Tenant"}),
    ("MatviewRefreshPolicy", view('Odd"; drop table x --')),
    ("MatviewRefreshPolicy", view("é" * 31)),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "schema": "a"}, {"name": "mv", "schema": "b"}]}),
    ("MatviewRefreshPolicy", {"views": [{"name": f"{'v' * 60}{n}"} for n in range(100)]}),
    ("MatviewDatabase", {"sslMode": "verify-ca", "database": "Ünïcode"}),
]


def base_of(kind: str) -> dict[str, Any]:
    return {"MatviewDatabase": DATABASE, "MatviewRefreshPolicy": POLICY}[kind]


def test_the_server_fills_in_what_the_models_default(control_plane: Cluster, namespace: str) -> None:
    policy = create(control_plane, namespace, "MatviewRefreshPolicy", POLICY)
    database = create(control_plane, namespace, "MatviewDatabase", DATABASE)

    assert policy["spec"] == MatviewRefreshPolicySpec.model_validate(POLICY).to_document()
    assert database["spec"] == MatviewDatabaseSpec.model_validate(DATABASE).to_document()
    assert database["spec"]["limits"] == {"maxConcurrentRefreshes": 2, "timeoutSeconds": 3600}
    assert "status" not in policy


def test_a_written_null_means_not_written(control_plane: Cluster, namespace: str) -> None:
    policy = create(
        control_plane,
        namespace,
        "MatviewRefreshPolicy",
        POLICY | {"tenantId": None, "historyLimit": None, "schedule": {"everySeconds": 30, "cron": None}},
    )
    database = create(control_plane, namespace, "MatviewDatabase", DATABASE | {"limits": {"lockTimeoutMillis": None}})

    assert policy["spec"] == MatviewRefreshPolicySpec.model_validate(POLICY).to_document()
    assert database["spec"] == MatviewDatabaseSpec.model_validate(DATABASE).to_document()


@pytest.mark.parametrize(("kind", "changes"), TAKEN, ids=lambda value: repr(value)[:50])
def test_what_is_odd_but_right_is_taken(
    control_plane: Cluster, namespace: str, kind: str, changes: dict[str, Any]
) -> None:
    spec = create(control_plane, namespace, kind, base_of(kind) | changes)["spec"]
    model = MatviewDatabaseSpec if kind == "MatviewDatabase" else MatviewRefreshPolicySpec
    assert spec == model.model_validate(base_of(kind) | changes).to_document()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        pytest.param(number, message, id=f"{kind}-{changes!r}"[:60])
        for number, (kind, changes, message) in enumerate(REFUSED)
    ],
)
def test_a_mistake_is_refused_with_one_message(refusals: dict[str, str], number: int, message: str) -> None:
    said = refusals.get(f"case-{number}", "taken")
    assert message in said
    # A list of complaints only where the server adds that it did not come to the rules.
    assert not said.startswith("[") or "some validation rules were not checked" in said


def test_each_rule_of_the_crds_is_broken_above() -> None:
    messages: set[str] = set()

    def collect(schema: dict[str, Any]) -> None:
        messages.update(rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
        for part in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
            collect(part)

    for resource in RESOURCES:
        collect(crd(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert messages == {message for _, _, message in BROKEN_RULES}


def test_selectable_fields_select(control_plane: Cluster, namespace: str) -> None:
    for name, database, tenant in (("one", "analytics", "a"), ("two", "analytics", "b"), ("three", "other", "a")):
        spec = POLICY | {"databaseRef": {"name": database}, "tenantId": tenant}
        create(control_plane, namespace, "MatviewRefreshPolicy", spec, name)
    create(control_plane, namespace, "MatviewDatabase", DATABASE)

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


def write_status(
    cluster: Cluster, namespace: str, kind: str, status: dict[str, Any], *, check: bool = True
) -> dict[str, Any]:
    """Write a status as the operator does and return the object as stored."""
    patch = ["--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}", "-o", "json"]
    done = cluster.run_kubectl("patch", kind, "subject", "-n", namespace, *patch, check=check)
    stored: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"refused": done.stderr}
    return stored


def test_rem_4_a_whole_status_survives_the_server_and_is_read_back(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, "MatviewRefreshPolicy", POLICY)
    create(control_plane, namespace, "MatviewDatabase", DATABASE)
    policy = MatviewRefreshPolicyStatus.model_validate(POLICY_STATUS)
    database = MatviewDatabaseStatus.model_validate(DATABASE_STATUS)

    stored_policy = write_status(control_plane, namespace, "mvrp", policy.to_document())
    stored_database = write_status(control_plane, namespace, "mvdb", database.to_document())

    assert stored_policy["status"] == POLICY_STATUS
    assert stored_database["status"] == DATABASE_STATUS
    assert read_policy_status(stored_policy) == policy
    assert read_database_status(stored_database) == database


def test_the_schema_knows_the_outcomes_and_lets_reasons_grow(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, "MatviewRefreshPolicy", POLICY)
    unknown = [{"schema": "public", "name": "mv", "outcome": "TELEPORTED", "reason": "not a word"}]
    said = write_status(control_plane, namespace, "mvrp", {"views": unknown}, check=False)["refused"]
    assert "status.views[0].outcome: Unsupported value" in said
    assert "status.views[0].reason: Invalid value" in said


def test_kubectl_get_prints_the_columns(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, "MatviewRefreshPolicy", POLICY | {"tenantId": "acme"})
    create(control_plane, namespace, "MatviewDatabase", DATABASE | {"suspend": True})
    write_status(control_plane, namespace, "mvrp", POLICY_STATUS)
    write_status(control_plane, namespace, "mvdb", DATABASE_STATUS)

    def printed(kind: str) -> dict[str, str]:
        header, row = control_plane.run_kubectl("get", kind, "-n", namespace).stdout.splitlines()
        starts = [0, *(n for n in range(3, len(header)) if header[n - 3 : n] == "   " and header[n] != " ")]
        ends = [*starts[1:], None]
        return {header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}

    policy, database = printed("mvrp"), printed("mvdb")

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
    create(control_plane, namespace, "MatviewRefreshPolicy", POLICY)
    create(control_plane, namespace, "MatviewDatabase", DATABASE)
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
    for kind in ("mvrp", "mvdb"):
        said = control_plane.run_kubectl("explain", f"{kind}.status", "--recursive").stdout
        assert "conditions" in said
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
