"""Status documents on their way to an API server that conflicts, refuses, throttles, forgets or is down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from tests.unit.memory_api import MemoryApi, MemoryEvents
from tests.unit.ports import EPOCH, VirtualClock, at
from tests.unit.world import POLICY, key, policy_spec, until

from matview_operator.api.condition import Condition
from matview_operator.api.database import MatviewDatabaseStatus
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import HistoryEntry, MatviewRefreshPolicyStatus
from matview_operator.engine.ports import ApiUnavailable, Key, ObjectRef
from matview_operator.engine.registry import Database, Policy, Registry
from matview_operator.engine.reporter import WRITERS, Reporter

pytestmark = pytest.mark.looptime(noop_cycles=3)


class Reported:
    """A reporter, policies that exist at the API server, and what was written."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = MemoryApi(self.clock)
        self.events = MemoryEvents(self.clock)
        self.registry = Registry()
        self.gone: list[ObjectRef] = []
        self.patient: set[Key] = set()
        """Whose statuses may wait."""
        self.reporter = Reporter(
            registry=self.registry,
            writer=self.api,
            events=self.events,
            random=Random(3),  # noqa: S311 - jitter
            gone=self.forget,
            may_wait=lambda ref: ref.key in self.patient,
        )

    def forget(self, ref: ObjectRef) -> None:
        self.gone.append(ref)
        self.registry.resource_versions.pop(ref.uid, None)

    def policy(self, name: str = "mv") -> Policy:
        spec = policy_spec(name)
        body = self.api.put(POLICY, key(name), spec)
        uid = body["metadata"]["uid"]
        self.registry.resource_versions[uid] = body["metadata"]["resourceVersion"]
        policy = Policy(
            ref=ObjectRef(kind="MatviewRefreshPolicy", key=key(name), uid=uid),
            generation=1,
            created_at=EPOCH,
            spec=MatviewRefreshPolicySpec.model_validate(spec),
            status=MatviewRefreshPolicyStatus(),
            taken_until=EPOCH,
        )
        self.registry.add_policy(policy)
        return policy

    def say(self, policy: Policy, slot: float, **fields: object) -> None:
        status = {"last_slot_time": at(slot)} | fields
        self.reporter.policy(policy, policy.status.model_copy(update=status))

    def stored(self, place: Key) -> str:
        return str(self.api.status(place).get("lastSlotTime"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reporter.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()


def ready(status: str, reason: str) -> Condition:
    return Condition.model_validate(
        {"type": "Ready", "status": status, "reason": reason, "lastTransitionTime": EPOCH.isoformat()}
    )


async def test_a_status_is_written_once_and_the_same_again_not_at_all() -> None:
    reported = Reported()
    policy = reported.policy()
    async with reported.running():
        reported.say(policy, 30)
        await until(1)
        reported.say(policy, 30)
        reported.reporter.policy(policy, policy.status.model_copy())
        await until(600)
    assert len(reported.api.writes) == 1
    assert len(reported.api.attempts) == 1
    assert reported.stored(policy.key) == "2026-11-22T12:00:30Z"
    assert reported.reporter.pending == 0


async def test_of_many_documents_of_one_object_the_newest_is_written_in_order() -> None:
    reported = Reported()
    policy = reported.policy()
    async with reported.running():
        for slot in range(100):
            reported.say(policy, slot)
        assert reported.reporter.pending == 1
        await until(0.005)  # while that one is being written
        for slot in range(100, 200):
            reported.say(policy, slot)
        await until(5)
    assert [
        status.last_slot_time for _, _, status in reported.api.writes if isinstance(status, MatviewRefreshPolicyStatus)
    ] == [at(99), at(199)]


async def test_each_write_goes_on_the_version_that_the_one_before_made() -> None:
    reported = Reported()
    policy = reported.policy()
    async with reported.running():
        for slot in (30, 60, 90):
            reported.say(policy, slot)
            await until(slot)
    assert len(reported.api.attempts) == len(reported.api.writes) == 3  # no conflict on the way


async def test_many_objects_are_written_by_a_few_at_a_time() -> None:
    reported = Reported()
    policies = [reported.policy(f"p{number}") for number in range(50)]
    async with reported.running():
        for policy in policies:
            reported.say(policy, 30)
        await reported.reporter.flush(seconds=60)
    assert len(reported.api.writes) == 50
    assert max(reported.api.attempts.count(moment) for moment in reported.api.attempts) == WRITERS


async def test_events_are_made_of_transitions_though_the_status_cannot_be_written() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.outage = ApiUnavailable("down")
    async with reported.running():
        for slot in (30, 60, 90):
            reported.say(policy, slot, conditions=(ready("False", "ViewNotFound"),))
        reported.say(policy, 120, conditions=(ready("True", "Scheduled"),))
        await until(600)
    assert len(reported.api.attempts) > 10
    assert reported.events.of(policy.key) == [("Warning", "ViewNotFound"), ("Normal", "Scheduled")]


async def test_events_wait_as_their_status_does() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.patient.add(policy.key)
    async with reported.running():
        reported.say(policy, 30, conditions=(ready("False", "ViewNotFound"),))
        reported.say(policy, 60, conditions=(ready("True", "Scheduled"),))
        await until(4)
        assert reported.events.of(policy.key) == []
        await until(6)
    assert reported.events.of(policy.key) == [("Warning", "ViewNotFound"), ("Normal", "Scheduled")]


async def test_of_thousands_of_transitions_that_nobody_could_be_told_of_the_newest_are_told() -> None:
    reported = Reported()
    policy = reported.policy()
    for number in range(1000):
        reported.say(policy, number, conditions=(ready("False", f"Reason{number}"),))
    async with reported.running():
        await reported.reporter.flush(seconds=10)
    assert reported.events.of(policy.key) == [("Warning", f"Reason{number}") for number in range(980, 1000)]


async def test_a_thousand_that_may_wait_are_not_looked_at_each_time_that_one_comes() -> None:
    reported = Reported()
    policies = [reported.policy(f"p{number}") for number in range(1000)]
    reported.patient |= {policy.key for policy in policies}
    asked = 0
    may_wait = reported.reporter._backlog._may_wait

    def counted(ref: ObjectRef) -> bool:
        nonlocal asked
        asked += 1
        return may_wait(ref)

    reported.reporter._backlog._may_wait = counted
    async with reported.running():
        for number, policy in enumerate(policies):
            await until(number / 500)
            reported.say(policy, number)
        await until(3)
        assert reported.reporter.pending == 1000
        assert asked < 1100  # once each, and now and then the oldest
        reported.patient.clear()
        await reported.reporter.flush(seconds=60)
    assert len(reported.api.writes) == 1000


async def test_one_that_may_wait_no_longer_is_written_before_the_others() -> None:
    reported = Reported()
    patient, urgent = [reported.policy(f"p{number}") for number in range(8)], reported.policy("urgent")
    reported.patient |= {policy.key for policy in (*patient, urgent)}
    async with reported.running():
        for policy in (*patient, urgent):
            reported.say(policy, 30)
        reported.patient.discard(urgent.key)
        reported.say(urgent, 60)
        await until(1)
        assert [ref.key.name for _, ref, _ in reported.api.writes] == ["urgent"]
        reported.patient.clear()
        await until(4)
    assert sorted(ref.key.name for _, ref, _ in reported.api.writes) == sorted(
        policy.key.name for policy in (*patient, urgent)
    )


async def test_an_outage_of_hours_costs_one_document_per_object_and_ends_with_the_newest() -> None:
    reported = Reported()
    policies = [reported.policy(f"p{number}") for number in range(6)]
    reported.api.outage = ApiUnavailable("out of reach")
    async with reported.running():
        for minute in range(180):
            await until(minute * 60)
            for policy in policies:
                reported.say(policy, minute * 60)
            assert reported.reporter.pending <= len(policies)
        # Four writers that try every 15 to 30 s.
        assert len(reported.api.attempts) < 180 * 60 / 15 * WRITERS
        reported.api.outage = None
        await asyncio.sleep(60)
        assert {reported.stored(policy.key) for policy in policies} == {"2026-11-22T14:59:00Z"}
    assert len(reported.api.writes) == len(policies)


async def test_a_document_that_failed_does_not_replace_a_newer_one() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.outage = ApiUnavailable("a moment")
    async with reported.running():
        reported.say(policy, 30)
        await until(0.005)
        reported.say(policy, 60)  # while the first is under way
        await until(0.02)
        reported.api.outage = None
        await until(10)
    assert reported.stored(policy.key) == "2026-11-22T12:01:00Z"
    assert len(reported.api.writes) == 1


@pytest.mark.parametrize("seconds", [7.0, 120.0])
async def test_retry_after_is_obeyed(seconds: float) -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.outage = ApiUnavailable("429", retry_after=seconds)
    async with reported.running():
        reported.say(policy, 30)
        await until(1)
        reported.api.outage = None
        await until(seconds - 0.5)
        assert len(reported.api.attempts) == 1
        await until(seconds + 1)
        assert len(reported.api.writes) == 1


async def test_a_deleted_object_is_told_and_forgotten() -> None:
    reported = Reported()
    policy, other = reported.policy(), reported.policy("other")
    reported.api.delete(POLICY, policy.key)
    async with reported.running():
        reported.say(policy, 30)
        await until(1)
        reported.say(policy, 60)
        reported.say(other, 60)
        await until(600)
    assert reported.gone == [policy.ref]
    assert [ref for _, ref, _ in reported.api.writes] == [other.ref]
    assert len(reported.api.attempts) == 2


async def test_another_object_under_the_name_is_never_written_to() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.delete(POLICY, policy.key)
    successor = reported.policy()
    async with reported.running():
        reported.say(policy, 30)
        await until(10)
    assert reported.gone == [policy.ref]
    assert successor.ref.uid != policy.ref.uid
    assert reported.api.status(successor.key) == {}


async def test_what_was_forgotten_while_it_waited_is_not_written() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.say(policy, 30)
    reported.reporter.forget(policy.ref)
    async with reported.running():
        await until(10)
    assert reported.api.attempts == []


async def test_what_is_forgotten_in_the_middle_of_a_conflict_is_not_remembered() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.put(POLICY, policy.key, policy_spec("mv", suspend=True))
    async with reported.running():
        reported.say(policy, 30)
        await until(0.005)
        reported.forget(policy.ref)
        await until(10)
    assert reported.registry.resource_versions == {}
    assert reported.api.writes == []


async def test_a_conflict_is_written_again_on_the_version_of_now() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.put(POLICY, policy.key, policy_spec("mv", suspend=True))  # somebody else, unseen yet
    async with reported.running():
        reported.say(policy, 30)
        await until(10)
    assert len(reported.api.attempts) == 2
    assert reported.stored(policy.key) == "2026-11-22T12:00:30Z"
    assert reported.api.objects[POLICY, policy.key]["spec"]["suspend"] is True


async def test_a_conflict_gives_way_to_the_newest_document() -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.put(POLICY, policy.key, policy_spec("mv", suspend=True))
    async with reported.running():
        reported.say(policy, 30)
        await until(0.005)
        reported.say(policy, 60)
        await until(10)
    assert [
        status.last_slot_time for _, _, status in reported.api.writes if isinstance(status, MatviewRefreshPolicyStatus)
    ] == [at(60)]


def entry(seconds: float, correlation_id: str | None = None) -> HistoryEntry:
    return HistoryEntry(
        outcome=RefreshOutcome.SUCCESS,
        started_at=at(seconds),
        duration_ms=1,
        views=1,
        failed=0,
        correlation_id=correlation_id,
    )


@pytest.mark.parametrize(
    ("theirs", "dropped"),
    [
        ({"last_slot_time": at(60)}, True),
        ({"last_slot_time": at(30)}, False),
        ({"last_slot_time": at(0)}, False),
        ({}, False),
        ({"last_slot_time": at(30), "history": (entry(45),)}, True),
        ({"last_slot_time": at(30), "history": (entry(31),)}, False),
        ({"last_slot_time": at(0), "observed_generation": 2}, True),
        ({"last_slot_time": at(0), "observed_generation": 1}, False),
    ],
)
async def test_ours_is_dropped_where_another_process_has_gone_on(theirs: dict[str, object], *, dropped: bool) -> None:
    reported = Reported()
    policy = reported.policy()
    other = MatviewRefreshPolicyStatus().model_copy(update=theirs)
    version = reported.registry.resource_versions[policy.ref.uid]
    await reported.api.write(policy.ref, other, resource_version=version)  # by another operator
    before = reported.api.status(policy.key)
    async with reported.running():
        reported.say(policy, 30, history=(entry(32),), observed_generation=1)
        await until(10)
        reported.say(policy, 30, history=(entry(32),), observed_generation=1, missed_slots=1)
        await until(15)
        assert (reported.api.status(policy.key) == before) is dropped
        # The next one is written all the same: nobody is locked out for good.
        reported.say(policy, 90, history=(entry(92),), observed_generation=2)
        await until(20)
    assert reported.stored(policy.key) == "2026-11-22T12:01:30Z"


async def test_ours_is_written_where_it_goes_on_from_what_is_stored_though_the_clock_was_set_back_since() -> None:
    reported = Reported()
    policy = reported.policy()
    before, since = entry(3600, "before"), entry(45, "since")
    stored = MatviewRefreshPolicyStatus().model_copy(update={"last_slot_time": at(3600), "history": (before,)})
    version = reported.registry.resource_versions[policy.ref.uid]
    await reported.api.write(policy.ref, stored, resource_version=version)  # our own; its answer got lost
    async with reported.running():
        reported.say(policy, 3600, history=(since, before))
        await until(10)
    assert [row["correlationId"] for row in reported.api.status(policy.key)["history"]] == ["since", "before"]


async def test_a_refused_status_is_logged_not_retried_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    reported = Reported()
    policy, other = reported.policy(), reported.policy("other")
    reported.api.refused.add(policy.key)
    async with reported.running():
        reported.say(policy, 30)
        reported.say(other, 30)
        await until(600)
    assert len(reported.api.attempts) == 2
    assert [ref for _, ref, _ in reported.api.writes] == [other.ref]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["object"] == "analytics/mv"


async def test_an_unexpected_error_of_one_write_stops_no_writer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = Reported()
    policies = [reported.policy(f"p{number}") for number in range(10)]
    write = reported.api.write

    async def broken(ref: ObjectRef, status: MatviewRefreshPolicyStatus, *, resource_version: str) -> str:
        if ref.key.name != "p9":
            raise KeyError("metadata")
        return await write(ref, status, resource_version=resource_version)

    monkeypatch.setattr(MemoryApi, "write", lambda _, *arguments, **named: broken(*arguments, **named))
    async with reported.running():
        for policy in policies:
            reported.say(policy, 30)
        await reported.reporter.flush(seconds=10)
    assert [ref.key.name for _, ref, _ in reported.api.writes] == ["p9"]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 9


async def test_databases_are_written_the_same_way() -> None:
    reported = Reported()
    body = reported.api.put("MatviewDatabase", key("db"), {})
    ref = ObjectRef(kind="MatviewDatabase", key=key("db"), uid=body["metadata"]["uid"])
    reported.registry.resource_versions[ref.uid] = "0"  # old: a conflict first
    database = Database(ref=ref, generation=1, spec=None, status=MatviewDatabaseStatus())
    async with reported.running():
        for _ in range(3):
            reported.reporter.database(database, MatviewDatabaseStatus(conditions=(ready("True", "Connected"),)))
            await reported.reporter.flush(seconds=5)
    assert len(reported.api.writes) == 1
    assert reported.events.of(ref.key) == [("Normal", "Connected")]
    assert reported.api.status(ref.key, "MatviewDatabase")["conditions"][0]["reason"] == "Connected"


async def test_flush_waits_for_what_is_pending_and_not_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    reported = Reported()
    policy = reported.policy()
    reported.api.seconds = 3
    async with reported.running():
        reported.say(policy, 30)
        await reported.reporter.flush(seconds=60)
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert len(reported.api.writes) == 1
        reported.api.outage = ApiUnavailable("down")
        reported.say(policy, 60)
        await reported.reporter.flush(seconds=5)
        assert asyncio.get_running_loop().time() == pytest.approx(8)
    assert "statuses were not written" in caplog.text
