"""What waits for a window of its database: in virtual time, from 12:00 UTC on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.ports import at
from tests.unit.world import DATABASE, World, key, until

pytestmark = pytest.mark.looptime(noop_cycles=3)

MINUTE: dict[str, Any] = {"schedule": {"everySeconds": 60}, "startingDeadlineSeconds": 300}
YEARLY: dict[str, Any] = {"schedule": {"everySeconds": 31_536_000}}


def deny(cron: str, seconds: int) -> dict[str, Any]:
    return {"windows": [{"kind": "Deny", "cron": cron, "durationSeconds": seconds}]}


FROM_1201_TO_1204 = deny("1 12 * * *", 180)


def begun(world: World) -> list[float]:
    """When runs began, in seconds."""
    return [(call.at - at(0)).total_seconds() for call in world.executor.calls]


def message(world: World, place: Any, kind: str) -> str:
    (found,) = (each for each in world.api.status(place)["conditions"] if each["type"] == kind)
    return str(found["message"])


async def test_a_slot_in_a_closed_window_runs_once_when_it_opens_and_the_newest_one() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(schedule={"everySeconds": 50}, startingDeadlineSeconds=300)
        await until(290)
        # Those of 100 and 150 gave way to the one of 200.
        assert [(call.at, call.run.due_at) for call in world.executor.calls] == [
            (at(50), at(50)),
            (at(240), at(200)),
            (at(250), at(250)),
        ]
        assert world.metrics.missed == {place: 2}
        assert world.api.status(place)["missedSlots"] == 2
        assert world.metrics.lags == [0, 40, 0]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_the_first_slot_that_is_missed_in_a_closed_window_is_told_and_the_others_cost_no_write() -> None:
    async with World() as world:
        world.database(**deny("0 12 * * *", 3600))
        place = world.policy(**MINUTE)
        await until(59)
        writes = world.api.writes_to(place)
        await until(125)
        assert world.condition(place, "Fresh") == ("False", "WindowClosed")
        assert message(world, place, "Fresh") == (
            "The slot of 2026-11-22T12:01:00Z was missed: the windows of the MatviewDatabase let no refresh start "
            "before 2026-11-22T13:00:00Z."
        )
        assert world.api.status(place)["missedSlots"] == 1
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:03:00Z"
        await until(290)
        assert world.api.writes_to(place) == writes + 1
        await until(3599)
        assert world.executor.calls == []
        assert world.events.of(place).count(("Warning", "WindowClosed")) == 1
        await until(3605)
        # The slot of 13:00 is due when the window opens, and takes the place of the one that waited.
        assert [(call.at, call.run.due_at) for call in world.executor.calls] == [(at(3600), at(3600))]
        assert world.api.status(place)["missedSlots"] == world.metrics.missed[place] == 59
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_window_that_opens_after_the_deadline_misses_the_slot_and_says_when_it_opens() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(schedule={"everySeconds": 100}, startingDeadlineSeconds=30)
        await until(129)
        assert "missedSlots" not in world.api.status(place)
        await until(131)
        assert world.condition(place, "Fresh") == ("False", "WindowClosed")
        assert "before 2026-11-22T12:04:00Z" in message(world, place, "Fresh")
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:01:40Z"
        await until(301)
        assert begun(world) == [300]  # the slot of 200 was missed as well, at 230
        assert world.metrics.missed == {place: 2}
        assert world.api.status(place)["missedSlots"] == 2


async def test_a_slot_whose_deadline_is_the_opening_itself_is_run() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        world.policy(schedule={"everySeconds": 200}, startingDeadlineSeconds=40)
        await until(250)
        assert begun(world) == [240]


async def test_outside_of_allow_windows_nothing_starts() -> None:
    async with World() as world:
        world.database(windows=[{"kind": "Allow", "cron": "2,5 12 * * *", "durationSeconds": 60}])
        world.policy(schedule={"everySeconds": 30}, startingDeadlineSeconds=29)
        await until(600)
        assert begun(world) == [120, 150, 300, 330]


async def test_other_databases_do_not_wait() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        world.database("other")
        world.policy("a", **MINUTE)
        world.policy("b", databaseRef={"name": "other"}, **MINUTE)
        await until(239)
        assert [(str(call.run.view), call.at) for call in world.executor.calls] == [
            ("b", at(60)),
            ("b", at(120)),
            ("b", at(180)),
        ]


async def test_a_request_waits_for_the_window_and_its_condition_says_until_when() -> None:
    async with World() as world:
        world.database(**deny("0 12 * * *", 3600))
        place = world.policy(startingDeadlineSeconds=5, **YEARLY)
        await until(10)
        world.api.annotate(place, "r1")
        await until(11)
        writes = world.api.writes_to(place)
        assert world.condition(place, "Reconciling") == ("True", "WaitingForWindow")
        assert message(world, place, "Reconciling") == (
            "Request r1 waits: the windows of the MatviewDatabase let no refresh start before 2026-11-22T13:00:00Z."
        )
        await until(20)
        world.api.annotate(place, "r2")  # the newest one is run
        await until(3599)
        assert message(world, place, "Reconciling").startswith("Request r2 waits:")
        assert world.api.writes_to(place) == writes + 1
        assert world.executor.calls == []
        await until(3601)
        assert [(call.at, call.run.correlation_id) for call in world.executor.calls] == [(at(3600), "r2")]
        assert world.api.status(place)["lastHandledRequest"] == "r2"
        assert world.condition(place, "Reconciling") is None


async def test_a_request_that_is_withdrawn_while_it_waits_is_not_run_and_not_told_any_more() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(**YEARLY)
        await until(70)
        world.api.annotate(place, "r1")
        await until(80)
        world.api.annotate(place, None)
        await until(90)
        assert world.condition(place, "Reconciling") is None
        await until(300)
        assert world.executor.calls == []


async def test_of_a_request_and_a_slot_that_wait_together_the_request_runs_and_covers_the_slot() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(schedule={"everySeconds": 216}, startingDeadlineSeconds=300)
        await until(225)
        world.api.annotate(place, "r1")
        await until(300)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r1"]
        assert begun(world) == [240]
        assert [entry["outcome"] for entry in world.api.status(place)["history"]] == ["SKIPPED_COVERED", "SUCCESS"]


async def test_a_request_does_not_wait_for_what_a_slot_waits_for_besides() -> None:
    async with World() as world:
        limits = {"minIntervalSeconds": 100, "maxConcurrentRefreshes": 1}
        world.database(limits=limits, **deny("1 12 * * *", 60))
        place = world.policy(schedule={"everySeconds": 54}, startingDeadlineSeconds=300)
        await until(70)
        world.api.annotate(place, "r1")
        await until(121)  # the slot of 108 would have to wait until 154
        assert world.executor.calls[1].at == at(120)
        assert world.executor.calls[1].run.correlation_id == "r1"


async def test_a_slot_that_is_due_when_the_window_opens_takes_the_place_of_the_one_that_waits() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(**MINUTE)
        await until(200)
        world.supervisor.agenda.timers.cancel(place)  # whichever of the two heaps comes first
        await until(241)
        assert [(call.at, call.run.due_at) for call in world.executor.calls] == [(at(240), at(240))]


async def test_after_a_restart_slot_and_request_wait_on() -> None:
    async with World() as former:
        former.database(**FROM_1201_TO_1204)
        place = former.policy(schedule={"everySeconds": 200}, startingDeadlineSeconds=300)
        await until(205)
        former.api.annotate(place, "r1")
        await until(210)
        await former.crash()
    async with World(former=former) as world:
        await until(239)
        assert world.executor.calls == []
        assert world.condition(place, "Reconciling") == ("True", "WaitingForWindow")
        await until(250)
        assert begun(world) == [240]  # which covers the slot
        assert world.api.status(place)["lastHandledRequest"] == "r1"
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:03:20Z"


# What waits is looked at again.


async def test_when_the_windows_change_what_waits_begins_at_once() -> None:
    async with World() as world:
        world.database(**deny("0 12 * * *", 80_000))
        place = world.policy(schedule={"everySeconds": 100}, startingDeadlineSeconds=90)
        asked = world.policy("asked", **YEARLY)
        await until(1)
        world.api.annotate(asked, "r1")
        await until(110)
        world.database(**deny("0 12 * * *", 120))
        await until(115)
        assert message(world, asked, "Reconciling").endswith("before 2026-11-22T12:02:00Z.")
        world.database()
        await until(117)
        assert sorted(world.executor.views) == ["asked", "mv"]
        assert begun(world) == [115, 115]
        assert world.metrics.missed == {}
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.condition(asked, "Reconciling") is None


async def test_a_window_that_is_added_closes_at_once() -> None:
    async with World() as world:
        world.database()
        world.policy(**MINUTE)
        await until(70)
        world.database(**deny("0 12 * * *", 190))
        await until(200)
        assert begun(world) == [60, 190]


async def test_a_database_suspended_meanwhile_drops_the_slot_and_answers_the_request() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        place = world.policy(schedule={"everySeconds": 100}, startingDeadlineSeconds=300)
        await until(105)
        world.api.annotate(place, "r1")
        await until(110)
        world.database(suspend=True, **FROM_1201_TO_1204)
        await until(112)
        assert world.api.status(place)["lastHandledRequest"] == "r1"
        assert world.api.status(place)["views"][0]["reason"] == "DatabaseSuspended"
        assert world.condition(place, "Reconciling") is None
        await until(120)
        world.database(**FROM_1201_TO_1204)
        await until(310)
        assert begun(world) == [240, 300]  # the slot of 200, and the one of 300
        assert world.metrics.missed == {}


async def test_a_database_deleted_meanwhile_keeps_nothing_waiting() -> None:
    async with World() as world:
        world.database(**deny("0 12 * * *", 80_000))
        place = world.policy(**YEARLY)
        await until(1)
        world.api.annotate(place, "r1")
        await until(5)
        world.api.delete(DATABASE, key("db"))
        await until(6)
        assert world.api.status(place)["views"][0]["reason"] == "DatabaseNotFound"
        assert world.condition(place, "Reconciling") is None


async def test_a_policy_suspended_or_deleted_meanwhile_leaves_nothing_behind() -> None:
    async with World() as world:
        world.database(**deny("1 12 * * *", 1800))
        world.policy("suspended", **MINUTE)
        deleted = world.policy("deleted", **MINUTE)
        await until(70)
        assert world.supervisor.queue_depth == 2
        world.policy("suspended", suspend=True, **MINUTE)
        world.api.delete("MatviewRefreshPolicy", deleted)
        await until(80)
        assert world.supervisor.queue_depth == 0
        assert world.supervisor.agenda.dispatcher._lanes == {}
        await until(4000)
        assert world.executor.calls == []


async def test_a_clock_that_is_set_forward_opens_the_window() -> None:
    async with World() as world:
        world.database(**deny("0 12 * * *", 7200))
        place = world.policy(**YEARLY)
        await until(1)
        world.api.annotate(place, "r1")
        await until(100)
        world.clock.set_by = at(7200) - at(0)
        await until(102)
        assert len(world.executor.calls) == 1


# Windows that close.


async def test_a_slot_that_has_begun_goes_on_to_its_end_with_all_its_views() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1}, **FROM_1201_TO_1204)
        place = world.policy(views=[{"name": "a"}, {"name": "b"}], schedule={"everySeconds": 50})
        world.executor.seconds = 15
        await until(99)
        assert [(str(call.run.view), call.at) for call in world.executor.calls] == [("a", at(50)), ("b", at(65))]
        assert world.executor.cancelled == []
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_slot_or_request_that_waits_for_a_place_when_the_window_closes_waits_for_its_opening() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1}, **FROM_1201_TO_1204)
        world.policy("hog", schedule={"everySeconds": 50}, startingDeadlineSeconds=20)
        world.policy("mv", schedule={"everySeconds": 54}, startingDeadlineSeconds=240)
        asked = world.policy("asked", **YEARLY)
        world.executor.seconds = 20  # the hog's run ends at 70
        await until(55)
        world.api.annotate(asked, "r1")
        await until(72)
        assert world.condition(asked, "Reconciling") == ("True", "WaitingForWindow")
        assert world.supervisor.budget.waiting == 0
        await until(285)
        assert list(zip(world.executor.views, begun(world), strict=True)) == [
            ("hog", 50),
            ("asked", 240),
            ("mv", 260),
            ("mv", 280),
        ]


async def test_a_lock_that_is_still_held_when_the_window_closes_is_tried_again_when_it_opens() -> None:
    async with World() as world:
        world.database(**FROM_1201_TO_1204)
        world.policy(schedule={"everySeconds": 54}, startingDeadlineSeconds=300)
        world.executor.held_until["mv"] = at(100)
        await until(239)
        assert len(world.executor.calls) > 2
        assert max(begun(world)) < 60
        await until(241)
        assert max(begun(world)) == 240


async def test_many_policies_wait_without_places_and_all_begin_when_the_window_opens() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 16}, **FROM_1201_TO_1204)
        for number in range(500):
            world.policy(f"mv{number}", schedule={"everySeconds": 200}, startingDeadlineSeconds=300)
        world.executor.seconds = 0.1
        await until(230)
        assert world.supervisor.queue_depth == 500
        assert world.supervisor.budget.waiting == 0
        assert len(world.supervisor.agenda.waiting.timers._due) == 500
        await until(260)
        assert len(world.executor.calls) == 500
        assert min(begun(world)) == 240
        assert world.supervisor.agenda.waiting.timers._due == {}
