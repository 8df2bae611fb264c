"""A view that failed is tried again in its slot: how soon, how often, what ends it, what brings it forward."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.ports import FAILED, LOCK_HELD, UNKNOWN, Told, at
from tests.unit.world import POLICY, World, until

from matview_operator.api.model import REQUESTED_AT
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

HOURLY = {"cron": "1 * * * *"}
FIRST = 60.0
"""When the first slot of HOURLY is due; no preflight is then."""
SECOND = 3660.0


def failed(reason: RefreshReason, outcome: RefreshOutcome = RefreshOutcome.FAILED) -> Told:
    return Told(outcome=outcome, reason=reason, message="so it is")


REFUSED = failed(RefreshReason.CONNECTION_FAILED)
LOST = failed(RefreshReason.CONNECTION_LOST, RefreshOutcome.INTERRUPTED)
DEADLOCK = failed(RefreshReason.DEADLOCK)
TIMEOUT = failed(RefreshReason.TIMEOUT)
NOT_FOUND = failed(RefreshReason.VIEW_NOT_FOUND)


def times(world: World, view: str = "mv") -> list[datetime]:
    return [call.at for call in world.executor.calls if str(call.run.view) == view]


def pauses(world: World, view: str = "mv") -> list[float]:
    """Seconds from the end of each attempt to the next one."""
    each = times(world, view)
    return [(later - earlier).total_seconds() - world.executor.seconds for earlier, later in pairwise(each)]


def attempts(world: World, place: Key) -> list[int]:
    return [view["attempts"] for view in world.api.status(place)["views"]]


def history(world: World, place: Key) -> list[tuple[str, str]]:
    return [
        (entry.get("slotTime") or entry["request"], entry["outcome"]) for entry in world.api.status(place)["history"]
    ]


# How soon and how often.


@pytest.mark.parametrize("told", [LOST, DEADLOCK])
async def test_what_is_gone_with_the_attempt_is_tried_again_at_once_and_then_with_back_off(told: Told) -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY)
        world.executor.script["mv"] = [told] * 3
        await until(FIRST + 100)
        first, second, third = pauses(world)
        assert first == pytest.approx(0, abs=0.001)
        assert 0 < second <= 10
        assert 0 < third <= 20
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert attempts(world, place) == [4]
        assert history(world, place) == [("2026-11-22T12:01:00Z", "SUCCESS")]
        assert world.api.status(place)["consecutiveFailures"] == 0
        assert world.metrics.runs == {(place, "SUCCESS"): 1}
        assert world.metrics.retries == {(place, told.reason): 3}
        assert world.metrics.lags == [0]


async def test_back_off_doubles_with_full_jitter_and_ends_after_the_limit() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, retry={"limit": 4, "backoffSeconds": 5, "maxBackoffSeconds": 12})
        world.executor.script["mv"] = [REFUSED] * 50
        await until(FIRST + 500)
        assert [pause <= longest for pause, longest in zip(pauses(world), (5, 10, 12, 12), strict=True)] == [True] * 4
        assert len(set(pauses(world))) == 4
        assert world.condition(place, "Fresh") == ("False", "ConnectionFailed")
        assert attempts(world, place) == [5]
        assert history(world, place) == [("2026-11-22T12:01:00Z", "FAILED")]
        assert world.api.status(place)["consecutiveFailures"] == 1
        assert world.metrics.missed == {}


async def test_what_lasts_is_tried_again_after_most_of_the_longest_pause() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY)
        world.executor.script["mv"] = [TIMEOUT] * 2
        await until(FIRST + 1300)
        assert [300 <= pause <= 600 for pause in pauses(world)] == [True, True]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_limit_of_none_tries_nothing_again() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, retry={"limit": 0})
        world.executor.script["mv"] = [DEADLOCK]
        await until(FIRST + 1)
        assert world.condition(place, "Fresh") == ("False", "Deadlock")
        assert len(world.executor.calls) == 1


async def test_a_held_lock_and_an_unknown_commit_are_waited_for_besides_the_limit() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, startingDeadlineSeconds=100, retry={"limit": 1})
        world.executor.script["mv"] = [LOCK_HELD, LOCK_HELD, UNKNOWN, DEADLOCK, LOCK_HELD]
        await until(FIRST + 100)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert attempts(world, place) == [3]  # a lock that was held is no attempt


async def test_no_retry_begins_at_or_after_the_next_slot_and_what_is_given_up_is_told_at_once() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"everySeconds": 300})
        world.executor.script["mv"] = [TIMEOUT]  # the retry would come 300 to 600 s later
        await until(301)
        assert world.condition(place, "Fresh") == ("False", "Timeout")
        assert history(world, place) == [("2026-11-22T12:05:00Z", "FAILED")]
        await until(601)
        assert times(world) == [at(300), at(600)]
        assert world.metrics.missed == {}


async def test_a_slot_that_took_up_its_time_is_not_tried_again_the_newest_takes_over() -> None:
    async with World() as world:
        world.database()
        world.policy(schedule={"everySeconds": 60}, startingDeadlineSeconds=100)
        world.executor.seconds = 70
        world.executor.script["mv"] = [LOST]
        await until(140)
        assert [call.run.due_at for call in world.executor.calls] == [at(60), at(120)]


async def test_a_retry_may_begin_after_the_deadline_of_a_slot_that_began_in_time() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, startingDeadlineSeconds=1)
        world.executor.script["mv"] = [TIMEOUT]
        await until(FIRST + 601)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_the_secret_is_read_anew_for_each_attempt() -> None:
    async with World() as world:
        database = world.database()
        world.policy(schedule=HOURLY)
        await until(FIRST - 1)
        before = world.secrets.reads[database]
        world.executor.script["mv"] = [LOST, REFUSED]
        await until(FIRST + 100)
        assert len(world.executor.calls) == 3
        assert world.secrets.reads[database] == before + 3


async def test_a_clock_that_is_set_back_delays_no_retry() -> None:
    async with World() as world:
        world.database()
        world.policy(schedule=HOURLY)
        await until(SECOND - 1)
        world.executor.script["mv"] = [TIMEOUT]
        await until(SECOND + 1)
        world.clock.set_by = timedelta(hours=-1)
        await until(SECOND + 601)
        assert [call.run.due_at for call in world.executor.calls] == [at(FIRST), at(SECOND), at(SECOND)]


# Others.


async def test_other_views_do_not_wait_for_one_that_waits_and_no_place_is_held_meanwhile() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        place = world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b"}, {"name": "c"}])
        world.policy("one", schedule=HOURLY)
        world.executor.script["a"] = [TIMEOUT]
        world.executor.script["b"] = [TIMEOUT]
        await until(FIRST + 2)
        assert world.executor.views in (["a", "one", "b", "c"], ["one", "a", "b", "c"])
        await until(FIRST + 700)
        assert sorted(world.executor.views[4:]) == ["a", "b"]
        assert attempts(world, place) == [2, 2, 1]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_group_is_tried_again_as_a_whole() -> None:
    async with World() as world:
        world.database()
        place = world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b"}], consistency="Group")
        world.executor.script["a"] = [failed(RefreshReason.GROUP_ROLLED_BACK, RefreshOutcome.INTERRUPTED)]
        world.executor.script["b"] = [DEADLOCK]
        await until(FIRST + 10)
        assert [names for names, _ in world.executor.groups] == [["a", "b"]] * 2
        assert attempts(world, place) == [2, 2]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


# What the user sees meanwhile.


async def test_a_long_wait_is_told_once_and_the_slot_takes_two_writes_at_most() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY)
        await until(FIRST - 1)
        before = world.api.writes_to(place)
        world.executor.script["mv"] = [TIMEOUT] * 10
        await until(FIRST + 5)
        assert world.condition(place, "Fresh") == ("False", "Retrying")
        (message,) = [c["message"] for c in world.api.status(place)["conditions"] if c["type"] == "Fresh"]
        assert message.startswith("mv is tried again at 2026-11-22T12:")
        assert message.endswith("Timeout: so it is")
        assert world.api.writes_to(place) == before + 1
        await until(FIRST + 2000)
        assert len(world.executor.calls) == 4
        assert world.condition(place, "Fresh") == ("False", "Timeout")
        assert world.api.writes_to(place) == before + 2
        # Fresh says already that it is not: the next slot is told when it has ended.
        await until(SECOND + 5)
        assert world.condition(place, "Fresh") == ("False", "Timeout")
        assert world.api.writes_to(place) == before + 2


async def test_a_wait_that_is_soon_over_is_not_told() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, retry={"limit": 3, "backoffSeconds": 1, "maxBackoffSeconds": 1})
        await until(FIRST - 1)
        before = world.api.writes_to(place)
        world.executor.script["mv"] = [REFUSED] * 3
        await until(FIRST + 10)
        assert world.api.writes_to(place) == before + 1
        assert world.events.of(place) == [("Normal", "Scheduled"), ("Normal", "Refreshed")]


# Requests.


async def test_a_request_is_tried_again_and_answered_only_at_the_end() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"everySeconds": 31_536_000}, startingDeadlineSeconds=1)
        await until(10)
        world.executor.script["mv"] = [LOST, REFUSED, REFUSED]
        world.policy(
            schedule={"everySeconds": 31_536_000},
            startingDeadlineSeconds=1,
            annotations={"matviews.skeldir.io/requestedAt": "r1"},
        )
        await until(10.5)
        assert len(world.executor.calls) >= 2
        assert "lastHandledRequest" not in world.api.status(place)
        assert world.condition(place, "Reconciling") == ("True", "RefreshRequested")
        await until(100)
        assert world.api.status(place)["lastHandledRequest"] == "r1"
        assert history(world, place) == [("r1", "SUCCESS")]
        assert attempts(world, place) == [4]
        assert {call.run.slot_id for call in world.executor.calls} == {"request:r1"}


async def test_a_request_is_answered_at_once_with_what_lasts() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY, annotations={"matviews.skeldir.io/requestedAt": "r1"})
        world.executor.script["mv"] = [TIMEOUT]
        await until(2)
        assert history(world, place) == [("r1", "FAILED")]
        assert len(world.executor.calls) == 1


async def test_a_slot_that_comes_due_behind_a_waiting_request_brings_it_forward_and_is_not_late() -> None:
    async with World() as world:
        world.database()
        place = world.policy(
            schedule={"everySeconds": 60},
            startingDeadlineSeconds=5,
            retry={"limit": 20, "backoffSeconds": 3600, "maxBackoffSeconds": 3600},
            annotations={"matviews.skeldir.io/requestedAt": "r1"},
        )
        world.executor.script["mv"] = [REFUSED, REFUSED]
        await until(59)
        assert times(world) == [at(0)]
        await until(62)
        assert [(call.run.slot_id, call.at) for call in world.executor.calls] == [
            ("request:r1", at(0)),
            ("request:r1", at(60)),
            ("slot:2026-11-22T12:01:00Z", at(60.1)),
        ]
        assert history(world, place) == [("2026-11-22T12:01:00Z", "SUCCESS"), ("r1", "FAILED")]
        assert world.metrics.missed == {}
        assert world.metrics.retries == {(place, "ConnectionFailed"): 1}


async def test_a_request_takes_over_from_a_slot_that_waits() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY)
        world.executor.script["mv"] = [TIMEOUT]
        await until(FIRST + 10)
        world.policy(schedule=HOURLY, annotations={"matviews.skeldir.io/requestedAt": "r1"})
        await until(FIRST + 11)
        assert history(world, place) == [("r1", "SUCCESS"), ("2026-11-22T12:01:00Z", "FAILED")]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        await until(FIRST + 3000)
        assert len(world.executor.calls) == 2


# What changes meanwhile.


async def test_a_changed_database_wakes_at_once_what_waits() -> None:
    async with World() as world:
        world.database()
        places = [world.policy(name, schedule=HOURLY) for name in ("a", "b")]
        for name in ("a", "b"):
            world.executor.script[name] = [TIMEOUT]
        await until(FIRST + 10)
        assert len(world.executor.calls) == 2
        world.database(allowSuperuser=True)
        await until(FIRST + 11)
        assert [times(world, name)[1] for name in ("a", "b")] == [at(FIRST + 10)] * 2
        assert [world.condition(place, "Fresh") for place in places] == [("True", "Refreshed")] * 2


async def test_a_suspended_database_ends_the_waiting_at_once_and_the_last_attempt_is_told() -> None:
    async with World() as world:
        world.database()
        place = world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b"}])
        world.executor.script["a"] = [TIMEOUT]
        await until(FIRST + 10)
        world.database(suspend=True)
        await until(FIRST + 11)
        status = world.api.status(place)
        assert [(view["outcome"], view.get("reason")) for view in status["views"]] == [
            ("FAILED", "Timeout"),
            ("SUCCESS", None),
        ]
        assert status["lastSlotTime"] == "2026-11-22T12:01:00Z"
        world.database()
        await until(FIRST + 3000)
        assert world.executor.views == ["a", "b"]


@pytest.mark.parametrize("how", ["suspended", "deleted"])
async def test_a_policy_that_is_suspended_or_deleted_is_not_tried_again(how: str) -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=HOURLY)
        world.executor.script["mv"] = [TIMEOUT]
        await until(FIRST + 10)
        if how == "deleted":
            world.api.delete(POLICY, place)
        else:
            world.policy(schedule=HOURLY, suspend=True)
        await until(FIRST + 3000)
        assert len(world.executor.calls) == 1
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("slot")]
        if how == "suspended":
            assert world.condition(place, "Fresh") == ("False", "Timeout")


async def test_a_changed_policy_is_run_as_it_is_now_once_and_keeps_what_succeeded() -> None:
    async with World() as world:
        world.database()
        place = world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b"}])
        world.executor.script["b"] = [TIMEOUT] * 9
        await until(FIRST + 10)
        world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b", "timeoutSeconds": 7}])
        await until(FIRST + 11)
        assert world.executor.views == ["a", "b", "b"]
        assert world.executor.calls[2].run.timeout_seconds == 7
        assert world.executor.calls[2].run.slot_id == world.executor.calls[1].run.slot_id
        assert world.api.status(place)["consecutiveFailures"] == 1


async def test_a_policy_changed_while_its_slot_is_at_work_is_run_as_it_is_now_if_that_fails() -> None:
    async with World() as world:
        world.database()
        world.policy(schedule=HOURLY, retry={"limit": 0})
        world.executor.script["mv"] = [TIMEOUT, TIMEOUT]
        await until(SECOND - 1)
        world.executor.seconds = 10
        await until(SECOND + 5)
        world.policy(schedule=HOURLY, retry={"limit": 0}, views=[{"name": "mv", "timeoutSeconds": 7}])
        await until(SECOND + 11)
        assert [call.run.due_at for call in world.executor.calls] == [at(FIRST), at(SECOND), at(SECOND)]
        assert world.executor.calls[2].run.timeout_seconds == 7


async def test_shutdown_ends_the_waiting_at_once_tells_the_last_attempt_and_leaves_the_slot_due() -> None:
    async with World() as world:
        world.database()
        place = world.policy("p", schedule=HOURLY, views=[{"name": "a"}, {"name": "b"}])
        world.executor.script["a"] = [TIMEOUT]
        await until(FIRST + 10)
        stopping = asyncio.create_task(world.supervisor.stop(grace_seconds=600))
        await until(FIRST + 11)
        assert stopping.done()
        status = world.api.status(place)
        assert [view["outcome"] for view in status["views"]] == ["FAILED", "SUCCESS"]
        assert "lastSlotTime" not in status
        assert world.condition(place, "Fresh") == ("False", "Timeout")
    async with World(former=world) as after:
        await until(FIRST + 12)
        assert after.executor.views == ["a", "b", "a", "b"]  # without a ledger
        assert history(after, place) == [("2026-11-22T12:01:00Z", "SUCCESS")]
        assert after.api.status(place)["consecutiveFailures"] == 0


# What a preflight finds.


async def test_a_view_that_is_created_is_found_within_the_interval_and_its_failed_slot_is_run_once_more() -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 40})
        views = [{"name": "a"}, {"name": "mv"}]
        place = world.policy("p", schedule=HOURLY, views=views, startingDeadlineSeconds=300)
        world.inspector.answers["mv"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no mv.")
        world.executor.script["mv"] = [NOT_FOUND] * 2
        await until(FIRST + 30)
        assert history(world, place) == [("2026-11-22T12:01:00Z", "FAILED")]
        assert len(times(world)) == 1
        del world.inspector.answers["mv"]
        world.executor.script["mv"] = []
        await until(FIRST + 61)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.executor.views == ["a", "mv", "mv"]
        assert history(world, place) == [("2026-11-22T12:01:00Z", "SUCCESS")]
        assert attempts(world, place) == [1, 2]
        assert world.metrics.runs == {(place, "SUCCESS"): 2, (place, "FAILED"): 1}
        assert world.metrics.lags == [0]
        assert world.metrics.missed == {}


async def test_a_failed_slot_is_run_again_once_however_often_all_is_found_well() -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 30})
        place = world.policy(schedule=HOURLY, startingDeadlineSeconds=3000)
        world.executor.script["mv"] = [NOT_FOUND] * 9
        await until(FIRST + 2900)
        assert len(world.executor.calls) == 2
        assert world.api.status(place)["consecutiveFailures"] == 1


@pytest.mark.parametrize("deadline", [80, 1000])
async def test_a_request_that_does_the_work_of_a_slot_that_waits_to_be_run_again_settles_it(deadline: int) -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 40}, limits={"minIntervalSeconds": 100})
        spec: dict[str, Any] = {
            "schedule": HOURLY,
            "views": [{"name": "a"}, {"name": "mv"}],
            "startingDeadlineSeconds": deadline,
        }
        place = world.policy("p", **spec)
        world.inspector.answers["mv"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no mv.")
        world.executor.script["mv"] = [NOT_FOUND]
        await until(FIRST + 10)
        del world.inspector.answers["mv"]
        await until(FIRST + 60)  # it waits for the interval since its own a
        world.policy("p", annotations={REQUESTED_AT: "now"}, **spec)
        await until(FIRST + 500)
        assert world.executor.views == ["a", "mv", "a", "mv"]
        assert world.metrics.missed == {}
        assert world.api.status(place).get("missedSlots") is None
        assert [entry["outcome"] for entry in world.api.status(place)["history"]] == ["SUCCESS", "FAILED"]


@pytest.mark.parametrize("why", ["late", "superseded", "suspended"])
async def test_a_failed_slot_that_may_not_start_any_more_is_left(why: str) -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 70})
        schedule = {"everySeconds": 60} if why == "superseded" else HOURLY
        deadline = 20 if why == "late" else 1000
        world.policy(schedule=schedule, startingDeadlineSeconds=deadline)
        world.inspector.answers["mv"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no mv.")
        world.executor.script["mv"] = [NOT_FOUND]
        await until(75)
        if why == "suspended":
            world.policy(schedule=schedule, startingDeadlineSeconds=deadline, suspend=True)
        await until(80)
        world.executor.seconds = 30  # from 120 on, if there is a slot
        del world.inspector.answers["mv"]
        await until(179)
        assert [call.run.due_at for call in world.executor.calls] == [at(60), at(120)][: 1 + (why == "superseded")]
        assert sum(world.metrics.missed.values()) == 0


async def test_what_no_preflight_sees_is_not_run_again_because_one_found_all_well() -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 30})
        world.policy(schedule=HOURLY, retry={"limit": 0})
        world.executor.script["mv"] = [FAILED]
        await until(FIRST + 200)
        assert len(world.executor.calls) == 1


async def test_a_server_found_well_again_wakes_what_waits() -> None:
    async with World() as world:
        world.database(inventory={"checkIntervalSeconds": 30})
        world.policy(schedule=HOURLY, retry={"limit": 3, "backoffSeconds": 3600, "maxBackoffSeconds": 3600})
        world.inspector.down["db"] = Problem(RefreshReason.CONNECTION_FAILED, "refused")
        world.executor.script["mv"] = [TIMEOUT]
        await until(FIRST + 20)
        assert len(world.executor.calls) == 1
        del world.inspector.down["db"]
        await until(FIRST + 31)
        assert times(world)[1] == at(FIRST + 30.05)
