"""One slot of one policy: views in order, the lock ladder, places, problems, cancellation."""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import timedelta
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ports import (
    COVERED,
    EPOCH,
    FAILED,
    LOCK_HELD,
    UNKNOWN,
    MemoryExecutor,
    MemoryMetrics,
    MemorySecrets,
    Told,
    VirtualClock,
    at,
)
from tests.unit.world import key, policy_spec, until

from matview_operator.api.database import MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Analyze, Isolation, MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.destination import Destinations
from matview_operator.domain.retry import lock_held_pause
from matview_operator.domain.slot import Slot, SlotReport, requested, scheduled
from matview_operator.engine.attempts import Attempts
from matview_operator.engine.budget import Budget
from matview_operator.engine.flights import Flights
from matview_operator.engine.holds import Holds
from matview_operator.engine.order import Order
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import ObjectRef
from matview_operator.engine.registry import Database, Policy, Registry
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.targets import Targets
from matview_operator.engine.turns import Turns

pytestmark = pytest.mark.looptime(noop_cycles=3)

UID = uuid.UUID("00000000-0000-4000-8000-000000000001")
SLOT = scheduled(EPOCH, starting_deadline_seconds=60)
REQUEST = requested("r1", now=EPOCH, starting_deadline_seconds=60)


class Runs:
    """A runner, one database, and policies on it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.registry = Registry()
        self.executor = MemoryExecutor(self.clock)
        self.secrets = MemorySecrets()
        self.places = 1
        self.budget = Budget(limit_of=lambda _: self.places, limit_in_all=10)
        self.pauses = Pauses()
        order = Order(registry=self.registry)
        order.learn(key("db"), {})
        holds = Holds(registry=self.registry, clock=self.clock)
        self.runner = SlotRunner(
            registry=self.registry,
            executor=self.executor,
            targets=Targets(secrets=self.secrets, destinations=Destinations()),
            budget=self.budget,
            pauses=self.pauses,
            metrics=MemoryMetrics(),
            flights=Flights(budget=self.budget, clock=self.clock),
            holds=holds,
            permits=Permits(registry=self.registry, holds=holds, order=order, clock=self.clock),
            clock=self.clock,
            random=Random(5),  # noqa: S311 - jitter
            turns=Turns(registry=self.registry, order=order, clock=self.clock),
        )
        self.database()

    def database(self, *, limits: dict[str, Any] | None = None, **fields: Any) -> None:
        fields["limits"] = {"minIntervalSeconds": 0} | (limits or {})
        data = {"host": "db", "port": "5432", "dbname": "app", "username": "mv", "password": "p"}
        self.secrets.data[key("db")] = data
        spec = MatviewDatabaseSpec.model_validate({"secretRef": {"name": "db"}, "sslMode": "disable"} | fields)
        ref = ObjectRef(kind="MatviewDatabase", key=key("db"), uid="db")
        self.registry.databases[key("db")] = Database(ref=ref, generation=1, spec=spec, status=MatviewDatabaseStatus())

    def move(self, host: str) -> None:
        """Have the Secret name another host."""
        self.secrets.data[key("db")] = dict(self.secrets.data[key("db")]) | {"host": host}

    def policy(self, name: str = "p", *, uid: uuid.UUID = UID, **fields: Any) -> Policy:
        spec = MatviewRefreshPolicySpec.model_validate(policy_spec(name, **{"views": views("a b")} | fields))
        policy = Policy(
            ref=ObjectRef(kind="MatviewRefreshPolicy", key=key(name), uid=str(uid)),
            generation=1,
            created_at=EPOCH,
            spec=spec,
            status=MatviewRefreshPolicyStatus(),
            taken_until=EPOCH,
        )
        self.registry.add_policy(policy)
        return policy

    async def run(self, policy: Policy, slot: Slot = SLOT) -> SlotReport:
        report = await self.runner.run(policy, slot)
        assert report is not None
        return report

    def start(self, policy: Policy, slot: Slot = SLOT) -> asyncio.Task[SlotReport | None]:
        return asyncio.create_task(self.runner.run(policy, slot))


def views(names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names.split()]


def outcomes(report: SlotReport | None) -> list[tuple[str, RefreshOutcome, RefreshReason | None]]:
    assert report is not None
    return [(view.name, result.outcome, result.error_type) for view, result in report.results]


SUCCESS = RefreshOutcome.SUCCESS
BOTH_FRESH = [("a", SUCCESS, None), ("b", SUCCESS, None)]


async def test_views_are_refreshed_one_after_another_as_listed() -> None:
    runs = Runs()
    report = await runs.run(runs.policy(views=views("c a b")))
    assert [(call.at, call.run.view.name) for call in runs.executor.calls] == [
        (at(0), "c"),
        (at(0.1), "a"),
        (at(0.2), "b"),
    ]
    assert (report.started_at, report.ended_at) == (at(0), at(0.3))


async def test_a_run_is_what_policy_view_and_database_say() -> None:
    runs = Runs()
    runs.database(
        limits={"timeoutSeconds": 100, "lockTimeoutMillis": 250},
        allowSuperuser=True,
        database="other",
        searchPath=["app"],
    )
    policy = runs.policy(
        tenantId="t1",
        isolation="Tenant",
        tenantSetting="app.tenant",
        concurrently="Never",
        analyze="Never",
        views=[
            {"name": "a"},
            {
                "schema": "S x",
                "name": "B",
                "concurrently": "Always",
                "timeoutSeconds": 30,
                "guard": {"minRows": 1, "keepTenants": "Tenant"},
            },
        ],
    )
    await runs.run(policy)
    first, second = (call.run for call in runs.executor.calls)
    assert (str(first.view), first.concurrently, first.timeout_seconds) == ("a", Concurrently.NEVER, 100)
    assert (str(second.view), second.concurrently, second.timeout_seconds) == ("S x.B", Concurrently.ALWAYS, 30)
    assert (first.isolation, first.tenant_id, first.tenant_setting) == (Isolation.TENANT, "t1", "app.tenant")
    assert (first.lock_timeout_millis, first.allow_superuser, first.policy_uid) == (250, True, UID)
    assert (first.analyze, first.search_path) == (Analyze.NEVER, ("app",))
    assert (first.guard, second.guard) == (None, Guard(min_rows=1, keep_tenants="Tenant"))
    target = runs.executor.calls[0].target
    assert (target.host, target.database, target.user) == ("db", "other", "mv")


async def test_a_slot_has_one_correlation_id_the_same_after_a_restart_and_a_request_its_token() -> None:
    runs = Runs()
    policy = runs.policy()
    first, again = await runs.run(policy), await runs.run(policy)
    ids = {call.run.correlation_id for call in runs.executor.calls} | {first.correlation_id, again.correlation_id}
    assert len(ids) == 1
    assert {call.run.slot_id for call in runs.executor.calls} == {"slot:2026-11-22T12:00:00Z"}
    assert {call.run.due_at for call in runs.executor.calls} == {EPOCH}
    await runs.run(policy, scheduled(at(30), starting_deadline_seconds=60))
    assert runs.executor.calls[-1].run.correlation_id not in ids

    await runs.run(policy, REQUEST)
    last = runs.executor.calls[-1].run
    assert (last.correlation_id, last.slot_id, last.due_at) == ("r1", "request:r1", None)


async def test_one_views_failure_does_not_keep_the_next_from_running() -> None:
    runs = Runs()
    runs.executor.script["a"] = [FAILED]
    report = await runs.run(runs.policy())
    assert outcomes(report) == [("a", RefreshOutcome.FAILED, FAILED.reason), ("b", SUCCESS, None)]
    assert (report.failed, report.fresh, report.worst.error_message) == (1, False, "division by zero")


# The ladder.


@given(st.integers(1, 50), st.integers())
def test_the_ladder_is_one_two_five_ten_seconds_with_jitter(tries: int, seed: int) -> None:
    step = (1, 2, 5, 10)[min(tries, 4) - 1]
    assert step / 2 <= lock_held_pause(tries, random=Random(seed)) <= step  # noqa: S311 - jitter


async def test_a_held_lock_is_tried_again_until_it_is_free() -> None:
    runs = Runs()
    runs.executor.held_until["a"] = at(12)
    report = await runs.run(runs.policy())
    assert outcomes(report) == BOTH_FRESH
    times = [call.at for call in runs.executor.calls if call.run.view.name == "a"]
    pauses = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert all(step / 2 <= pause <= step for pause, step in zip(pauses, (1, 2, 5, 10, 10), strict=False))
    assert times[-2] < at(12) <= times[-1]
    assert report.lock_held is False


async def test_a_held_lock_ends_when_another_run_has_covered_the_slot() -> None:
    runs = Runs()
    runs.executor.script["a"] = [LOCK_HELD, LOCK_HELD, COVERED]
    report = await runs.run(runs.policy())
    assert outcomes(report)[0] == ("a", RefreshOutcome.SKIPPED_COVERED, RefreshReason.COVERED)
    assert report.fresh


@pytest.mark.parametrize("deadline", [3, 7, 60])
async def test_a_held_lock_is_tried_until_the_deadline_and_a_last_time_then(deadline: int) -> None:
    runs = Runs()
    runs.executor.held_until["a"] = at(10_000)
    report = await runs.run(runs.policy(), scheduled(EPOCH, starting_deadline_seconds=deadline))
    assert outcomes(report) == [
        ("a", RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD),
        ("b", SUCCESS, None),
    ]
    assert report.lock_held
    assert [call.at for call in runs.executor.calls if call.run.view.name == "a"][-1] == at(deadline)


async def test_no_place_is_held_while_a_lock_is_waited_for() -> None:
    runs = Runs()  # its database has one place
    runs.executor.held_until["a"] = at(30)
    held = runs.start(runs.policy("one", views=views("a")))
    await until(0.2)
    other = await runs.run(runs.policy("two", uid=uuid.uuid4(), views=views("b")))
    assert other.ended_at == at(0.3)
    assert outcomes(await held) == [("a", SUCCESS, None)]


@pytest.mark.parametrize("request_token", [None, "r1"])
async def test_without_a_place_before_the_deadline_a_retry_leaves_it_at_the_held_lock(
    request_token: str | None,
) -> None:
    runs = Runs()
    runs.executor.held_until["a"] = at(0.3)
    slot = Slot(due_at=EPOCH, deadline=at(20), request=request_token)
    held = runs.start(runs.policy("one", views=views("a")), slot)
    await until(0.2)
    runs.executor.seconds = 100
    hog = runs.start(runs.policy("two", uid=uuid.uuid4(), views=views("c")))
    assert outcomes(await held) == [("a", RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD)]
    assert runs.clock.now() == at(20)
    await hog


async def test_an_unknown_commit_is_tried_again_and_then_known() -> None:
    runs = Runs()
    runs.executor.script["a"] = [UNKNOWN, UNKNOWN]
    assert outcomes(await runs.run(runs.policy())) == BOTH_FRESH
    assert runs.executor.views == ["a", "b", "a", "a"]


async def test_a_commit_that_stays_unknown_is_told_so_at_the_deadline() -> None:
    runs = Runs()
    runs.executor.script["a"] = [UNKNOWN] * 100
    report = await runs.run(runs.policy())
    assert outcomes(report)[0][1] is RefreshOutcome.UNKNOWN
    assert report.failed == 1


# The Secret.


async def test_the_secret_is_read_once_for_a_slot_and_anew_for_the_next() -> None:
    runs = Runs()
    policy = runs.policy(views=views(" ".join(f"v{number}" for number in range(100))))
    running = runs.start(policy)
    await until(0.05)
    runs.move("moved")
    await running
    assert [call.target.host for call in runs.executor.calls] == ["db"] * 100
    assert runs.secrets.reads[key("db")] == 1
    await runs.run(policy, scheduled(at(30), starting_deadline_seconds=60))
    assert [call.target.host for call in runs.executor.calls[100:]] == ["moved"] * 100
    assert runs.secrets.reads[key("db")] == 2


async def test_slots_that_are_due_at_once_share_what_one_of_them_read_for_a_second() -> None:
    runs = Runs()
    policies = [runs.policy(f"p{number}", uid=uuid.uuid4(), views=views(f"v{number}")) for number in range(13)]
    await asyncio.gather(*map(runs.start, policies))
    assert [call.at for call in runs.executor.calls][-1] == at(1.2)
    assert runs.secrets.reads[key("db")] == 2


async def test_who_changes_a_secret_and_asks_for_a_refresh_has_it_by_the_new_one() -> None:
    runs = Runs()
    policy = runs.policy(views=views("a"))
    await runs.run(policy)
    runs.move("moved")
    await runs.run(policy, requested("now", now=runs.clock.now(), starting_deadline_seconds=60))
    assert [(call.at, call.target.host) for call in runs.executor.calls] == [(at(0), "db"), (at(0.1), "moved")]


async def test_a_slots_retry_reads_the_secret_anew_and_the_views_after_it_use_what_it_read() -> None:
    runs = Runs()
    runs.executor.seconds = 1
    runs.executor.held_until["a"] = at(0.2)
    running = runs.start(runs.policy(views=views("a b c")))
    await until(0.15)
    runs.move("moved")
    await running
    assert [(call.run.view.name, call.target.host) for call in runs.executor.calls] == [
        ("a", "db"),
        ("b", "db"),
        ("c", "db"),
        ("a", "moved"),
    ]
    assert runs.secrets.reads[key("db")] == 2


NOT_LET_IN = [
    RefreshReason.AUTHENTICATION_FAILED,
    RefreshReason.CONNECT_REJECTED,
    RefreshReason.CONNECTION_FAILED,
    RefreshReason.TLS_FAILED,
]


@pytest.mark.parametrize("reason", NOT_LET_IN)
async def test_a_secret_rotated_within_a_slot_is_read_again_when_the_old_one_is_refused(reason: RefreshReason) -> None:
    runs = Runs()
    runs.executor.script["b"] = [Told(outcome=RefreshOutcome.FAILED, reason=reason)]
    running = runs.start(runs.policy(views=views("a b c")))
    await until(0.05)
    runs.move("moved")
    assert outcomes(await running) == [(name, SUCCESS, None) for name in "abc"]
    assert [(call.run.view.name, call.target.host) for call in runs.executor.calls] == [
        ("a", "db"),
        ("b", "db"),
        ("b", "moved"),
        ("c", "moved"),
    ]
    assert runs.secrets.reads[key("db")] == 2


async def test_a_refused_secret_that_did_not_change_is_read_again_once_and_no_view_is_tried_again() -> None:
    runs = Runs()
    refused = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)
    for name in "abcd":
        runs.executor.script[name] = [refused]
    report = await runs.run(runs.policy(views=views("a b c d")))
    assert outcomes(report) == [(name, refused.outcome, refused.reason) for name in "abcd"]
    assert runs.executor.views == ["a", "b", "c", "d"]
    assert runs.secrets.reads[key("db")] == 2


@pytest.mark.parametrize("moves", [True, False])
async def test_views_that_are_refused_together_have_the_secret_read_again_once(moves: bool) -> None:  # noqa: FBT001 - pytest
    runs = Runs()
    runs.places = 4
    refused = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)
    for name in "abc":
        runs.executor.script[name] = [refused]
    running = runs.start(runs.policy(views=views("a b c")))
    await until(0.05)
    if moves:
        runs.move("moved")
    report = await running
    assert runs.secrets.reads[key("db")] == 2
    hosts = [(call.run.view.name, call.target.host) for call in runs.executor.calls]
    assert hosts[:3] == [("a", "db"), ("b", "db"), ("c", "db")]
    assert sorted(hosts[3:]) == ([("a", "moved"), ("b", "moved"), ("c", "moved")] if moves else [])
    assert {outcome for _, outcome, _ in outcomes(report)} == {SUCCESS if moves else refused.outcome}


async def test_a_secret_that_was_read_for_the_very_view_is_not_read_again_when_it_is_refused() -> None:
    runs = Runs()
    runs.executor.script["a"] = [Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)]
    await runs.run(runs.policy(views=views("a")))
    assert runs.secrets.reads[key("db")] == 1


async def test_what_the_server_says_of_a_view_is_no_reason_to_read_the_secret_again() -> None:
    runs = Runs()
    runs.executor.script["b"] = [FAILED]
    await runs.run(runs.policy(views=views("a b c")))
    assert runs.secrets.reads[key("db")] == 1


async def test_a_database_changed_within_a_slot_is_read_anew_for_the_next_view() -> None:
    runs = Runs()
    running = runs.start(runs.policy())
    await until(0.05)
    runs.database(database="other")
    await running
    assert [call.target.database for call in runs.executor.calls] == ["app", "other"]
    assert runs.secrets.reads[key("db")] == 2


async def test_an_api_server_that_does_not_answer_for_one_view_is_asked_for_the_next() -> None:
    runs = Runs()
    runs.secrets.unanswered = 1
    report = await runs.run(runs.policy(retry={"limit": 0}))
    assert outcomes(report) == [
        ("a", RefreshOutcome.FAILED, RefreshReason.CONNECTION_FAILED),
        ("b", SUCCESS, None),
    ]


# Places.


async def test_a_slot_that_gets_no_place_before_its_deadline_is_not_begun() -> None:
    runs = Runs()
    runs.executor.seconds = 500
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))
    await until(1)
    assert await runs.runner.run(runs.policy(), SLOT) is None
    assert runs.clock.now() == at(60)
    assert runs.executor.views == ["c"]
    await hog


async def test_a_begun_slots_other_views_and_a_request_wait_as_long_as_it_takes() -> None:
    runs = Runs()
    runs.executor.seconds = 500
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))
    await until(1)
    asked = runs.start(runs.policy(), REQUEST)
    await until(499)
    assert len(runs.executor.calls) == 1
    report = await asked
    assert outcomes(report) == BOTH_FRESH
    assert report is not None
    assert report.started_at == at(500)  # waiting is not running
    await hog


async def test_a_slot_begun_in_time_runs_its_other_views_even_after_its_deadline() -> None:
    runs = Runs()
    runs.executor.slow["c"] = 100
    running = runs.start(runs.policy())
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))  # takes the place between a and b
    assert outcomes(await running) == BOTH_FRESH
    assert [(call.at, call.run.view.name) for call in runs.executor.calls][1:] == [(at(0.1), "c"), (at(100.1), "b")]
    await hog


async def test_a_slot_that_waited_is_begun_only_if_its_policy_is_still_the_same() -> None:
    runs = Runs()
    runs.executor.seconds = 10
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))
    await until(1)
    waiting = runs.start(runs.policy())
    await until(2)
    runs.policy(views=views("other"))
    assert await waiting is None
    assert runs.executor.views == ["c"]
    await hog


async def test_a_slot_whose_secret_was_refused_is_begun_by_another_one_only_if_its_policy_is_still_the_same() -> None:
    runs = Runs()
    runs.executor.script["a"] = [Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)]
    await runs.run(runs.policy("before", uid=uuid.uuid4(), views=views("c")))  # has read what the slot shares
    running = runs.start(runs.policy())
    await until(0.15)
    runs.move("moved")
    runs.policy(views=views("other"))
    assert await running is None
    assert runs.executor.views == ["c", "a"]


# What a person has to mend.


def no_database(runs: Runs) -> None:
    del runs.registry.databases[key("db")]


def invalid_database(runs: Runs) -> None:
    runs.registry.databases[key("db")].spec = None


def suspended_database(runs: Runs) -> None:
    runs.database(suspend=True)


def no_secret(runs: Runs) -> None:
    runs.secrets.data.clear()


def unusable_secret(runs: Runs) -> None:
    runs.secrets.data[key("db")] = {"host": "db", "password": "hunter2"}


def low_limit(runs: Runs) -> None:
    runs.database(limits={"timeoutSeconds": 5})


def rival(runs: Runs) -> None:
    runs.policy("rival", uid=uuid.uuid4(), views=views("a"), tenantId="t", isolation="Tenant")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (no_database, RefreshReason.DATABASE_NOT_FOUND),
        (invalid_database, RefreshReason.DATABASE_NOT_READY),
        (suspended_database, RefreshReason.DATABASE_SUSPENDED),
        (no_secret, RefreshReason.SECRET_NOT_FOUND),
        (unusable_secret, RefreshReason.SECRET_INVALID),
        (low_limit, RefreshReason.INVALID_SPEC),
        (rival, RefreshReason.SHARED_VIEW),
    ],
)
async def test_what_a_person_must_mend_fails_every_view_and_reaches_no_server(harm: Any, reason: RefreshReason) -> None:
    runs = Runs()
    policy = runs.policy(views=[{"name": "a", "timeoutSeconds": 6}, {"name": "b"}])
    harm(runs)
    report = await runs.run(policy)
    assert outcomes(report) == [("a", RefreshOutcome.FAILED, reason), ("b", RefreshOutcome.FAILED, reason)]
    assert runs.executor.calls == []
    assert runs.secrets.reads[key("db")] <= 1
    assert report.worst.error_message
    assert "hunter2" not in str(report)


async def test_a_rival_that_comes_while_a_view_runs_keeps_the_next_one_from_running() -> None:
    """No tenant loses rows: a second tenant's policy was applied in the middle of the slot."""
    runs = Runs()
    running = runs.start(runs.policy())
    await until(0.05)
    runs.policy("rival", uid=uuid.uuid4(), views=views("b"), tenantId="t", isolation="Tenant")
    assert outcomes(await running) == [
        ("a", SUCCESS, None),
        ("b", RefreshOutcome.FAILED, RefreshReason.SHARED_VIEW),
    ]
    assert runs.executor.views == ["a"]


async def test_a_database_suspended_while_a_view_runs_begins_no_other_view() -> None:
    runs = Runs()
    running = runs.start(runs.policy())
    await until(0.05)
    runs.database(suspend=True)
    assert outcomes(await running)[1] == ("b", RefreshOutcome.FAILED, RefreshReason.DATABASE_SUSPENDED)


async def test_a_suspended_database_answers_a_request_at_once_though_all_places_are_taken() -> None:
    runs = Runs()
    runs.executor.seconds = 500
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))
    await until(1)
    runs.database(suspend=True)
    report = await runs.run(runs.policy(), REQUEST)
    assert outcomes(report)[0][2] is RefreshReason.DATABASE_SUSPENDED
    assert runs.clock.now() == at(1)
    await hog


async def test_a_bug_is_an_internal_error_of_its_view_in_the_status_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = Runs()
    runs.executor.script["a"] = [RuntimeError("secret password")]
    report = await runs.run(runs.policy())
    assert outcomes(report) == [
        ("a", RefreshOutcome.FAILED, RefreshReason.INTERNAL_ERROR),
        ("b", SUCCESS, None),
    ]
    assert report.worst.error_message == "RuntimeError in the operator; see its log."
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["policy"] == "analytics/p"
    assert runs.budget.waiting == 0
    assert (await runs.run(runs.policy())).fresh  # the place was given back


async def test_a_bug_between_the_views_attempts_is_an_internal_error_of_all_that_have_not_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(*_: Any) -> None:
        raise RuntimeError

    runs = Runs()
    running = runs.start(runs.policy(views=views("a b c")), REQUEST)
    await until(0.05)
    monkeypatch.setattr(Attempts, "_give_up", buggy)
    assert outcomes(await running) == [  # b waits for its place by then, and needs no more
        ("a", SUCCESS, None),
        ("b", SUCCESS, None),
        ("c", RefreshOutcome.FAILED, RefreshReason.INTERNAL_ERROR),
    ]
    assert "slot failed unexpectedly" in caplog.text


# Cancellation.


async def test_cancelled_it_reports_what_was_interrupted_and_what_was_done() -> None:
    runs = Runs()
    running = runs.start(runs.policy(views=views("a b c")))
    await until(0.15)
    running.cancel()
    report = await running
    assert outcomes(report) == [
        ("a", SUCCESS, None),
        ("b", RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN),
        ("c", RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN),
    ]
    assert report is not None
    assert report.stopped
    assert runs.executor.cancelled == ["b"]


async def test_a_run_cancelled_during_commit_that_succeeded_is_told_as_what_it_is() -> None:
    runs = Runs()
    runs.executor.commits_when_cancelled = True
    running = runs.start(runs.policy(views=views("a")))
    await until(0.05)
    running.cancel()
    report = await running
    assert outcomes(report) == [("a", SUCCESS, None)]
    assert report is not None
    assert not report.stopped


async def test_cancelled_before_anything_was_tried_there_is_nothing_to_report() -> None:
    runs = Runs()
    runs.executor.seconds = 10
    hog = runs.start(runs.policy("hog", uid=uuid.uuid4(), views=views("c")))
    await until(1)
    waiting = runs.start(runs.policy())
    await until(2)
    waiting.cancel()
    assert await waiting is None
    await hog


async def test_cancelled_on_the_ladder_it_ends_at_once() -> None:
    runs = Runs()
    runs.executor.held_until["a"] = at(10_000)
    running = runs.start(runs.policy(views=views("a")))
    await until(5)
    running.cancel()
    assert await running is None
    assert runs.clock.now() == at(5)


async def test_when_the_process_ends_a_held_lock_leaves_its_slot_due() -> None:
    runs = Runs()
    runs.executor.held_until["a"] = at(10_000)
    held, both = runs.start(runs.policy("one", views=views("a"))), runs.start(runs.policy("two"))
    await until(5)
    runs.budget.close()
    runs.pauses.close()
    assert await held is None
    report = await both
    assert outcomes(report) == [("a", RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN), ("b", SUCCESS, None)]
    assert report is not None
    assert report.stopped
    assert runs.clock.now() == at(5)


async def test_when_the_process_ends_the_run_in_flight_goes_on_and_no_other_begins() -> None:
    runs = Runs()
    running = runs.start(runs.policy())
    waiting = runs.start(runs.policy("two", uid=uuid.uuid4(), views=views("c d")))
    await until(0.05)
    runs.budget.close()
    assert outcomes(await running) == [("a", SUCCESS, None), ("b", RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)]
    assert await waiting is None
    assert runs.executor.views == ["a"]
    assert runs.clock.now() - EPOCH < timedelta(seconds=1)


# A consistent group.


GROUP: dict[str, Any] = {"consistency": "Group"}


async def test_a_group_is_refreshed_together_in_one_place_and_each_view_has_a_result() -> None:
    runs = Runs()
    runs.executor.script["b"] = [FAILED]
    report = await runs.run(runs.policy(**GROUP))
    assert [names for names, _ in runs.executor.groups] == [["a", "b"]]
    assert outcomes(report) == [("a", SUCCESS, None), ("b", RefreshOutcome.FAILED, FAILED.reason)]
    assert runs.secrets.reads[key("db")] == 1
    assert len({call.run.slot_id for call in runs.executor.calls}) == 1
    await runs.run(runs.policy())
    assert len(runs.executor.groups) == 1


@pytest.mark.parametrize(("own", "expected"), [((30, 20), 50), ((30, None), 100), ((60, 60), 100)])
async def test_the_timeouts_of_a_groups_views_are_added_up_to_the_databases(
    own: tuple[int, int | None], expected: float
) -> None:
    runs = Runs()
    runs.database(limits={"timeoutSeconds": 100})
    listed = [{"name": name, "timeoutSeconds": seconds} for name, seconds in zip("ab", own, strict=True)]
    await runs.run(runs.policy(views=listed, **GROUP))
    assert [seconds for _, seconds in runs.executor.groups] == [expected]


async def test_a_group_of_which_one_lock_is_held_is_tried_again_whole() -> None:
    runs = Runs()
    runs.executor.held_until["b"] = at(2)
    assert outcomes(await runs.run(runs.policy(**GROUP))) == BOTH_FRESH
    assert len(runs.executor.groups) > 1
    assert {tuple(names) for names, _ in runs.executor.groups} == {("a", "b")}
    assert runs.clock.now() < at(10)


async def test_a_cancelled_group_reports_every_view() -> None:
    runs = Runs()
    running = runs.start(runs.policy(**GROUP))
    await until(0.05)
    running.cancel()
    stopped = (RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)
    assert outcomes(await running) == [("a", *stopped), ("b", *stopped)]


async def test_what_a_person_must_mend_fails_every_view_of_a_group() -> None:
    runs = Runs()
    runs.secrets.data.clear()
    missing = (RefreshOutcome.FAILED, RefreshReason.SECRET_NOT_FOUND)
    assert outcomes(await runs.run(runs.policy(**GROUP))) == [("a", *missing), ("b", *missing)]
    assert runs.executor.groups == []
