"""Secrets as they are, and servers with TLS, through the operator: what it reads, says, and never asks for."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sandbox.certificate import Authority
from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from sandbox.postgres import PostgresServer
from tests.cluster.objects import establish_crds
from tests.cluster.tenant import Json, Tenant, audit, condition, database, is_ready, policy
from tests.database import APP_OWNER, MV_OPERATOR, Database
from tests.databases import Databases
from tests.refreshes import GatedView

CANARY = "canary-of-a-secret"


def secret(name: str, **data: str | bytes) -> Json:
    """A Secret with any bytes in it; two underscores in a key's name are a dot."""
    encoded = {
        key.replace("__", "."): base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()
        for key, value in data.items()
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def replace_secret(tenant: Tenant, document: Json) -> None:
    """As `apply`, which could not: it would write the whole Secret into an annotation, too."""
    item = {**document, "metadata": {"namespace": tenant.namespace, **document["metadata"]}}
    tenant.cluster.run_kubectl(
        "delete", "secret", item["metadata"]["name"], "-n", tenant.namespace, "--ignore-not-found"
    )
    tenant.cluster.run_kubectl("create", "-f", "-", input=json.dumps(item))


def end(status: Json) -> tuple[str, str, str]:
    """Outcome, reason and message of the newest run of the only view."""
    (view,) = status["views"]
    return view["outcome"], view.get("reason", ""), view.get("message", "")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL 15 that lets nobody in without TLS."""
    with PostgresServer.start(
        version=15, directory=tmp_path_factory.mktemp("pg15"), tls=True, in_memory=True
    ) as server:
        server.pg_hba_prepend([f"hostnossl all {MV_OPERATOR} all reject"])
        yield server


@pytest.fixture
async def tls_database(tls_server: PostgresServer) -> AsyncIterator[Database]:
    async with Databases(tls_server).lend("bare") as made:
        await made.make_view()
        yield made


@pytest.mark.usefixtures("operator")
async def test_a_secret_with_other_keys_and_a_ca_of_its_own_over_verified_tls(
    tenant: Tenant, tls_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = tls_database.server
    assert server.ca is not None
    keys = {
        "host": "PGHOST",
        "port": "PGPORT",
        "dbname": "PGDATABASE",
        "username": "PGUSER",
        "password": "PGPASSWORD",
    }
    password = tls_database.passwords[MV_OPERATOR]
    values = ("localhost", str(server.port), tls_database.name, MV_OPERATOR, password)
    spec = {"secretKeys": keys, "caRef": {"name": "analytics-ca", "key": "bundle.pem"}, "sslMode": "verify-full"}
    right = secret("analytics-ca", bundle__pem=server.ca.read_text(), ca__key=b"\xff\xfe never read as text")
    tenant.apply(
        secret("analytics-app", **dict(zip(keys.values(), values, strict=True)), keystore__p12=b"\xff"),
        right,
        database("analytics", spec),
        policy("sales", "mv"),
    )
    tenant.wait("sales", is_ready)
    assert end(tenant.refresh_now("sales", "right"))[0] == "SUCCESS"
    other = Authority.make(tmp_path_factory.mktemp("authority")).own.ca.read_text()
    for token, document, reason, says in (
        ("other", secret("analytics-ca", bundle__pem=other), "TlsFailed", "signed by no CA that is trusted"),
        ("none", secret("analytics-ca", bundle__pem=CANARY), "SecretInvalid", "key bundle.pem of Secret analytics-ca"),
        ("bytes", secret("analytics-ca", bundle__pem=b"\xff"), "SecretInvalid", "'bundle.pem' is not UTF-8"),
        (
            "missing",
            secret("analytics-ca", ca__crt=other),
            "SecretInvalid",
            "no key 'bundle.pem', which spec.caRef.key",
        ),
    ):
        replace_secret(tenant, document)
        outcome, why, message = end(tenant.refresh_now("sales", token))
        assert (outcome, why) == ("FAILED", reason), message
        assert says in message
        assert CANARY not in message
    tenant.kubectl("delete", "secret", "analytics-ca")
    outcome, why, message = end(tenant.refresh_now("sales", "gone"))
    assert (outcome, why) == ("FAILED", "SecretNotFound")
    assert "correct spec.caRef.name" in message
    tenant.apply(right)
    assert end(tenant.refresh_now("sales", "again"))[0] == "SUCCESS"


async def test_faults_15_whatever_a_secret_holds_its_key_is_told_and_never_its_value(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv"))
    tenant.wait("sales", is_ready)
    good: dict[str, str] = tenant.secret()["stringData"]
    for token, changes, key in (
        ("nul", {"password": f"{CANARY}\0"}, "password"),
        ("crlf", {"password": f"{CANARY}\r\n"}, "password"),
        ("bytes", {"password": CANARY.encode() + b"\xff"}, "'password'"),
        ("mebibyte", {"password": CANARY * 50_000}, "'password'"),
        ("port", {"port": CANARY}, "port"),
        ("host", {"host": f"/{CANARY}"}, "host"),
        ("hosts", {"host": f"{CANARY},{CANARY}"}, "host"),
        ("uri", {"host": "", "uri": f"postgresql://u:{CANARY}@h/d?passfile={CANARY}"}, "passfile"),
        ("no-key", {"password": None}, "'password'"),
        ("half", {"tls.crt": CANARY}, "tls.crt without tls.key"),
        ("no-certificate", {"tls.crt": CANARY, "tls.key": CANARY}, "tls.key"),
    ):
        data = {name: value for name, value in {**good, **changes}.items() if value is not None}
        replace_secret(tenant, secret("analytics-app", **{name.replace(".", "__"): data[name] for name in data}))
        if token == "no-certificate":  # only TLS looks at it
            tenant.apply(database("analytics", {"sslMode": "require"}))
        outcome, why, message = end(tenant.refresh_now("sales", token))
        assert (outcome, why) == ("FAILED", "SecretInvalid"), message
        assert key in message
        assert len(message) < 400
    tenant.kubectl("delete", "secret", "analytics-app")
    assert end(tenant.refresh_now("sales", "gone"))[1] == "SecretNotFound"
    assert CANARY not in operator.log_text() + tenant.kubectl("get", "mvrp,mvdb,events", "-o", "yaml")


@pytest.mark.usefixtures("operator")
async def test_faults_15_a_rotated_secret_serves_the_next_slot_and_not_the_run_in_flight(tenant: Tenant) -> None:
    role = "rotating"
    await tenant.database.allow_login(role)
    await tenant.database.execute_as(SUPERUSER, f"grant {APP_OWNER} to {role}")
    gated = await GatedView.make(tenant.database)
    tenant.connect(role=role)
    tenant.apply(policy("sales", "gated"))
    tenant.wait("sales", is_ready)
    assert end(tenant.refresh_now("sales", "before"))[0] == "SUCCESS"
    await gated.shut()
    tenant.request("sales", "in-flight")
    await gated.reached()
    tenant.apply(tenant.secret(role=role, password=CANARY))
    await gated.open()
    answered = tenant.wait("sales", lambda status: status.get("lastHandledRequest") == "in-flight")
    assert end(answered)[0] == "SUCCESS"
    assert end(tenant.refresh_now("sales", "wrong"))[1] == "AuthenticationFailed"
    await tenant.database.execute_as(SUPERUSER, f"alter role {role} password '{CANARY}'")
    assert end(tenant.refresh_now("sales", "rotated"))[0] == "SUCCESS"


@pytest.mark.usefixtures("operator")
async def test_faults_15_a_secret_is_got_once_for_a_slot_and_a_rotated_one_serves_the_slot_that_is_refused(
    tenant: Tenant,
) -> None:
    role = "rotating_in_a_slot"
    await tenant.database.allow_login(role)
    await tenant.database.execute_as(SUPERUSER, f"grant {APP_OWNER} to {role}")
    gated = await GatedView.make(tenant.database)
    before = [(await tenant.database.make_view(f"before_{number}")).name for number in range(10)]
    await tenant.database.make_view("after")
    tenant.connect(role=role)
    tenant.apply(policy("sales", *before, "gated", "after", retry={"limit": 0}))
    tenant.wait("analytics", is_ready, kind="mvdb")
    tenant.wait("sales", is_ready)

    read = gets(tenant)
    status = tenant.refresh_now("sales", "calm")
    assert [view["outcome"] for view in status["views"]] == ["SUCCESS"] * 12
    assert gets(tenant) == read + 1

    await gated.shut()
    tenant.request("sales", "rotated")
    pid = await gated.reached()
    assert gets(tenant) == read + 2
    await tenant.database.execute_as(SUPERUSER, f"alter role {role} password '{CANARY}'")
    tenant.apply(tenant.secret(role=role, password=CANARY))
    # A connection that is let in stays so: only after this one the next view needs the password.
    await tenant.database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid:d})")
    status = tenant.wait("sales", lambda status: status.get("lastHandledRequest") == "rotated")
    assert [view["outcome"] for view in status["views"]] == ["SUCCESS"] * 10 + ["INTERRUPTED", "SUCCESS"]

    await gated.open()
    status = tenant.refresh_now("sales", "again")
    assert [view["outcome"] for view in status["views"]] == ["SUCCESS"] * 12


@pytest.mark.usefixtures("operator")
async def test_what_is_due_at_one_instant_finds_its_connections_open(tenant: Tenant) -> None:
    views = [(await tenant.database.make_view(f"view_{number}")).name for number in range(3)]
    tenant.connect(spec={"limits": {"maxConcurrentRefreshes": 3, "minIntervalSeconds": 0}})
    tenant.apply(*(policy(view.replace("_", "-"), view, every=10) for view in views))
    first = tenant.wait("view-0", lambda status: status.get("lastSlotTime"))["lastSlotTime"]
    following = datetime.fromisoformat(first) + timedelta(seconds=10)
    await asyncio.sleep((following - datetime.now(UTC)).total_seconds() - 0.1)
    opened = await tenant.database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity where datname = current_database() and usename = $1"
        " and $2 - backend_start between interval '0' and interval '1 second'",
        MV_OPERATOR,
        following,
    )
    assert opened == len(views)


def gets(tenant: Tenant) -> int:
    """How often the operator has asked the API server for the namespace's Secrets."""
    return sum(
        entry["objectRef"]["resource"] == "secrets" and entry["verb"] == "get" and entry["stage"] == "ResponseComplete"
        for entry in tenant.audited()
    )


@contextmanager
def without_rules_for_names(tenant: Tenant) -> Iterator[None]:
    """The CRD of an installation whose schema somebody weakened, or that is older than its rules."""
    crd = "matviewdatabases.matviews.skeldir.io"
    spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"
    patch = [
        {"op": "replace", "path": f"{spec}/{ref}/properties/name", "value": {"type": "string"}}
        for ref in ("secretRef", "caRef")
    ]
    tenant.cluster.run_kubectl("patch", "crd", crd, "--type=json", f"--patch={json.dumps(patch)}")
    try:
        yield
    finally:
        establish_crds(tenant.cluster)


@pytest.mark.usefixtures("operator")
async def test_faults_19_no_request_is_made_of_a_name_that_is_none_or_of_another_namespace(tenant: Tenant) -> None:
    begun = datetime.now(UTC)
    bad = ["../x", "../../kube-system/secrets/x", "UPPER", "s" * 300, "other/secret", "x%2fy", "..", "a?b", "a b"]
    kinds = ("secret", "ca")
    tenant.connect()
    tenant.wait("analytics", is_ready, kind="mvdb")
    with without_rules_for_names(tenant):
        tenant.apply(
            *(database(f"secret-{number}", {"secretRef": {"name": name}}) for number, name in enumerate(bad)),
            *(
                database(f"ca-{number}", {"secretRef": {"name": "analytics-app"}, "caRef": {"name": name}})
                for number, name in enumerate(bad)
            ),
        )
        for number in range(len(bad)):
            for kind in kinds:
                status = tenant.wait(f"{kind}-{number}", lambda status: condition(status, "Stalled"), kind="mvdb")
                said = condition(status, "Stalled")
                assert said["reason"] == "InvalidSpec"
                assert f"spec.{kind}Ref.name: must " in said["message"]
        tenant.kubectl("delete", "mvdb", *(f"{kind}-{number}" for kind in kinds for number in range(len(bad))))
    # There is no field for a namespace, so that one is dropped, and the Secret of this namespace is meant.
    elsewhere = database("elsewhere", {"secretRef": {"name": "analytics-app", "namespace": "kube-system"}})
    manifest = {**elsewhere, "metadata": {"name": "elsewhere", "namespace": tenant.namespace}}
    tenant.cluster.run_kubectl("create", "--validate=false", "-f", "-", input=json.dumps(manifest))
    tenant.wait("elsewhere", is_ready, kind="mvdb")
    asked = [
        entry
        for entry in audit(tenant.cluster)
        if "/secrets" in entry["requestURI"] and datetime.fromisoformat(entry["requestReceivedTimestamp"]) > begun
    ]
    assert asked
    assert {entry["requestURI"].partition("?")[0] for entry in asked} == {
        f"/api/v1/namespaces/{tenant.namespace}/secrets/analytics-app"
    }
