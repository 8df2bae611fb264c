"""Whatever is stored in the API server, reading it ends in a model or in InvalidObject."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from json import dumps, loads
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.api.database import Bookkeeping
from matview_operator.api.model import CustomObject
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.reading import (
    InvalidObject,
    read_database,
    read_database_status,
    read_policy,
    read_policy_status,
)

TIME = "2026-11-22T10:00:00Z"
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Refreshed",
    "message": "All is well.",
    "lastTransitionTime": TIME,
}
POLICY: dict[str, Any] = {
    "apiVersion": "matviews.skeldir.io/v1beta1",
    "kind": "MatviewRefreshPolicy",
    "metadata": {
        "name": "revenue",
        "namespace": "tenant-a",
        "uid": "4f0c",
        "generation": 3,
        "resourceVersion": "17",
        "creationTimestamp": TIME,
        "annotations": {"matviews.skeldir.io/requestedAt": "now"},
    },
    "spec": {
        "databaseRef": {"name": "analytics"},
        "tenantId": "11111111-1111-1111-1111-111111111111",
        "isolation": "Shared",
        "tenantSetting": "app.current_tenant_id",
        "views": [{"schema": "public", "name": "mv", "concurrently": "Always", "timeoutSeconds": 60}],
        "schedule": {"cron": "*/5 * * * *", "timeZone": "Europe/Berlin"},
        "startingDeadlineSeconds": 300,
        "concurrently": "IfPossible",
        "analyze": "Auto",
        "consistency": "Group",
        "suspend": False,
        "jitterSeconds": 20,
        "retry": {"limit": 5, "backoffSeconds": 20, "maxBackoffSeconds": 300},
        "historyLimit": 5,
    },
    "status": {
        "observedGeneration": 3,
        "conditions": [CONDITION],
        "schedule": "*/5 * * * * Europe/Berlin",
        "lastSlotTime": TIME,
        "nextSlotTime": TIME,
        "missedSlots": 1,
        "consecutiveFailures": 0,
        "lastSuccessTime": TIME,
        "lastHandledRequest": "now",
        "views": [{"schema": "public", "name": "mv", "outcome": "SUCCESS", "mode": "Concurrent", "verifiedAt": TIME}],
        "history": [
            {"slotTime": TIME, "outcome": "SUCCESS", "startedAt": TIME, "durationMs": 7, "views": 1, "failed": 0}
        ],
    },
}
DATABASE: dict[str, Any] = {
    "metadata": POLICY["metadata"],
    "spec": {
        "secretRef": {"name": "analytics-app"},
        "secretKeys": {"host": "fqdn", "tlsKey": "client.key"},
        "caRef": {"name": "analytics-ca", "key": "ca.crt"},
        "database": "analytics",
        "sslMode": "verify-full",
        "allowSuperuser": False,
        "searchPath": ["app"],
        "limits": {
            "maxConcurrentRefreshes": 2,
            "minIntervalSeconds": 30,
            "timeoutSeconds": 3600,
            "lockTimeoutMillis": 1500,
        },
        "windows": [{"kind": "Deny", "cron": "0 8 * * 1-5", "durationSeconds": 36000, "timeZone": "Europe/Berlin"}],
        "inventory": {"checkIntervalSeconds": 600},
        "suspend": False,
    },
    "status": {
        "observedGeneration": 3,
        "conditions": [CONDITION],
        "server": {
            "version": "18.4",
            "systemIdentifier": "7",
            "database": "analytics",
            "role": "app",
            "superuser": False,
            "inRecovery": False,
            "bookkeeping": "Installed",
        },
    },
}
Path = tuple[str | int, ...]


def paths(value: Any, here: Path = ()) -> list[Path]:
    """Return the place of everything inside a document."""
    inside: list[tuple[str | int, Any]] = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [here, *(path for step, part in inside for path in paths(part, (*here, step)))]


def replaced(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    document = copy.copy(document)
    document[path[0]] = replaced(document[path[0]], path[1:], value)
    return document


def without(document: dict[str, Any], path: Path) -> dict[str, Any]:
    document = copy.deepcopy(document)
    parent: Any = document
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    return document


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.just(TIME),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=8,
)
damaged_policies = st.builds(replaced, st.just(POLICY), st.sampled_from(paths(POLICY)), json)
damaged_databases = st.builds(replaced, st.just(DATABASE), st.sampled_from(paths(DATABASE)), json)


def check(read: Callable[[object], CustomObject], body: object) -> None:
    try:
        assert read(body).metadata.uid
    except InvalidObject as error:
        said = str(error)
    else:
        return
    assert said
    assert "pydantic" not in said.lower()
    assert said.isprintable()


@given(json | damaged_policies)
def test_reading_a_policy_ends_in_a_model_or_in_the_typed_error(body: object) -> None:
    check(read_policy, body)


@given(json | damaged_databases)
def test_reading_a_database_ends_in_a_model_or_in_the_typed_error(body: object) -> None:
    check(read_database, body)


@given(json | damaged_policies | st.fixed_dictionaries({"status": json}))
def test_reading_a_policys_status_never_fails(body: object) -> None:
    read_policy_status(body)


@given(json | damaged_databases | st.fixed_dictionaries({"status": json}))
def test_reading_a_databases_status_never_fails(body: object) -> None:
    read_database_status(body)


def test_a_whole_policy_is_read_whole() -> None:
    policy = read_policy(POLICY)
    assert policy.status is not None
    assert policy.spec.to_document() == POLICY["spec"]
    assert policy.status.to_document() == POLICY["status"]
    assert policy.metadata.to_document() == POLICY["metadata"]


def test_a_whole_database_is_read_whole() -> None:
    database = read_database(DATABASE)
    assert database.status is not None
    assert database.spec.to_document() == DATABASE["spec"]
    assert database.status.to_document() == DATABASE["status"]


def test_an_object_from_before_the_defaults_gets_them() -> None:
    old = {
        "metadata": {"name": "revenue", "namespace": "tenant-a", "uid": "4f0c"},
        "spec": {"databaseRef": {"name": "a"}, "views": [{"name": "mv"}], "schedule": {"everySeconds": 30}},
    }
    spec = read_policy(old).spec
    assert (spec.views[0].schema_name, spec.starting_deadline_seconds, spec.history_limit) == ("public", 300, 5)
    assert (spec.isolation, spec.tenant_setting) == ("Shared", "app.current_tenant_id")


@pytest.mark.parametrize("metadata", [None, [], {}, {"name": "revenue"}, {"name": 1, "namespace": "a", "uid": "1"}])
def test_metadata_that_addresses_nothing_is_named(metadata: object) -> None:
    with pytest.raises(InvalidObject, match="metadata") as caught:
        read_policy(POLICY | {"metadata": metadata})
    assert caught.value.metadata is None


def test_a_bad_spec_leaves_the_address_to_report_it_to() -> None:
    with pytest.raises(InvalidObject) as caught:
        read_policy(POLICY | {"spec": "garbage"})
    assert caught.value.metadata is not None
    assert (caught.value.metadata.name, caught.value.metadata.generation) == ("revenue", 3)
    assert str(caught.value) == "spec: must be an object with fields."


def test_values_are_not_repeated_in_problems() -> None:
    with pytest.raises(InvalidObject) as caught:
        read_database(replaced(DATABASE, ("spec", "secretRef", "name"), "Hunter2!"))
    assert "Hunter2" not in str(caught.value)
    assert "Hunter2" not in repr(caught.value.__cause__)


def test_many_problems_are_counted_not_listed() -> None:
    views = [{"name": n} for n in range(40)]
    with pytest.raises(InvalidObject, match=r"And 30 more\.$") as caught:
        read_policy(replaced(POLICY, ("spec", "views"), views))
    assert len(caught.value.problems) == 40


def test_one_unreadable_part_of_a_status_costs_only_that_part() -> None:
    status = POLICY["status"] | {
        "lastSlotTime": "yesterday",
        "missedSlots": -1,
        "views": [{"schema": "public", "name": "new", "outcome": "TELEPORTED"}, *POLICY["status"]["views"]],
        "history": "long",
        "fromTheFuture": 1,
    }
    read = read_policy_status({"status": status})
    assert [(view.name, view.outcome) for view in read.views] == [("mv", RefreshOutcome.SUCCESS)]
    assert (read.last_slot_time, read.missed_slots, read.history) == (None, None, ())
    assert (read.observed_generation, read.last_handled_request) == (3, "now")
    assert [condition.type for condition in read.conditions] == ["Ready"]


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_an_instant_that_no_calendar_has_in_utc_is_dropped(instant: str) -> None:
    read = read_policy_status({"status": {"lastSlotTime": instant, "nextSlotTime": "2026-11-22T13:00:00+01:00"}})
    assert read.last_slot_time is None
    assert read.next_slot_time == datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_an_entry_of_a_history_takes_a_quarter_of_a_kilobyte() -> None:
    def bodies(entries: int) -> list[Any]:
        entry = {"outcome": "SUCCESS", "startedAt": "2026-11-22T12:00:00Z", "durationMs": 5, "views": 1, "failed": 0}
        history = [[entry | {"correlationId": str(uuid4())} for _ in range(entries)] for _ in range(100)]
        return [{"status": {"history": each}} for each in history]

    def taken(entries: int) -> int:
        raw = bodies(entries)
        tracemalloc.start()
        try:
            kept = [read_policy_status(body) for body in raw]
            assert len(kept[-1].history) == entries
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert (taken(20) - taken(0)) / 100 / 20 < 256


def test_policies_share_what_they_say_alike() -> None:
    """A copy of it for each of 5,000 is a tenth of the operator's memory."""
    one, other = (read_policy(loads(dumps(POLICY))) for _ in range(2))
    assert one == other
    assert one.status is not None
    assert other.status is not None
    shared = [
        (each.spec.schedule, each.spec.retry, each.spec.database_ref, each.status.last_slot_time)
        for each in (one, other)
        if each.status is not None
    ]
    assert all(mine is its for mine, its in zip(*shared, strict=True))
    mine, its = one.status.conditions[0], other.status.conditions[0]
    assert (mine.reason is its.reason, mine.message is its.message) == (True, True)
    assert mine.last_transition_time.tzinfo is UTC


@pytest.mark.parametrize("path", [path for path in paths(POLICY["status"]) if path])
def test_every_missing_part_of_a_status_is_survived(path: Path) -> None:
    read = read_policy_status({"status": without(POLICY["status"], path)})
    assert read != read_policy_status(POLICY)


def test_an_unreadable_server_is_dropped_and_conditions_stay() -> None:
    read = read_database_status(replaced(DATABASE, ("status", "server", "superuser"), "perhaps"))
    assert read.server is None
    assert len(read.conditions) == 1
    whole = read_database_status(DATABASE)
    assert whole.server is not None
    assert whole.server.bookkeeping is Bookkeeping.INSTALLED
