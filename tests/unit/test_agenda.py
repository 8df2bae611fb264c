"""What a user notices of slots, in virtual time: when views are refreshed, and what status, events and metrics say."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.unit.ports import FAILED, LOCK_HELD, at
from tests.unit.world import World, until

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.schedule import Due, Timetable

pytestmark = pytest.mark.looptime(noop_cycles=3)


async def test_nothing_runs_on_apply_and_the_next_slot_is_the_first() -> None:
    async with World() as world:
        world.database()
        await until(3)
        place = world.policy()
        await until(29)
        assert world.executor.calls == []
        assert world.condition(place, "Fresh") == ("Unknown", "NotYetRun")
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        status = world.api.status(place)
        assert (status["schedule"], status["nextSlotTime"]) == ("every 30s", "2026-11-22T12:00:30Z")
        await until(45)
        assert [call.at for call in world.executor.calls] == [at(30)]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_applied_in_the_very_second_of_a_slot_it_waits_for_the_next_one() -> None:
    async with World() as world:
        world.database()
        await until(30.4)  # creationTimestamp is 12:00:30
        world.policy()
        await until(59)
        assert world.executor.calls == []


async def test_each_slot_runs_at_its_instant_with_one_status_write_when_all_views_have_ended() -> None:
    async with World() as world:
        world.database()
        place = world.policy(views=[{"name": "a"}, {"name": "b"}])
        await until(29)
        writes = world.api.writes_to(place)
        await until(119)
        assert [call.at for call in world.executor.calls] == [at(30), at(30), at(60), at(60), at(90), at(90)]
        assert world.api.writes_to(place) == writes + 3
        assert [entry["slotTime"] for entry in world.api.status(place)["history"]] == [
            "2026-11-22T12:01:30Z",
            "2026-11-22T12:01:00Z",
            "2026-11-22T12:00:30Z",
        ]
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:02:00Z"
        assert world.metrics.lags == [0, 0, 0]
        assert world.metrics.runs == {(place, "SUCCESS"): 6}


async def test_a_scheduled_slot_never_says_reconciling() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(100)
        said = [status for _, ref, status in world.api.writes if ref.key == place]
        assert said
        assert not any(condition.type == "Reconciling" for status in said for condition in status.conditions)


async def test_a_cron_policy_is_due_in_its_zone() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "2 13 * * *", "timeZone": "Europe/Berlin"})
        await until(200)
        assert [call.at for call in world.executor.calls] == [at(120)]
        assert world.api.status(place)["nextSlotTime"] == "2026-11-23T12:02:00Z"


async def test_a_slot_that_takes_too_long_supersedes_its_followers_and_the_newest_is_run() -> None:
    async with World() as world:
        world.database()
        place = world.policy(startingDeadlineSeconds=100)
        world.executor.seconds = 100  # from 30 to 130; 60 and 90 are superseded, 120 waits
        await until(140)
        world.executor.seconds = 0.1
        assert [call.run.due_at for call in world.executor.calls] == [at(30), at(120)]
        assert world.metrics.missed == {place: 2}
        assert "missedSlots" not in world.api.status(place)  # the slot of 120 will tell
        assert world.executor.most_at_once["all"] == 1
        await until(400)
        assert world.api.status(place)["missedSlots"] == world.metrics.missed[place] == 4


async def test_a_waiting_slot_past_its_deadline_is_missed_and_said_so() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"everySeconds": 60}, startingDeadlineSeconds=20)
        world.executor.seconds = 85  # from 60 to 145; the slot of 120 may begin until 140
        await until(146)
        assert len(world.executor.calls) == 1
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        assert world.api.status(place)["missedSlots"] == 1
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:02:00Z"
        assert world.metrics.missed == {place: 1}
        assert ("Warning", "SlotMissed") in world.events.of(place)


async def test_a_slot_without_a_place_is_missed_at_its_deadline_not_run_late() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        hog = world.policy("hog", schedule={"everySeconds": 40})
        place = world.policy("mv", schedule={"everySeconds": 60}, startingDeadlineSeconds=20)
        world.executor.seconds = 70  # the hog's, from 40 to 110
        await until(79)
        assert world.supervisor.queue_depth == 1
        await until(81)
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        assert world.executor.views == ["hog"]
        assert world.known(hog).missed == 0  # its slot of 80 waits and is in time


async def test_the_lag_of_a_slot_counts_its_waiting_for_a_place() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        for name in ("a", "b", "c"):
            world.policy(name)
        world.executor.seconds = 5
        await until(50)
        assert world.metrics.lags == [0, 5, 10]


async def test_a_lock_held_until_the_deadline_is_a_missed_slot_and_no_failure() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"everySeconds": 60})
        world.executor.held_until["mv"] = at(115)
        await until(110)
        status = world.api.status(place)
        assert (status["missedSlots"], status["consecutiveFailures"]) == (1, 0)
        assert status["lastSlotTime"] == "2026-11-22T12:01:00Z"
        assert world.condition(place, "Fresh") == ("False", "LockHeld")
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.metrics.missed == {place: 1}
        await until(125)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_ready_falls_after_three_failed_slots_fresh_at_the_first_and_each_makes_one_event() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.script["mv"] = [FAILED] * 5
        await until(50)
        assert world.condition(place, "Fresh") == ("False", "ViewQueryFailed")
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        await until(80)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        await until(110)
        assert world.condition(place, "Ready") == ("False", "ViewQueryFailed")
        await until(170)
        assert world.api.status(place)["consecutiveFailures"] == 5
        await until(190)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.events.of(place) == [
            ("Normal", "Scheduled"),
            ("Warning", "ViewQueryFailed"),  # Fresh
            ("Warning", "ViewQueryFailed"),  # Ready
            ("Normal", "Scheduled"),
            ("Normal", "Refreshed"),
        ]


async def test_history_is_as_long_as_the_policy_says() -> None:
    async with World() as world:
        world.database()
        place = world.policy(historyLimit=2)
        await until(125)
        assert [entry["slotTime"] for entry in world.api.status(place)["history"]] == [
            "2026-11-22T12:02:00Z",
            "2026-11-22T12:01:30Z",
        ]


# Suspension.


async def test_a_suspended_policy_is_not_due_and_owes_nothing_when_it_is_resumed() -> None:
    async with World() as world:
        world.database()
        place = world.policy(startingDeadlineSeconds=1000)
        await until(35)
        world.policy(startingDeadlineSeconds=1000, suspend=True)
        await until(95)
        assert world.condition(place, "Ready") == ("True", "Suspended")
        assert "nextSlotTime" not in world.api.status(place)
        world.policy(startingDeadlineSeconds=1000)
        await until(119)
        assert [call.at for call in world.executor.calls] == [at(30)]
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:02:00Z"
        await until(121)
        assert [call.at for call in world.executor.calls] == [at(30), at(120)]
        assert world.metrics.missed == {}


async def test_suspending_drops_the_slot_that_waits_and_lets_the_one_in_flight_end() -> None:
    async with World() as world:
        world.database()
        world.policy(startingDeadlineSeconds=1000)
        world.executor.seconds = 50
        await until(65)  # the slot of 30 runs until 80, the one of 60 waits
        world.policy(startingDeadlineSeconds=1000, suspend=True)
        await until(200)
        assert [call.at for call in world.executor.calls] == [at(30)]
        assert world.executor.cancelled == []


async def test_suspending_drops_the_slot_that_waits_for_a_place() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("hog", startingDeadlineSeconds=1000)
        place = world.policy("mv", startingDeadlineSeconds=1000)
        world.executor.seconds = 20
        await until(35)
        assert world.supervisor.queue_depth == 1
        world.policy("mv", startingDeadlineSeconds=1000, suspend=True)
        await until(59)
        assert world.executor.views == ["hog"]
        assert "lastSlotTime" not in world.api.status(place)


async def test_a_suspended_database_stops_all_its_policies_and_resumed_it_goes_on_with_the_next_slots() -> None:
    async with World() as world:
        database = world.database()
        places = [world.policy(name, startingDeadlineSeconds=1000) for name in ("a", "b")]
        other = world.database("other")
        world.policy("c", databaseRef={"name": "other"})
        await until(35)
        world.database(suspend=True)
        await until(95)
        assert sorted(world.executor.views) == ["a", "b", "c", "c", "c"]
        assert [world.condition(place, "Ready") for place in places] == [("False", "DatabaseSuspended")] * 2
        assert world.condition(database, "Ready", of="MatviewDatabase") == ("True", "Suspended")
        assert world.condition(other, "Ready", of="MatviewDatabase") == ("True", "Connected")
        world.database()
        await until(119)
        assert sorted(world.executor.views) == ["a", "b", "c", "c", "c"]
        assert [world.condition(place, "Ready") for place in places] == [("True", "Scheduled")] * 2
        await until(125)
        assert sorted(world.executor.views) == ["a", "a", "b", "b", "c", "c", "c", "c"]
        assert world.metrics.missed == {}


async def test_suspending_a_database_stops_its_runs_at_once_and_the_status_says_why() -> None:
    async with World() as world:
        database = world.database()
        place = world.policy(views=[{"name": "a"}, {"name": "b"}], startingDeadlineSeconds=1000)
        world.database("other")
        world.policy("c", databaseRef={"name": "other"})
        world.executor.seconds = 25
        await until(40)
        world.database(suspend=True)
        await until(41)
        assert sorted(world.executor.cancelled) == ["a", "b"]
        status = world.api.status(place)
        assert {(view["outcome"], view["reason"]) for view in status["views"]} == {("INTERRUPTED", "DatabaseSuspended")}
        assert "stopped" in status["views"][0]["message"]
        assert (status["consecutiveFailures"], status["lastSlotTime"]) == (0, "2026-11-22T12:00:30Z")
        assert [view["consecutiveFailures"] for view in status["views"]] == [0, 0]
        assert world.condition(place, "Fresh") == ("False", "DatabaseSuspended")
        assert world.condition(database, "Ready", of="MatviewDatabase") == ("True", "Suspended")
        world.database()
        await until(59)
        assert sorted(world.executor.views) == ["a", "b", "c"]
        await until(84)
        assert sorted(world.executor.views) == ["a", "a", "b", "b", "c", "c"]
        assert world.metrics.missed == {}


async def test_suspending_a_database_drops_what_waits_for_a_place_and_answers_requests() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("hog", startingDeadlineSeconds=1000)
        waiting = world.policy("waiting", startingDeadlineSeconds=1000)
        asked = world.policy("asked", schedule={"cron": "0 0 1 1 *"})
        world.executor.seconds = 20
        await until(32)
        world.api.annotate(asked, "r1")
        await until(33)
        world.database(limits={"maxConcurrentRefreshes": 1}, suspend=True)
        await until(34)
        assert world.executor.cancelled == ["hog"]
        assert world.executor.views == ["hog"]
        assert "lastSlotTime" not in world.api.status(waiting)
        answer = world.api.status(asked)
        assert (answer["lastHandledRequest"], answer["views"][0]["reason"]) == ("r1", "DatabaseSuspended")


async def test_a_request_that_comes_in_the_moment_of_the_suspension_is_answered_too() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "0 0 1 1 *"})
        await until(1)
        world.api.annotate(place, "r1")
        world.database(suspend=True)
        await until(2)
        answer = world.api.status(place)
        assert (answer["lastHandledRequest"], answer["views"][0]["reason"]) == ("r1", "DatabaseSuspended")


async def test_of_two_requests_in_one_second_the_second_is_answered_though_the_database_is_suspended_then() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "0 0 1 1 *"})
        await until(1)
        world.api.annotate(place, "r1")
        await until(1.5)
        world.api.annotate(place, "r2")
        await until(1.8)
        world.database(suspend=True)
        await until(5)
        assert world.executor.views == ["mv"]
        answer = world.api.status(place)
        assert (answer["lastHandledRequest"], answer["views"][0]["reason"]) == ("r2", "DatabaseSuspended")


async def test_a_policy_moved_away_from_a_suspended_database_owes_nothing_either() -> None:
    async with World() as world:
        world.database(suspend=True)
        world.database("other")
        place = world.policy(startingDeadlineSeconds=1000)
        await until(100)
        world.policy(startingDeadlineSeconds=1000, databaseRef={"name": "other"})
        await until(119)
        assert world.executor.calls == []
        await until(121)
        assert [call.at for call in world.executor.calls] == [at(120)]
        assert world.metrics.missed == {}
        assert world.condition(place, "Ready") == ("True", "Scheduled")


# Restarts.


async def lived(seconds: float, **fields: Any) -> World:
    """A world whose operator was killed then, with one policy."""
    world = await World().__aenter__()
    world.database()
    world.policy(**fields)
    await until(seconds)
    await world.crash()
    return world


async def test_after_a_restart_the_newest_slot_in_time_runs_and_older_ones_are_counted_as_missed() -> None:
    former = await lived(35, startingDeadlineSeconds=20)
    await until(130)  # down at 60, 90 and 120
    async with World(former=former) as world:
        await until(140)
        assert [call.at for call in world.executor.calls] == [at(30), at(130)]
        assert world.executor.calls[-1].run.due_at == at(120)
        (place,) = world.supervisor.registry.policies
        assert world.api.status(place)["missedSlots"] == 2
        assert world.metrics.missed == {place: 2}
        await until(151)
        assert world.executor.calls[-1].at == at(150)


async def test_after_a_restart_a_slot_too_late_is_missed_said_and_not_replayed() -> None:
    former = await lived(35, schedule={"everySeconds": 60}, startingDeadlineSeconds=20)
    await until(145)  # the slot of 120 was to begin until 140, the one of 60 until 80
    async with World(former=former) as world:
        await until(150)
        assert world.executor.calls == []
        (place,) = world.supervisor.registry.policies
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.api.status(place)["missedSlots"] == 2
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:02:00Z"
        assert world.events.of(place) == [("Warning", "SlotMissed")]
        await world.crash()
    async with World(former=world) as again:
        await until(170)
        assert again.executor.calls == []
        assert again.api.status(place)["missedSlots"] == 2
        assert again.events.of(place) == []
        await until(181)
        assert [call.at for call in again.executor.calls] == [at(180)]


async def test_slots_that_were_superseded_before_a_crash_are_counted_once() -> None:
    world = await World().__aenter__()
    world.database()
    place = world.policy(startingDeadlineSeconds=100)
    world.executor.seconds = 65  # from 30 to 95; 60 is superseded, and 90 runs
    await until(96)
    assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:00:30Z"
    assert world.metrics.missed == {place: 1}
    await world.crash()
    world.executor.seconds = 0.1
    async with World(former=world) as again:
        await until(100)
        assert again.api.status(place)["lastSlotTime"] == "2026-11-22T12:01:30Z"
        assert again.api.status(place)["missedSlots"] == 1


async def test_a_slot_in_flight_when_a_window_closes_is_not_passed_over_by_those_that_are_missed_then() -> None:
    former = await World().__aenter__()
    former.database(windows=[{"kind": "Deny", "cron": "1 12 * * *", "durationSeconds": 600}])
    place = former.policy(startingDeadlineSeconds=1000)
    former.executor.seconds = 100
    await until(100)  # from 30 on it runs; 60 waits for the window, and is superseded by 90
    assert former.executor.views == ["mv"]
    assert "lastSlotTime" not in former.api.status(place)
    await former.crash()
    async with World(former=former) as world:
        world.executor.seconds = 1
        await until(665)  # the window has opened again
        status = world.api.status(place)
        assert world.executor.calls[-1].run.due_at == at(660)
        assert (status["missedSlots"], status["lastSlotTime"]) == (21, "2026-11-22T12:11:00Z")  # 30 to 630


async def test_what_a_slot_that_sigterm_stops_had_missed_is_counted_once() -> None:
    former = await lived(35, startingDeadlineSeconds=20)
    await until(130)  # down at 60, 90 and 120
    former.executor.seconds = 50
    async with World(former=former) as world:
        await until(135)
        (place,) = world.supervisor.registry.policies
    assert world.api.status(place)["history"][0]["outcome"] == "INTERRUPTED"
    former.executor.seconds = 0.1
    async with World(former=world) as again:
        await until(138)
        assert again.api.status(place)["lastSlotTime"] == "2026-11-22T12:02:00Z"
        assert again.api.status(place)["missedSlots"] == 2


async def test_a_slot_that_was_killed_in_flight_runs_again() -> None:
    world = await World().__aenter__()
    world.database()
    world.policy()
    world.executor.seconds = 10
    await until(35)
    await world.crash()
    world.executor.seconds = 0.1
    async with World(former=world) as again:
        await until(45)
        assert [call.run.slot_id for call in again.executor.calls] == ["slot:2026-11-22T12:00:30Z"] * 2
        assert len({call.run.correlation_id for call in again.executor.calls}) == 1


async def test_a_restart_in_a_policys_idle_time_runs_nothing() -> None:
    former = await lived(35)
    async with World(former=former) as world:
        await until(59)
        assert len(world.executor.calls) == 1


# Clocks.


async def test_a_clock_set_back_repeats_no_slot() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(65)
        world.clock.set_by = timedelta(seconds=-50)
        await until(139)
        assert [call.run.due_at for call in world.executor.calls] == [at(30), at(60)]
        await until(141)
        assert world.executor.calls[-1].run.due_at == at(90)
        assert world.metrics.missed == {}
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_clock_set_forward_runs_the_newest_slot_and_counts_the_ones_it_jumped_over() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(65)
        world.clock.set_by = timedelta(seconds=100)
        await until(67)
        assert [call.run.due_at for call in world.executor.calls] == [at(30), at(60), at(150)]
        assert world.metrics.missed == {place: 2}


# One bad policy stops nobody else.


async def test_a_bug_in_one_policys_run_is_its_own_failure_and_stops_nobody() -> None:
    async with World() as world:
        world.database()
        bad, good = world.policy("bad"), world.policy("good")
        world.executor.script["bad"] = [RuntimeError("a bug")]
        await until(65)
        assert world.api.status(bad)["history"][1]["outcome"] == "FAILED"
        assert world.api.status(bad)["history"][0]["outcome"] == "SUCCESS"
        assert len(world.api.status(good)["history"]) == 2
        assert world.supervisor.healthy()


async def test_a_bug_in_one_policys_schedule_stops_neither_the_timers_nor_its_later_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    due_between = Timetable.due_between

    def broken(self: Timetable, after: datetime, until: datetime) -> Due:
        if self.schedule.every_seconds == 31 and at(31) <= until < at(60):
            raise RuntimeError("a bug")
        return due_between(self, after, until)

    monkeypatch.setattr(Timetable, "due_between", broken)
    async with World() as world:
        world.database()
        world.policy("bad", schedule={"everySeconds": 31}, startingDeadlineSeconds=100)
        world.policy("good")
        await until(29 * 60)
        assert world.supervisor.healthy()
        assert world.executor.views.count("good") == 57
        assert world.executor.views.count("bad") > 50


async def test_a_hung_database_delays_nobody_elses_slots() -> None:
    async with World(places=4) as world:
        world.database("hung", limits={"maxConcurrentRefreshes": 100})
        world.database()
        world.executor.hung_hosts.add("hung")
        for number in range(20):
            world.policy(f"h{number}", databaseRef={"name": "hung"}, startingDeadlineSeconds=1000)
        place = world.policy()
        await until(301)
        assert [call.at for call in world.executor.calls if call.target.host == "db"] == [
            at(n * 30) for n in range(1, 11)
        ]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_policy_whose_view_is_locked_delays_nobody_else_on_its_database() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("locked")
        world.policy("free")
        world.executor.script["locked"] = [LOCK_HELD] * 1000
        await until(301)
        free = [call.at for call in world.executor.calls if call.run.view.name == "free"]
        assert len(free) == 10
        assert world.executor.views.count("locked") > 20


async def test_a_recovered_server_is_seen_at_the_first_fresh_slot_by_policy_and_database() -> None:
    async with World() as world:
        database = world.database()
        place = world.policy()
        await until(5)
        world.inspector.down["db"] = Problem(RefreshReason.CONNECTION_FAILED, "refused")
        world.executor.script["mv"] = [FAILED]
        await until(35)  # the first failure asks the preflight
        assert world.condition(place, "Ready") == ("False", "ConnectionFailed")
        assert world.condition(database, "Ready", of="MatviewDatabase") == ("False", "ConnectionFailed")
        world.inspector.down.clear()
        await until(65)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.condition(database, "Ready", of="MatviewDatabase") == ("True", "Connected")


async def test_a_check_that_fails_though_the_slots_are_fresh_does_not_flap() -> None:
    async with World() as world:
        world.database()
        world.inspector.answers["mv"] = Problem(RefreshReason.PERMISSION_DENIED, "GRANT it")
        place = world.policy()
        await until(200)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.condition(place, "Ready") == ("False", "PermissionDenied")
        assert world.events.of(place) == [("Warning", "PermissionDenied"), ("Normal", "Refreshed")]


async def test_queue_depth_counts_what_is_due_and_waits() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        for name in ("a", "b", "c"):
            world.policy(name, startingDeadlineSeconds=1000)
        world.executor.seconds = 31
        await until(29)
        assert world.supervisor.queue_depth == 0
        await until(59)
        assert world.supervisor.queue_depth == 2  # two wait for a place
        await until(60.5)
        assert world.supervisor.queue_depth == 5  # and one slot of each policy for the one before it
        await asyncio.sleep(0)
