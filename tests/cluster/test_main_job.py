"""The main way through: kubectl apply, timer, executor, REFRESH, status, events, metrics."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.conftest import REVISION
from tests.cluster.exposition import scrape
from tests.cluster.planes import MANIFESTS
from tests.cluster.tenant import Json, Tenant, condition, is_ready, policy
from tests.database import APP_OWNER

from matview_operator import __version__


async def test_h_e_a_tick_really_refreshes_and_is_told(operator: OperatorProcess, tenant: Tenant) -> None:
    await tenant.database.make_view(rows=3)
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=5, tenantId="acme"))
    tenant.wait("sales", is_ready, what="ready")
    await tenant.database.execute_as(
        APP_OWNER, "insert into mv_base values (4, 'b', 40); delete from mv_base where id = 1"
    )

    inserted = datetime.now(UTC)

    def is_fresh(status: Json) -> bool:
        return any(parsed(view["dataAsOf"]) > inserted for view in status.get("views", ()) if "dataAsOf" in view)

    status = tenant.wait("sales", is_fresh, what="fresh as of the change")
    assert condition(status, "Fresh")["status"] == "True"
    rows = await tenant.database.fetch_as(APP_OWNER, "select id from mv order by id")
    assert [row["id"] for row in rows] == [2, 3, 4]
    (view,) = status["views"]
    assert (view["schema"], view["name"], view["outcome"], view["mode"]) == ("public", "mv", "SUCCESS", "Concurrent")
    ledger = await tenant.database.fetch_as(
        SUPERUSER, "select slot_id, outcome, rows_inserted, rows_deleted from matview_ops.refresh_run order by run_id"
    )
    assert {row["outcome"] for row in ledger} == {"SUCCESS"}
    assert sum(row["rows_inserted"] for row in ledger) == 1
    assert sum(row["rows_deleted"] for row in ledger) == 1
    slots = [row["slot_id"] for row in ledger]
    assert len(slots) == len(set(slots))
    assert all(re.fullmatch(r"slot:[0-9-]{10}T[0-9:]{7}[05]Z", slot) for slot in slots), slots
    assert parsed(status["lastSlotTime"]).timestamp() % 5 == 0
    assert (parsed(status["nextSlotTime"]) - parsed(status["lastSlotTime"])).total_seconds() % 5 == 0
    assert status["schedule"] == "every 5s"
    assert [event["reason"] for event in tenant.events("sales")] == ["Scheduled", "Refreshed"]
    loaded = [
        line
        for line in log_of(operator)
        if line.get("action") == "schedule_loaded" and line["policy"] == f"{tenant.namespace}/sales"
    ]
    assert loaded[0]["schedule"] == "every 5s"
    assert loaded[0]["next_slot"]


async def test_columns_say_what_matters(operator: OperatorProcess, tenant: Tenant) -> None:  # noqa: ARG001 - it has to run
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", tenantId="acme", schedule={"cron": "0 3 * * *", "timeZone": "Europe/Berlin"}))
    tenant.wait("sales", is_ready)
    head, row = tenant.kubectl("get", "mvrp").splitlines()
    assert re.split(r"\s{2,}", head.strip()) == [
        "NAME",
        "READY",
        "FRESH",
        "REASON",
        "TENANT",
        "SCHEDULE",
        "SUSPENDED",
        "LAST SUCCESS",
        "NEXT",
        "AGE",
    ]
    assert re.split(r"\s{2,}", row)[:7] == [
        "sales",
        "True",
        "Unknown",
        "Scheduled",
        "acme",
        "0 3 * * * Europe/Berlin",
        "false",
    ]
    tenant.refresh_now("sales", "now")
    row = tenant.kubectl("get", "mvrp", "--no-headers")
    assert re.split(r"\s{2,}", row)[1:3] == ["True", "True"]


async def test_no_run_on_apply_and_no_write_when_idle(operator: OperatorProcess, tenant: Tenant) -> None:  # noqa: ARG001 - it has to run
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("idle", "mv"))
    first = tenant.wait("idle", is_ready)
    assert condition(first, "Fresh")["status"] == "Unknown"
    assert condition(first, "Fresh")["reason"] == "NotYetRun"
    version = tenant.get("idle")["metadata"]["resourceVersion"]
    tenant.kubectl("annotate", "mvrp", "idle", "somebody.else/note=hello")
    tenant.kubectl("label", "mvrp", "idle", "colour=blue")
    tenant.refresh_now("idle", "r1")
    after = tenant.get("idle")
    assert after["metadata"]["resourceVersion"] != version
    assert "finalizers" not in after["metadata"]
    assert not any("kopf" in key for key in after["metadata"]["annotations"])
    assert await tenant.database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 1
    writes = [entry for entry in tenant.audited() if entry["verb"] not in ("get", "list", "watch")]
    # Ready once; the request taken up and answered. Nobody else's label or annotation makes a write.
    assert [entry["verb"] for entry in writes if entry["objectRef"]["resource"] == "matviewrefreshpolicies"] == [
        "patch"
    ] * 3
    assert {
        entry["objectRef"].get("subresource") for entry in writes if "events" not in entry["objectRef"]["resource"]
    } == {"status"}


async def test_correlation_a_request_is_one_run_under_its_token(operator: OperatorProcess, tenant: Tenant) -> None:
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", suspend=True))
    tenant.wait("sales", is_ready)
    status = tenant.refresh_now("sales", "deploy-42")
    (entry,) = status["history"]
    assert (entry["request"], entry["outcome"], entry["correlationId"]) == ("deploy-42", "SUCCESS", "deploy-42")
    assert status["views"][0]["correlationId"] == "deploy-42"
    assert not any(found["type"] == "Reconciling" for found in status["conditions"])
    recorded = await tenant.database.fetch_as(SUPERUSER, "select slot_id, correlation_id from matview_ops.refresh_run")
    assert [tuple(row.values()) for row in recorded] == [("request:deploy-42", "deploy-42")]
    lines = [line for line in log_of(operator) if line.get("correlation_id") == "deploy-42"]
    assert {line["action"] for line in lines} >= {"lock_acquired", "refresh"}
    assert all({"view_key", "tenant_key", "view_name", "tenant_token"} <= line.keys() for line in lines)

    tenant.request("sales", "two words")
    tenant.refresh_now("sales", "deploy-43")
    assert [event["type"] for event in tenant.events("sales") if event["reason"] == "InvalidRequest"] == ["Warning"]
    assert await tenant.database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 2


async def test_metrics_policy_no_tenant_in_labels_and_series_end_with_the_policy(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    await tenant.database.make_view()
    tenant.connect()
    tenant.apply(policy("sales", "mv", tenantId="secret-tenant-name"))
    tenant.wait("sales", is_ready)
    tenant.refresh_now("sales", "r1")
    place = f'namespace="{tenant.namespace}"'
    text = scrape(operator)
    assert f'matview_runs_total{{{place},outcome="SUCCESS",policy="sales",reason=""}} 1.0' in text
    assert re.search(rf'matview_seconds_since_verified{{{place},policy="sales"}} \d', text)
    assert "secret-tenant-name" not in text
    assert "matview_build_info{" in text
    tenant.kubectl("delete", "mvrp", "sales")
    for _ in range(50):
        if place + ",policy" not in (text := scrape(operator)) and f"{place},outcome" not in text:
            break
    else:
        raise AssertionError(text)


async def test_evidence_the_metrics_name_the_build_and_ci_its_commit(operator: OperatorProcess) -> None:
    assert f'matview_build_info{{revision="{REVISION}",version="{__version__}"}} 1.0' in scrape(operator)
    assert "git rev-parse HEAD" in (MANIFESTS.parent / ".ci" / "run").read_text()
    dockerfile = (MANIFESTS.parent / "Dockerfile").read_text()
    assert re.search(r"^ARG REVISION", dockerfile, re.MULTILINE)
    assert re.search(r"MATVIEW_REVISION=.*\$\{?REVISION", dockerfile)


def log_of(operator: OperatorProcess) -> list[dict[str, Any]]:
    """Every line is a JSON object."""
    return [json.loads(line) for line in operator.log_text().splitlines()]


def parsed(text: str) -> datetime:
    return datetime.fromisoformat(text)
