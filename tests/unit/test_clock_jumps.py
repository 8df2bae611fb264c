"""Clocks that somebody sets: no slot that ended is replayed, and nothing stops."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from tests.unit.ports import at
from tests.unit.world import World, key, until

from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

HOUR = timedelta(hours=1)
YEARS = timedelta(days=3653)


async def test_ten_years_of_missed_slots_are_counted_exactly_in_status_and_metrics() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "* * * * *", "timeZone": "Europe/Berlin"})
        await until(65)
        world.clock.set_by = YEARS
        await until(70)
        assert [call.run.due_at for call in world.executor.calls] == [at(60), at(60) + YEARS]
        missed = YEARS // timedelta(minutes=1) - 1
        assert world.metrics.missed == {place: missed}
        assert world.api.status(place)["missedSlots"] == missed


def due_times(world: World) -> list[datetime]:
    """When the slots were due that ran, in the order in which they ran."""
    return [call.run.due_at for call in world.executor.calls if call.run.due_at and str(call.run.view) == "mv"]


async def lived(world: World) -> Key:
    """Two slots that ended, at 30 and 60."""
    world.database()
    place = world.policy()
    await until(65)
    assert due_times(world) == [at(30), at(60)]
    return place


async def test_an_hour_forward_is_one_catch_up_and_the_timers_go_on() -> None:
    async with World() as world:
        place = await lived(world)
        world.clock.set_by = HOUR
        await until(67)
        assert due_times(world)[2:] == [at(60) + HOUR]
        assert world.api.status(place)["missedSlots"] == 119
        await until(155)
        assert due_times(world)[3:] == [at(90) + HOUR, at(120) + HOUR, at(150) + HOUR]
        assert world.supervisor.healthy()


async def test_an_hour_back_replays_nothing_and_the_timers_go_on_when_the_clock_has_caught_up() -> None:
    async with World() as world:
        place = await lived(world)
        world.clock.set_by = -HOUR
        await until(3600)
        world.api.annotate(place, "now")  # a request does not wait for it
        await until(3602)
        assert world.api.status(place)["lastHandledRequest"] == "now"
        await until(3689)
        assert due_times(world) == [at(30), at(60)]
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:01:30Z"
        assert world.supervisor.healthy()
        await until(3755)
        assert due_times(world)[2:] == [at(90), at(120), at(150)]
        assert world.metrics.missed == {}


async def test_an_hour_back_and_a_restart_replay_nothing_either() -> None:
    former = await World().__aenter__()
    await lived(former)
    await former.crash()
    former.clock.set_by = -HOUR
    async with World(former=former) as world:
        await until(3689)
        assert due_times(world) == [at(30), at(60)]
        await until(3695)
        assert due_times(world)[2:] == [at(90)]


async def test_an_hour_back_and_forth_replays_nothing() -> None:
    async with World() as world:
        await lived(world)
        for number, by in enumerate((HOUR, timedelta(), HOUR, -HOUR, timedelta()), 1):
            world.clock.set_by = by
            await until(65 + 100 * number)
        world.clock.set_by = HOUR
        await until(1000)
        assert len(due_times(world)) == len(set(due_times(world)))
        assert due_times(world)[-1] == at(990) + HOUR
        assert world.supervisor.healthy()


async def test_ten_years_forward_and_back_again_do_not_stop_a_policy_for_ten_years() -> None:
    async with World() as world:
        place = await lived(world)
        world.clock.set_by = YEARS
        await until(95)
        assert due_times(world)[2:] == [at(60) + YEARS, at(90) + YEARS]
        world.clock.set_by = timedelta()
        await until(155)
        assert due_times(world)[4:] == [at(120), at(150)]
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:02:30Z"
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:03:00Z"
        assert len(due_times(world)) == len(set(due_times(world)))
        assert world.supervisor.healthy()


async def test_a_clock_that_starts_ten_years_ahead_and_is_mended_by_a_restart_stops_nothing() -> None:
    former = World()
    former.clock.set_by = YEARS
    await former.__aenter__()
    former.database()
    place = former.policy()
    await until(65)
    await former.crash()
    former.clock.set_by = timedelta()
    async with World(former=former) as world:
        await until(125)
        assert due_times(world)[2:] == [at(90), at(120)]
        assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:02:00Z"


async def test_ten_years_back_are_not_waited_for() -> None:
    async with World() as world:
        await lived(world)
        world.clock.set_by = -YEARS
        await until(125)
        assert due_times(world)[2:] == [at(90) - YEARS, at(120) - YEARS]


@pytest.mark.parametrize("by", [HOUR, -HOUR, YEARS, -YEARS], ids=str)
async def test_a_clock_that_is_set_during_a_run_spoils_neither_its_report_nor_the_next_slot(by: timedelta) -> None:
    async with World() as world:
        world.database()
        place, other = world.policy(), world.policy("other", schedule={"everySeconds": 3600})
        world.executor.seconds = 10
        await until(35)
        world.clock.set_by = by
        world.api.annotate(other, "now")
        await until(50)
        (entry,) = world.api.status(place)["history"]
        assert entry["outcome"] == "SUCCESS"
        assert entry["durationMs"] >= 0
        assert world.api.status(other)["lastHandledRequest"] == "now"
        await until(3800)
        assert world.executor.views.count("mv") >= 2
        assert len(due_times(world)) == len(set(due_times(world)))
        assert world.supervisor.healthy()


async def test_what_an_hour_forward_skips_is_counted_once_though_an_older_slot_was_late_and_a_process_died() -> None:
    former = await World().__aenter__()
    former.database(limits={"maxConcurrentRefreshes": 1})
    former.policy("busy", schedule={"everySeconds": 7200})
    former.executor.slow["busy"] = 1000
    former.api.annotate(key("busy"), "now")
    place = former.policy()
    await until(35)
    assert former.executor.views == ["busy"]  # the slot of 30 s waits for its place
    former.clock.set_by = HOUR - timedelta(seconds=10)
    await until(52)
    status = former.api.status(place)
    assert (status["missedSlots"], status["lastSlotTime"]) == (120, "2026-11-22T13:00:00Z")
    await former.crash()
    former.executor.slow.clear()
    async with World(former=former) as world:
        await until(75)  # 13:01:05
        status = world.api.status(place)
        assert (status["missedSlots"], status["lastSlotTime"]) == (120, "2026-11-22T13:01:00Z")
        assert due_times(world) == [at(30) + HOUR, at(60) + HOUR]
