"""Policies of one schedule begin spread over their jitter, each always by the same part of it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ports import EPOCH, at
from tests.unit.test_schedule import INSTANTS, TIMETABLES, utc
from tests.unit.world import POLICY, World, until

from matview_operator.api.policy import Schedule
from matview_operator.domain.jitter import delay, part_of_second
from matview_operator.domain.schedule import Due, Timetable

POLICIES = 1000


def of_seed(seed: int) -> list[uuid.UUID]:
    random = Random(seed)  # noqa: S311 - UIDs of a test
    return [uuid.UUID(int=random.getrandbits(128), version=4) for _ in range(POLICIES)]


UIDS = {
    **{f"random {seed}": of_seed(seed) for seed in range(10)},
    "one after another": [uuid.UUID(int=number) for number in range(POLICIES)],
    "by time": [uuid.UUID(f"{number:08x}-1dd2-11b2-8080-808080808080") for number in range(POLICIES)],
}


def first_slot(uid: uuid.UUID, *, jitter_seconds: int) -> datetime:
    hourly = Schedule(cron="0 * * * *")
    part = delay(uid, jitter_seconds=jitter_seconds)
    timetable = Timetable(schedule=hourly, jitter_seconds=jitter_seconds, delay=part)
    return timetable.next_after(EPOCH - timedelta(microseconds=1))


def chi_square(counts: Iterable[int], *, expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("uids", UIDS.values(), ids=UIDS)
@pytest.mark.parametrize("jitter_seconds", [60, 300, 3600])
def test_a_thousand_hourly_policies_spread_evenly(uids: list[uuid.UUID], jitter_seconds: int) -> None:
    slots = [first_slot(uid, jitter_seconds=jitter_seconds) for uid in uids]
    assert all(EPOCH <= slot < EPOCH + timedelta(seconds=jitter_seconds) for slot in slots)
    sixtieths = Counter((slot - EPOCH) * 60 // timedelta(seconds=jitter_seconds) for slot in slots)
    counts = [sixtieths[number] for number in range(60)]
    # 59 degrees of freedom: chance exceeds 110 once in ten thousand times.
    assert chi_square(counts, expected=POLICIES / 60) < 110
    assert max(counts) < 2.5 * POLICIES / 60


@pytest.mark.parametrize("uids", UIDS.values(), ids=UIDS)
def test_whose_slots_are_of_one_second_spread_over_it(uids: list[uuid.UUID]) -> None:
    moments = [part_of_second(uid, jitter_seconds=60) for uid in uids]
    assert all(timedelta() <= moment < timedelta(seconds=1) for moment in moments)
    twentieths = Counter(moment // timedelta(milliseconds=50) for moment in moments)
    # 19 degrees of freedom: chance exceeds 51 once in ten thousand times.
    assert chi_square((twentieths[number] for number in range(20)), expected=POLICIES / 20) < 51
    # And all over again in each second of the jitter.
    of_one = [moment for uid, moment in zip(uids, moments, strict=True) if delay(uid, jitter_seconds=4).seconds == 1]
    assert len({moment // timedelta(milliseconds=50) for moment in of_one}) == 20


def test_without_jitter_nobody_waits() -> None:
    assert {first_slot(uid, jitter_seconds=0) for uid in of_seed(1)} == {EPOCH}
    assert {part_of_second(uid, jitter_seconds=0) for uid in of_seed(1)} == {timedelta()}


@given(TIMETABLES, st.integers(1, 86_400), st.uuids(), INSTANTS, st.integers(0, 10 * 86_400))
def test_all_slots_are_the_schedules_all_later_by_the_same_whole_seconds(
    plain: Timetable, jitter_seconds: int, uid: uuid.UUID, now: datetime, seconds: int
) -> None:
    by = delay(uid, jitter_seconds=jitter_seconds)
    assert by == timedelta(seconds=int(by.total_seconds()))
    assert timedelta() <= by < timedelta(seconds=jitter_seconds)
    moved = Timetable(schedule=plain.schedule, jitter_seconds=jitter_seconds, delay=by)
    assert moved.next_after(now + by) == plain.next_after(now) + by
    assert moved.newest_at(now + by) == plain.newest_at(now) + by
    due, later = plain.due_between(now, now + timedelta(seconds=seconds)), now + by
    newest = None if due.newest is None else due.newest + by
    assert moved.due_between(later, later + timedelta(seconds=seconds)) == Due(due.slots, newest, due.following + by)


def test_the_part_that_a_policy_takes_is_the_same_in_every_version_of_the_operator() -> None:
    """Another one after an update would run every policy's slot of that moment twice, or not at all."""
    uid = uuid.UUID("123e4567-e89b-12d3-a456-426614174000")
    assert [delay(uid, jitter_seconds=each).total_seconds() for each in (1, 60, 300, 86_400)] == [0, 42, 222, 39_222]
    assert part_of_second(uid, jitter_seconds=1) == timedelta(milliseconds=256)


def test_the_schedule_in_words_names_the_jitter() -> None:
    hourly = Schedule(cron="0 * * * *", time_zone="Europe/Berlin")
    assert Timetable(schedule=hourly, jitter_seconds=300).describe() == "0 * * * * Europe/Berlin jitter 300s"
    assert Timetable(schedule=Schedule(every_seconds=30), jitter_seconds=9).describe() == "every 30s jitter 9s"


@pytest.mark.looptime(noop_cycles=3)
async def test_a_policys_slots_deadline_and_status_are_those_of_the_moved_timetable_after_a_restart_too() -> None:
    former = await World().__aenter__()
    former.database(limits={"maxConcurrentRefreshes": 20})
    places = [former.policy(f"mv{number}", jitterSeconds=30) for number in range(20)]
    parts = {place: delay(former.known(place).uid, jitter_seconds=30).total_seconds() for place in places}
    assert len(set(parts.values())) > 10
    await until(60.5)
    assert former.api.status(places[0])["schedule"] == "every 30s jitter 30s"
    await former.crash()
    async with World(former=former) as world:
        await until(120.5)
        for place in places:
            mine = [call for call in world.executor.calls if str(call.run.view) == place.name]
            first = parts[place] or 30  # nothing is due in the instant of creation
            assert [call.run.due_at for call in mine] == [at(first + 30 * n) for n in range(len(mine))]
            moment = part_of_second(former.known(place).uid, jitter_seconds=30)
            assert all(call.run.due_at is not None and call.at == call.run.due_at + moment for call in mine)
            assert len(mine) >= 3
            following = mine[-1].run.due_at
            assert following is not None
            assert world.api.status(place)["lastSlotTime"] == f"{following:%Y-%m-%dT%H:%M:%SZ}"
            following += timedelta(seconds=30)
            assert world.api.status(place)["nextSlotTime"] == f"{following:%Y-%m-%dT%H:%M:%SZ}"
        assert max(world.metrics.lags) == 0  # it is due at its moment of the second


@pytest.mark.looptime(noop_cycles=3)
async def test_the_deadline_is_counted_from_the_policys_moment_of_the_second() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.executor.slow["long"] = 1.2
        world.policy("long")
        places = [world.policy(f"mv{number}", jitterSeconds=1, startingDeadlineSeconds=1) for number in range(20)]
        moments = {place: part_of_second(world.known(place).uid, jitter_seconds=1).total_seconds() for place in places}
        chosen = next(place for place in places if 0.4 < moments[place] < 0.9)
        for place in places:
            if place != chosen:
                world.api.delete(POLICY, place)
        await until(59)
        assert [(call.at, str(call.run.view)) for call in world.executor.calls] == [
            (at(30), "long"),
            (at(31.2), chosen.name),
        ]
        assert world.metrics.missed == {}


@pytest.mark.looptime(noop_cycles=3)
@pytest.mark.parametrize("through", [False, True], ids=["directly", "through another"])
async def test_a_view_comes_after_one_that_it_reads_though_its_moment_of_the_second_is_earlier(
    *, through: bool
) -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 20})
        places = [world.policy(f"mv{number}", jitterSeconds=1) for number in range(12)]
        moments = {place: part_of_second(world.known(place).uid, jitter_seconds=1).total_seconds() for place in places}
        early, second, late, *others = sorted(places, key=moments.__getitem__)
        reads = {"dependsOn": [{"name": late.name}]}
        if through:
            world.policy(
                early.name, views=[{"name": early.name, "dependsOn": [{"name": second.name}]}], jitterSeconds=1
            )
            world.policy(second.name, views=[{"name": second.name, **reads}], jitterSeconds=1, suspend=True)
        else:
            world.policy(early.name, views=[{"name": early.name, **reads}], jitterSeconds=1)
        await until(59)
        began = {str(call.run.view): call.at for call in world.executor.calls}
        assert began[late.name] == at(30 + moments[late])
        assert began[early.name] == at(30 + moments[late] + world.executor.seconds)
        assert all(began[other.name] == at(30 + moments[other]) for other in others)


@pytest.mark.looptime(noop_cycles=3)
async def test_another_jitter_is_another_schedule_which_owes_nothing_for_before() -> None:
    async with World() as world:
        world.database()
        world.policy(schedule={"everySeconds": 3600}, jitterSeconds=3600, startingDeadlineSeconds=3600)
        await until(4000)
        place = world.policy(schedule={"everySeconds": 3600}, jitterSeconds=1, startingDeadlineSeconds=3600)
        (first,) = world.executor.calls
        part = delay(world.known(place).uid, jitter_seconds=3600)
        assert first.run.due_at == EPOCH + part
        await until(7199)
        assert len(world.executor.calls) == 1
        await until(7201)
        assert world.executor.calls[-1].run.due_at == utc("2026-11-22T14:00")
        assert world.metrics.missed == {}
