"""Every rule of a spec, checked by the operator itself, with a message that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from matview_operator.api.database import DatabaseLimits
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.domain.reading import InvalidObject, read_database, read_policy
from matview_operator.domain.spec_check import check_policy, check_timeouts

METADATA = {"name": "revenue", "namespace": "tenant-a", "uid": "4f0c", "generation": 3}
SPEC: dict[str, Any] = {
    "databaseRef": {"name": "analytics"},
    "views": [{"name": "mv_realtime_revenue"}],
    "schedule": {"everySeconds": 30},
}
WINDOW = {"kind": "Deny", "cron": "0 8 * * *", "durationSeconds": 3600}


def cron(expression: str, zone: str = "Etc/UTC") -> dict[str, Any]:
    return {"schedule": {"cron": expression, "timeZone": zone}}


def problems_of_policy(changes: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(InvalidObject) as caught:
        read_policy({"metadata": METADATA, "spec": SPEC | changes})
    assert caught.value.metadata is not None
    assert (caught.value.metadata.uid, caught.value.metadata.generation) == ("4f0c", 3)
    return caught.value.problems


GOOD: list[dict[str, Any]] = [
    {},
    cron("*/5 * * * *"),
    cron("  30 2 * * MON-FRI ", "Europe/Berlin"),
    cron("0 0 L * *", "America/Argentina/Buenos_Aires"),
    cron("0 0 29 2 *", "Etc/GMT+5"),
    cron("0 0 * * 5#3"),
    {"schedule": {"everySeconds": 5}},
    {"isolation": "Tenant", "tenantId": "123e4567-e89b-12d3-a456-426614174000"},
    {"tenantId": "Müller & Söhne, 東京"},
    {"tenantId": "global"},
    {"tenantSetting": "MyApp.Tenant_1.id"},
    {"views": [{"name": "mv", "schema": "a"}, {"name": "mv", "schema": "b"}]},
    {"views": [{"name": 'odd"; drop table x --'}]},
    {"views": [{"name": "é" * 31}]},
    {"views": [{"name": "mv", "guard": {"minRows": 1}}]},
    {"views": [{"name": "mv", "guard": {"maxRowLossPercent": 0, "keepTenants": "Tenant Id"}}]},
    {"consistency": "Group", "concurrently": "Always"},
    {"consistency": "View", "concurrently": "Never"},
    cron("0 * * * *") | {"jitterSeconds": 3600},
    cron("30 2 * * SUN") | {"jitterSeconds": 86_400},
    {"schedule": {"everySeconds": 5}, "jitterSeconds": 5},
    {"schedule": {"maxStalenessSeconds": 10}},
    {"fromTheFuture": {"a": 1}},
]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"schedule": {}}, "spec.schedule: write cron, everySeconds or maxStalenessSeconds"),
    ({"schedule": {"cron": "* * * * *", "everySeconds": 5}}, "spec.schedule: cron and everySeconds exclude each other"),
    (
        {"schedule": {"maxStalenessSeconds": 60, "everySeconds": 5}},
        "spec.schedule: everySeconds and maxStalenessSeconds exclude each other",
    ),
    ({"schedule": {"maxStalenessSeconds": 9}}, "spec.schedule.maxStalenessSeconds: must be at least 10."),
    (
        {"schedule": {"maxStalenessSeconds": 60}, "jitterSeconds": 1},
        "spec.jitterSeconds: maxStalenessSeconds has",
    ),
    ({"schedule": {"everySeconds": 4}}, "spec.schedule.everySeconds: must be at least 5."),
    ({"schedule": {"everySeconds": "often"}}, "spec.schedule.everySeconds: must be a whole number."),
    ({"schedule": "hourly"}, "spec.schedule: must be an object with fields."),
    ({"schedule": None}, "spec.schedule: must be an object with fields."),
    (cron("* * * * * *"), "spec.schedule.cron: five fields are needed: minute hour day-of-month"),
    (cron("@hourly now or never"), "spec.schedule.cron: five fields are needed"),
    (cron("0 0 \uff11 * *"), "spec.schedule.cron: five fields are needed"),
    (cron("\u017fUN * * * *"), "spec.schedule.cron: five fields are needed"),
    (cron("61 * * * *"), "spec.schedule.cron: bad minute; the fields are minute hour"),
    (cron("* 5-3 * * *"), "spec.schedule.cron: bad hour;"),
    (cron("0 0 30 2 *"), "spec.schedule.cron: bad day-of-month;"),
    (cron("0 0 */20 2 1#5"), "spec.schedule.cron: no date matches it, ever"),
    (cron("* * * * *", "Mars/Olympus"), "spec.schedule.timeZone: no such time zone"),
    (cron("* * * * *", "../../etc/passwd"), "spec.schedule.timeZone: no such time zone"),
    (cron("* * * * *", "/etc/localtime"), "spec.schedule.timeZone: no such time zone"),
    (cron("* * * * *", "America"), "spec.schedule.timeZone: no such time zone"),
    (cron("* * * * *", "Etc/UTC\0"), "spec.schedule.timeZone: no such time zone"),
    (cron("* * * * *", "\udcff"), "spec.schedule.timeZone: "),
    ({"isolation": "Tenant"}, "spec.tenantId: isolation Tenant needs it"),
    ({"isolation": "None"}, "spec.isolation: must be one of 'Shared' or 'Tenant'."),
    ({"tenantId": "GLOBAL"}, "spec.tenantId: GLOBAL stands for no tenant; leave tenantId out."),
    ({"tenantId": ""}, "spec.tenantId: must have at least 1 characters."),
    ({"tenantId": "t" * 64}, "spec.tenantId: must have at most 63 characters."),
    ({"tenantId": "a\nb"}, "spec.tenantId: only printable characters are allowed."),
    ({"tenantId": "a\u202eb"}, "spec.tenantId: only printable characters are allowed."),
    ({"tenantId": 7}, "spec.tenantId: must be text; put it in quotes."),
    ({"tenantSetting": "role"}, "spec.tenantSetting: write the name of a setting with a dot"),
    ({"tenantSetting": "app.tenant id"}, "spec.tenantSetting: write the name of a setting with a dot"),
    ({"tenantSetting": "app.tenant\n"}, "spec.tenantSetting: write the name of a setting with a dot"),
    ({"tenantSetting": "app.execution_context"}, "spec.tenantSetting: app.execution_context is the operator's own"),
    ({"tenantSetting": "App.EXECUTION_context"}, "spec.tenantSetting: app.execution_context is the operator's own"),
    ({"views": []}, "spec.views: must not be empty."),
    ({"views": [{"name": f"mv_{n}"} for n in range(101)]}, "spec.views: must have at most 100 entries."),
    ({"views": [{"name": "mv"}, {"name": "mv", "schema": "public"}]}, "spec.views[1]: public.mv is listed twice"),
    ({"views": [{}]}, "spec.views[0].name: is missing; write it."),
    ({"views": ["mv"]}, "spec.views[0]: must be an object with fields."),
    ({"views": [{"name": "v" * 300}]}, "spec.views[0].name: must have at most 63 characters."),
    ({"views": [{"name": "é" * 32}]}, "spec.views[0]: "),
    ({"views": [{"name": "a\0b"}]}, "spec.views[0]: "),
    ({"views": [{"name": "mv", "dependsOn": [{"name": "é" * 32}]}]}, "spec.views[0].dependsOn[0]: The name ééé"),
    (
        {"views": [{"name": "mv", "dependsOn": [{"schema": "s"}]}]},
        "spec.views[0].dependsOn[0].name: is missing; write it.",
    ),
    (
        {"views": [{"name": "mv", "concurrently": "Sometimes"}]},
        "spec.views[0].concurrently: must be one of 'IfPossible'",
    ),
    ({"views": [{"name": "mv", "timeoutSeconds": 0}]}, "spec.views[0].timeoutSeconds: must be at least 1."),
    ({"views": [{"name": "mv", "guard": {}}]}, "spec.views[0].guard: an empty guard checks nothing; write minRows,"),
    ({"views": [{"name": "mv", "guard": {"minRows": 0}}]}, "spec.views[0].guard.minRows: must be at least 1."),
    (
        {"views": [{"name": "mv", "guard": {"maxRowLossPercent": 100}}]},
        "spec.views[0].guard.maxRowLossPercent: must be at most 99.",
    ),
    (
        {"views": [{"name": "mv", "guard": {"keepTenants": "é" * 32}}]},
        "spec.views[0].guard.keepTenants: The name",
    ),
    ({"views": [{"name": "mv", "guard": {"keepTenants": "a\0"}}]}, "spec.views[0].guard.keepTenants: A column name"),
    ({"consistency": "Group", "concurrently": "Never"}, "spec.consistency: Group and concurrently Never exclude"),
    (
        {"consistency": "Group", "views": [{"name": "a"}, {"name": "b", "concurrently": "Never"}]},
        "spec.consistency: Group and concurrently Never exclude",
    ),
    ({"databaseRef": {"name": "../other"}}, "spec.databaseRef.name: must be the name of an object"),
    ({"databaseRef": {"name": "analytics\n"}}, "spec.databaseRef.name: must be the name of an object"),
    ({"databaseRef": {}}, "spec.databaseRef.name: is missing; write it."),
    ({"jitterSeconds": -1}, "spec.jitterSeconds: must be at least 0."),
    ({"jitterSeconds": 86_401}, "spec.jitterSeconds: must be at most 86400."),
    ({"schedule": {"everySeconds": 60}, "jitterSeconds": 61}, "spec.jitterSeconds: 61 is more than the 60 seconds"),
    (cron("0,20 * * * *") | {"jitterSeconds": 1201}, "spec.jitterSeconds: 1201 is more than the 1200 seconds"),
    (cron("0,50 * * * *") | {"jitterSeconds": 601}, "spec.jitterSeconds: 601 is more than the 600 seconds"),
    (cron("55 23,0 * * *") | {"jitterSeconds": 3601}, "spec.jitterSeconds: 3601 is more than the 3600 seconds"),
    (cron("5 1,23 * * *") | {"jitterSeconds": 7201}, "spec.jitterSeconds: 7201 is more than the 7200 seconds"),
    ({"startingDeadlineSeconds": 10**9}, "spec.startingDeadlineSeconds: must be at most 604800."),
    ({"historyLimit": 0.5}, "spec.historyLimit: must be a whole number."),
    ({"suspend": "perhaps"}, "spec.suspend: must be true or false."),
    ({"retry": {"limit": 21}}, "spec.retry.limit: must be at most 20."),
    ({"retry": {"backoffSeconds": 700}}, "spec.retry.backoffSeconds: 700 is more than maxBackoffSeconds, 600;"),
    ({"retry": {"maxBackoffSeconds": 9}}, "spec.retry.backoffSeconds: 10 is more than maxBackoffSeconds, 9;"),
]


@pytest.mark.parametrize("changes", GOOD, ids=repr)
def test_a_good_policy_has_no_problems(changes: dict[str, Any]) -> None:
    assert read_policy({"metadata": METADATA, "spec": SPEC | changes}).metadata.uid == "4f0c"


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: repr(value)[:60])
def test_a_bad_policy_has_one_problem_that_says_what_to_do(changes: dict[str, Any], message: str) -> None:
    (problem,) = problems_of_policy(changes)
    assert problem.startswith(message)
    assert problem.endswith(".")
    assert len(problem) < 300


def test_all_problems_are_named_at_once() -> None:
    problems = problems_of_policy(cron("61 * * * *", "Mars/Olympus") | {"tenantId": "GLOBAL"})
    assert [problem.partition(":")[0] for problem in problems] == [
        "spec.schedule.cron",
        "spec.schedule.timeZone",
        "spec.tenantId",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"secretRef": {"name": "../x"}}, "spec.secretRef.name: must be the name of an object"),
        ({"secretRef": {"name": "UPPER"}}, "spec.secretRef.name: must be the name of an object"),
        ({"secretRef": {"name": "s" * 300}}, "spec.secretRef.name: must have at most 253 characters."),
        ({"secretRef": None}, "spec.secretRef: must be an object with fields."),
        ({"database": "é" * 32}, "spec.database: a PostgreSQL name has at most 63 bytes; shorten it."),
        ({"database": "a\0b"}, "spec.database: a PostgreSQL name cannot hold a NUL character."),
        ({"searchPath": ["app", "pg_temp"]}, "spec.searchPath[1]: name schemas of yours; pg_catalog comes first"),
        ({"searchPath": ["pg_temp_3"]}, "spec.searchPath[0]: name schemas of yours"),
        ({"searchPath": ["$user"]}, "spec.searchPath[0]: name schemas of yours"),
        ({"searchPath": ["é" * 32]}, "spec.searchPath[0]: a PostgreSQL name has at most 63 bytes; shorten it."),
        ({"searchPath": ["a\0b"]}, "spec.searchPath[0]: a PostgreSQL name cannot be empty or hold a NUL character."),
        ({"searchPath": ["s"] * 17}, "spec.searchPath: must have at most 16 entries."),
        ({"sslMode": "prefer"}, "spec.sslMode: must be one of 'disable', 'require', 'verify-ca' or 'verify-full'."),
        ({"limits": {"maxConcurrentRefreshes": 0}}, "spec.limits.maxConcurrentRefreshes: must be at least 1."),
        ({"limits": {"lockTimeoutMillis": 0}}, "spec.limits.lockTimeoutMillis: must be at least 1."),
        (
            {"inventory": {"checkIntervalSeconds": 29}},
            "spec.inventory.checkIntervalSeconds: must be at least 30.",
        ),
        (
            {"windows": [WINDOW, WINDOW | {"cron": "0 8 * * * *"}]},
            "spec.windows[1].cron: five fields are needed: minute",
        ),
        ({"windows": [WINDOW | {"cron": "0 25 * * *"}]}, "spec.windows[0].cron: bad hour; the fields are minute hour"),
        ({"windows": [WINDOW | {"cron": "0 0 30 2 *"}]}, "spec.windows[0].cron: bad day-of-month;"),
        ({"windows": [WINDOW | {"timeZone": "Mars/Olympus"}]}, "spec.windows[0].timeZone: no such time zone"),
        ({"windows": [WINDOW | {"kind": "Perhaps"}]}, "spec.windows[0].kind: must be one of 'Allow' or 'Deny'."),
        ({"windows": [WINDOW | {"durationSeconds": 59}]}, "spec.windows[0].durationSeconds: must be at least 60."),
        ({"windows": [{"kind": "Deny", "cron": "0 8 * * *"}]}, "spec.windows[0].durationSeconds: is missing"),
        ({"windows": [WINDOW] * 51}, "spec.windows: must have at most 50 entries."),
        (
            {"windows": [WINDOW, {"kind": "Allow", "cron": "30 8 * * *", "durationSeconds": 60}]},
            "spec.windows: they leave no moment of a year in which a refresh may start; shorten a Deny window",
        ),
    ],
)
def test_a_bad_database_has_one_problem_that_says_what_to_do(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        read_database({"metadata": METADATA, "spec": {"secretRef": {"name": "analytics-app"}} | spec})
    (problem,) = caught.value.problems
    assert problem.startswith(message)


def test_a_view_may_not_ask_for_more_time_than_its_database_allows() -> None:
    views = [{"name": "a", "timeoutSeconds": 600}, {"name": "b", "timeoutSeconds": 601}, {"name": "c"}]
    spec = MatviewRefreshPolicySpec.model_validate(SPEC | {"views": views})

    (problem,) = check_timeouts(spec, limits=DatabaseLimits(timeout_seconds=600))

    assert problem == (
        "spec.views[1].timeoutSeconds: 601 is more than limits.timeoutSeconds of the MatviewDatabase, 600; "
        "lower it, or raise the limit."
    )
    assert check_timeouts(spec, limits=DatabaseLimits()) == []


def test_an_object_stored_before_a_rule_is_checked_by_the_operator_alone() -> None:
    spec = MatviewRefreshPolicySpec.model_validate(SPEC | {"schedule": {}})
    assert check_policy(spec) == [
        "spec.schedule: write cron, everySeconds or maxStalenessSeconds; one of them is needed."
    ]
