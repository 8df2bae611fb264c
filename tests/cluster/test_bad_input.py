"""Bad input: each gives a condition with a reason and an action, one event, and hurts no other policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sandbox.controlplane import KubectlFailed
from sandbox.operator_process import OperatorProcess
from sandbox.password import MARK
from sandbox.pgtemplate import SUPERUSER
from sandbox.processes import free_port
from tests.cluster.tenant import Json, Tenant, condition, database, is_ready, not_ready_because, policy
from tests.database import APP_OWNER, OTHER_TENANT


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is applied besides the good policy, and what the bad one says then."""

    reason: str
    says: str
    objects: Callable[[Tenant], list[Json]]
    stalled: bool = False
    arrange: Callable[[Tenant], Awaitable[None]] | None = None


def _bad(*views: str | Json, **spec: Any) -> Callable[[Tenant], list[Json]]:
    return lambda _: [policy("bad", *(views or ("mv",)), **spec)]


def _other(overrides: dict[str, str], spec: Json | None = None) -> Callable[[Tenant], list[Json]]:
    """A second MatviewDatabase whose Secret differs."""
    return lambda tenant: [
        tenant.secret("other", **overrides),
        database("other", spec),
        policy("bad", "mv", databaseRef={"name": "other"}),
    ]


async def _without_index(tenant: Tenant) -> None:
    await tenant.database.make_view("no_index", unique=False)


async def _strangers_view(tenant: Tenant) -> None:
    await tenant.database.execute_as(
        SUPERUSER,
        f"create materialized view foreign_mv as select 1 as id; "
        f"alter materialized view foreign_mv owner to {OTHER_TENANT}",
    )


async def _under_row_security(tenant: Tenant) -> None:
    await tenant.database.make_view("hidden")
    await tenant.database.execute_as(
        APP_OWNER, "alter table hidden_base enable row level security, force row level security"
    )


CASES = {
    "database-not-found": Case(
        reason="DatabaseNotFound", says="Create it", objects=_bad(databaseRef={"name": "nowhere"})
    ),
    "secret-not-found": Case(
        reason="SecretNotFound",
        says="Create it",
        objects=lambda _: [database("other"), policy("bad", "mv", databaseRef={"name": "other"})],
    ),
    "key-missing": Case(reason="SecretInvalid", says="'password'", objects=_other({"password": ""})),
    "wrong-password": Case(
        reason="AuthenticationFailed", says="28P01", objects=_other({"password": f"{MARK}-wrong-password"})
    ),
    "unknown-database": Case(
        reason="AuthenticationFailed", says="3D000", objects=_other({}, {"database": "no_such_db"})
    ),
    "server-down": Case(
        reason="ConnectionFailed",
        says="Cannot connect",
        objects=_other({"port": str(free_port())}),
    ),
    "no-tls": Case(reason="TlsFailed", says="does not offer TLS", objects=_other({}, {"sslMode": "require"})),
    "view-missing": Case(reason="ViewNotFound", says="no materialized view nowhere", objects=_bad("nowhere")),
    "a-table": Case(
        reason="NotMaterializedView", says="public.mv_base is a table", objects=_bad("mv_base"), stalled=True
    ),
    "no-unique-index": Case(
        reason="NoUniqueIndex",
        says="Create a unique index",
        objects=_bad("no_index", concurrently="Always"),
        stalled=True,
        arrange=_without_index,
    ),
    "not-allowed": Case(
        reason="PermissionDenied",
        says="GRANT MAINTAIN ON public.foreign_mv TO mv_operator;",
        objects=_bad("foreign_mv"),
        stalled=True,
        arrange=_strangers_view,
    ),
    "row-security": Case(
        reason="RowSecurityHazard",
        says="hidden_base as app_owner (FORCE)",
        objects=_bad("hidden"),
        stalled=True,
        arrange=_under_row_security,
    ),
    "invalid-cron": Case(
        reason="InvalidSpec", says="spec.schedule.cron", objects=_bad(schedule={"cron": "61 * * * *"}), stalled=True
    ),
    "unknown-zone": Case(
        reason="InvalidSpec",
        says="spec.schedule.timeZone",
        objects=_bad(schedule={"cron": "0 3 * * *", "timeZone": "Mars/Olympus"}),
        stalled=True,
    ),
    "timeout-over-limit": Case(
        reason="InvalidSpec",
        says="limits.timeoutSeconds",
        objects=_bad({"name": "mv", "timeoutSeconds": 3601}),
        stalled=True,
    ),
    "quotes-and-semicolons": Case(
        reason="ViewNotFound",
        says='mv"; drop table mv_base; --',
        objects=_bad('mv"; drop table mv_base; --'),
    ),
    "upper-case": Case(reason="ViewNotFound", says="upper case matters", objects=_bad("MV")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_bad_input_is_told_with_what_to_do(operator: OperatorProcess, tenant: Tenant, case: Case) -> None:
    await tenant.database.make_view()
    if case.arrange is not None:
        await case.arrange(tenant)
    tenant.connect()
    tenant.apply(policy("good", "mv"))
    tenant.wait("good", is_ready)
    tenant.apply(*case.objects(tenant))
    status = tenant.wait("bad", not_ready_because(case.reason), what=f"not ready because of {case.reason}")
    said = condition(status, "Ready")
    assert case.says in said["message"]
    assert bool(condition(status, "Stalled")) is case.stalled
    tenant.request("bad", "r1")  # whatever a request does, it repeats no event and changes nothing
    assert tenant.refresh_now("good", "r1")["history"][0]["outcome"] == "SUCCESS"
    told = [event for event in tenant.events("bad") if event["reason"] == case.reason]
    assert told
    assert {event["type"] for event in told} == {"Warning"}
    assert await tenant.database.value_as(APP_OWNER, "select count(*) from mv_base") == 3
    outputs = operator.log_text() + tenant.kubectl("get", "mvrp,mvdb,events", "-o", "yaml")
    assert f"{MARK}-wrong-password" not in outputs
    assert all(password not in outputs for password in tenant.database.passwords.values())


@pytest.mark.usefixtures("operator")
async def test_one_event_at_the_transition_only(tenant: Tenant) -> None:
    tenant.connect()
    tenant.apply(policy("bad", "nowhere", every=5))
    tenant.wait("bad", lambda status: (status.get("consecutiveFailures") or 0) >= 2, what="two failures")
    reasons = [event["reason"] for event in tenant.events("bad")]
    assert reasons.count("ViewNotFound") == 2, reasons  # Ready once and Fresh once
    status = tenant.get("bad")["status"]
    assert "Create it" in condition(status, "Ready")["message"]
    assert condition(status, "Fresh")["status"] == "False"
    # It is mended: the next slot finds out by itself.
    await tenant.database.make_view("nowhere")
    status = tenant.wait("bad", is_ready, what="ready again")
    assert status["consecutiveFailures"] == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"views": [{"name": "x" * 300}]}, "spec.views[0].name"),
        ({"views": []}, "spec.views"),
        ({"views": [{"name": "mv"}, {"name": "mv"}]}, "Duplicate value"),
        ({"schedule": {"cron": "* * * * *", "everySeconds": 5}}, "exactly one of"),
        ({"schedule": {"everySeconds": 4}}, "spec.schedule.everySeconds"),
        ({"isolation": "Tenant"}, "needs a tenantId"),
        ({"tenantId": "GLOBAL"}, "spec.tenantId"),
        ({"tenantSetting": "role"}, "spec.tenantSetting"),
        ({"tenantSetting": "App.Execution_Context"}, "spec.tenantSetting"),
        ({"databaseRef": {"name": "../x"}}, "spec.databaseRef.name"),
    ],
)
async def test_the_api_server_refuses_what_a_schema_can_tell(tenant: Tenant, spec: Json, words: str) -> None:
    with pytest.raises(KubectlFailed) as refused:
        tenant.apply(policy("bad", "mv", **spec))
    assert words in refused.value.stderr


@pytest.mark.usefixtures("operator")
async def test_odd_names_that_exist_are_refreshed(tenant: Tenant) -> None:
    names = ["Upper", 'qu"ote', "semi;colon", "naïve ünïcode ✓", "select", "$1", "a.b"]
    for name in names:
        await tenant.database.make_view(name, schema="Odd Schema")
    names.append("x" * 63)
    longest = f'"Odd Schema"."{names[-1]}"'
    await tenant.database.execute_as(
        APP_OWNER, f"create materialized view {longest} as select 1 as id; create unique index on {longest} (id)"
    )
    tenant.connect()
    tenant.apply(policy("odd", *({"schema": "Odd Schema", "name": name} for name in names)))
    status = tenant.refresh_now("odd", "r1")
    assert [(view["name"], view["outcome"]) for view in status["views"]] == [(name, "SUCCESS") for name in names]
