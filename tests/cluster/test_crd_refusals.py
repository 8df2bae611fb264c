"""What the API server refuses, with which words, and what it takes although it is odd."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.cluster.objects import MINIMAL, create, establish_crds, manifest_of

from matview_operator.api.crd import RESOURCES, crd
from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.policy import MatviewRefreshPolicySpec

if TYPE_CHECKING:
    from sandbox.controlplane import Cluster

pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture(scope="module")
def crds(control_plane: Cluster) -> None:
    establish_crds(control_plane)


def cron(expression: str, zone: str = "Etc/UTC") -> dict[str, Any]:
    return {"schedule": {"cron": expression, "timeZone": zone}}


def view(name: str) -> dict[str, Any]:
    return {"views": [{"name": name}]}


def window(**changes: Any) -> dict[str, Any]:
    return {"windows": [{"kind": "Deny", "cron": "0 8 * * MON-FRI", "durationSeconds": 3600} | changes]}


NAME_TOO_LONG = "a PostgreSQL name has at most 63 bytes; write it as the catalogue has it"
NAME_WITH_NUL = "a PostgreSQL name cannot hold a NUL character"
FIVE_FIELDS = "cron takes five fields: minute hour day-of-month month day-of-week, as in */5 * * * *"
ZONE = "timeZone takes a name of the IANA time zone database, as in Etc/UTC or Europe/Berlin"
PRINTABLE = "tenantId takes 1 to 63 printable characters"
DOTTED = "tenantSetting takes the name of a setting with a dot, as in app.current_tenant_id"
RESERVED = "tenantSetting must not be app.execution_context, which the operator sets itself"
OWN_SCHEMAS = "searchPath takes schemas of yours: pg_catalog comes first and pg_temp last anyway, and $user is none"
NO_GROUP = "consistency Group and concurrently Never exclude each other: readers would wait for the whole group"
ONE_SCHEDULE = "write exactly one of schedule.cron, schedule.everySeconds and schedule.maxStalenessSeconds"
NO_JITTER = "jitterSeconds and schedule.maxStalenessSeconds exclude each other: its slots are spread by themselves"
SHORT_JITTER = "jitterSeconds must be no more than schedule.everySeconds"
SHORT_BACKOFF = "retry.backoffSeconds must not be more than retry.maxBackoffSeconds: raise the one or lower the other"
ONE_GUARD = "write at least one of guard.minRows, guard.maxRowLossPercent and guard.keepTenants"

BROKEN_RULES: list[tuple[str, dict[str, Any], str]] = [
    ("MatviewRefreshPolicy", {"schedule": {}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"cron": "* * * * *", "everySeconds": 30}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"cron": None, "everySeconds": None}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "guard": {}}]}, ONE_GUARD),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "guard": {"keepTenants": "é" * 32}}]}, NAME_TOO_LONG),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "guard": {"keepTenants": "a\0b"}}]}, NAME_WITH_NUL),
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
    ("MatviewRefreshPolicy", {"schedule": {"cron": "* * * * *", "maxStalenessSeconds": 30}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"everySeconds": 30, "maxStalenessSeconds": 30}}, ONE_SCHEDULE),
    ("MatviewRefreshPolicy", {"schedule": {"everySeconds": 30}, "jitterSeconds": 31}, SHORT_JITTER),
    ("MatviewRefreshPolicy", {"schedule": {"maxStalenessSeconds": 30}, "jitterSeconds": 1}, NO_JITTER),
    ("MatviewRefreshPolicy", {"consistency": "Group", "concurrently": "Never"}, NO_GROUP),
    ("MatviewRefreshPolicy", {"retry": {"backoffSeconds": 700}}, SHORT_BACKOFF),
    ("MatviewRefreshPolicy", {"retry": {"maxBackoffSeconds": 9}}, SHORT_BACKOFF),
    (
        "MatviewRefreshPolicy",
        {"consistency": "Group", "views": [{"name": "a"}, {"name": "b", "concurrently": "Never"}]},
        NO_GROUP,
    ),
    ("MatviewRefreshPolicy", view("é" * 32), NAME_TOO_LONG),
    ("MatviewRefreshPolicy", {"views": [{"schema": "é" * 32, "name": "mv"}]}, NAME_TOO_LONG),
    ("MatviewRefreshPolicy", view("a\0b"), NAME_WITH_NUL),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "dependsOn": [{"name": "é" * 32}]}]}, NAME_TOO_LONG),
    ("MatviewDatabase", {"database": "é" * 32}, NAME_TOO_LONG),
    ("MatviewDatabase", {"database": "a\0b"}, NAME_WITH_NUL),
    ("MatviewDatabase", {"searchPath": ["é" * 32]}, NAME_TOO_LONG),
    ("MatviewDatabase", {"searchPath": ["pg_temp"]}, OWN_SCHEMAS),
    ("MatviewDatabase", {"searchPath": ["app", "pg_temp_3"]}, OWN_SCHEMAS),
    ("MatviewDatabase", {"searchPath": ["$user"]}, OWN_SCHEMAS),
    ("MatviewDatabase", window(cron="0 8 * * * *"), FIVE_FIELDS),
    ("MatviewDatabase", window(timeZone="../../etc/passwd"), ZONE),
]

OUT_OF_BOUNDS: list[tuple[str, dict[str, Any], str]] = [
    ("MatviewRefreshPolicy", {"views": []}, "spec.views"),
    ("MatviewRefreshPolicy", {"views": [{"name": f"mv_{n}"} for n in range(101)]}, "must have at most 100 items"),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv"}, {"name": "mv"}]}, "spec.views[1]: Duplicate value"),
    (
        "MatviewRefreshPolicy",
        {"views": [{"name": "mv", "dependsOn": [{"name": "a"}, {"schema": "public", "name": "a"}]}]},
        "spec.views[0].dependsOn[1]: Duplicate value",
    ),
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
    ("MatviewDatabase", {"caRef": {"name": "../x"}}, "spec.caRef.name"),
    ("MatviewDatabase", {"caRef": {"name": "a/b"}}, "spec.caRef.name"),
    ("MatviewDatabase", {"caRef": {"name": "ca", "key": "a/b"}}, "spec.caRef.key"),
    ("MatviewDatabase", {"caRef": {"key": "ca.crt"}}, "spec.caRef.name: Required value"),
    ("MatviewDatabase", {"secretKeys": {"host": ""}}, "spec.secretKeys.host"),
    ("MatviewDatabase", {"secretKeys": {"password": "a b"}}, "spec.secretKeys.password"),
    ("MatviewDatabase", {"secretKeys": {"tlsKey": "k" * 254}}, "spec.secretKeys.tlsKey: Too long"),
    ("MatviewDatabase", {"sslMode": "prefer"}, "spec.sslMode: Unsupported value"),
    ("MatviewDatabase", {"searchPath": ["s"] * 17}, "must have at most 16 items"),
    ("MatviewRefreshPolicy", {"analyze": "Always"}, 'supported values: "Auto", "Never"'),
    ("MatviewDatabase", {"limits": {"lockTimeoutMillis": 0}}, "greater than or equal to 1"),
    ("MatviewRefreshPolicy", {"retry": {"limit": 21}}, "less than or equal to 20"),
    ("MatviewDatabase", {"inventory": {"checkIntervalSeconds": 29}}, "greater than or equal to 30"),
    ("MatviewDatabase", window(kind="Perhaps"), 'supported values: "Allow", "Deny"'),
    ("MatviewDatabase", window(durationSeconds=59), "greater than or equal to 60"),
    ("MatviewDatabase", window(durationSeconds=604_801), "less than or equal to 604800"),
    ("MatviewDatabase", {"windows": window()["windows"] * 51}, "must have at most 50 items"),
]

REFUSED = [*BROKEN_RULES, *OUT_OF_BOUNDS]

TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("MatviewRefreshPolicy", cron("  30 2 * * MON-FRI ", "America/Argentina/Buenos_Aires")),
    ("MatviewRefreshPolicy", cron("0 0 L * 5#3", "Etc/GMT+5")),
    ("MatviewRefreshPolicy", {"tenantId": "Müller & Söhne, 東京", "isolation": "Tenant"}),
    ("MatviewRefreshPolicy", view('Odd"; drop table x --')),
    ("MatviewRefreshPolicy", view("é" * 31)),
    ("MatviewRefreshPolicy", {"retry": {"limit": 0, "backoffSeconds": 600}}),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "schema": "a"}, {"name": "mv", "schema": "b"}]}),
    ("MatviewRefreshPolicy", {"views": [{"name": f"{'v' * 60}{n}"} for n in range(100)]}),
    ("MatviewRefreshPolicy", {"views": [{"name": "mv", "dependsOn": [{"name": f"d{n}"} for n in range(100)]}]}),
    ("MatviewDatabase", {"searchPath": ["app", 'Odd, "name"; --']}),
    ("MatviewDatabase", {"sslMode": "verify-ca", "database": "Ünïcode"}),
    ("MatviewDatabase", {"windows": window(timeZone="Europe/Berlin")["windows"] * 50}),
]


@pytest.fixture(scope="module")
def refusals(control_plane: Cluster) -> dict[str, str]:
    """Try to create everything that must be refused, and return by name what the API server says."""
    manifests = [
        manifest_of(kind, MINIMAL[kind] | changes, name=f"case-{number}")
        for number, (kind, changes, _) in enumerate(REFUSED)
    ]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    # Without kubectl's own validation, which sends nothing at all for one missing field.
    done = control_plane.run_kubectl(
        "create", "--dry-run=server", "--validate=false", "-f", "-", input=everything, check=False
    )
    said = re.split(r'"(case-\d+)" is invalid: ', done.stderr)
    return dict(zip(said[1::2], said[2::2], strict=True))


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


@pytest.mark.parametrize(("kind", "changes"), TAKEN, ids=lambda value: repr(value)[:50])
def test_what_is_odd_but_right_is_taken(
    control_plane: Cluster, namespace: str, kind: str, changes: dict[str, Any]
) -> None:
    spec = create(control_plane, namespace, manifest_of(kind, MINIMAL[kind] | changes))["spec"]
    model = MatviewDatabaseSpec if kind == "MatviewDatabase" else MatviewRefreshPolicySpec
    assert spec == model.model_validate(MINIMAL[kind] | changes).to_document()
