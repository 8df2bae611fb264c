"""maxStalenessSeconds: each run is begun so early that the rows are never older, and the status says when they are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain, pairwise, repeat
from random import Random
from typing import Any

import pytest
from tests.unit.ports import COVERED, FAILED, MemoryExecutor, VirtualClock, at
from tests.unit.world import World, policy_spec, until

from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.schedule import Due
from matview_operator.domain.staleness import StalenessTarget, staleness_target
from matview_operator.engine.ports import Key, Status

pytestmark = pytest.mark.looptime(noop_cycles=3)


def target(seconds: int, **fields: Any) -> dict[str, Any]:
    return {"schedule": {"maxStalenessSeconds": seconds}, "startingDeadlineSeconds": 300} | fields


def starts(world: World, view: str = "mv") -> list[datetime]:
    return [call.at for call in world.executor.calls if str(call.run.view) == view]


def oldest_ages(world: World, view: str = "mv") -> list[timedelta]:
    """How old the rows had become each time when the next ones were there; runs take as long as they say now."""
    begun = starts(world, view)
    took = timedelta(seconds=world.executor.seconds)
    return [later + took - former for former, later in pairwise(begun)]


def said_of(world: World, place: Key) -> str:
    """The message of TargetMissed."""
    said = {each["type"]: each["message"] for each in world.api.status(place)["conditions"]}
    return str(said["TargetMissed"])


def missed_in(status: Status) -> bool:
    return any(condition.type == "TargetMissed" for condition in status.conditions)


async def test_the_first_run_is_at_once_and_the_others_just_in_time() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.seconds = 8
        await until(20)
        assert starts(world) == [at(1)]
        assert world.api.status(place)["schedule"] == "at most 60s old"
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:00:51Z"  # 1 + 60 - 8 - a quarter of 8
        await until(600)
        assert starts(world) == [at(1 + 50 * number) for number in range(12)]
        assert max(oldest_ages(world)) == timedelta(seconds=58)
        assert world.condition(place, "TargetMissed") is None
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert "missedSlots" not in world.api.status(place)


async def test_slots_are_whole_seconds_though_runs_are_not() -> None:
    async with World() as world:
        world.database()
        world.policy(**target(20))
        world.executor.seconds = 1.234
        await until(300)
        assert all(call.run.due_at.microsecond == 0 for call in world.executor.calls if call.run.due_at)
        assert len({call.run.slot_id for call in world.executor.calls}) == len(world.executor.calls) > 15
        assert max(oldest_ages(world)) <= timedelta(seconds=20)


class UnevenExecutor(MemoryExecutor):
    """Runs take as long as it is told, one after another."""

    def __init__(self, clock: VirtualClock, durations: Iterator[float]) -> None:
        super().__init__(clock)
        self.durations = durations
        self.ends: list[datetime] = []

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        self.seconds = next(self.durations)
        result = await super().refresh(target=target, run=run)
        self.ends.append(self.clock.now())
        return result


@pytest.mark.parametrize("seed", range(8))
async def test_rows_are_never_older_though_runs_take_now_longer_now_shorter(seed: int) -> None:
    random = Random(seed)  # noqa: S311 - durations of a test
    usual, allowed = random.uniform(0.2, 30), random.uniform(2.6, 8)
    seconds = max(10, round(usual * allowed) + 3)
    former = World()
    # The first one is measured; what takes a quarter longer than the longest is within the margin.
    durations = chain([usual * 1.2], (usual * random.uniform(0.9, 1.2) for _ in repeat(None)))
    former.executor = executor = UnevenExecutor(former.clock, durations)
    async with World(former=former) as world:
        world.database()
        place = world.policy(**target(seconds))
        await until(15 * seconds)
        missed = [status for _, ref, status in world.api.writes if ref.key == place and missed_in(status)]
        assert missed == []
        ages = [end - rows for rows, end in zip(starts(world), executor.ends[1:], strict=False)]
        assert len(ages) >= 14
        assert max(ages) <= timedelta(seconds=seconds)
        # Nor is it refreshed much more often than needed: the lead is of 1.25 runs, of which one is the next run.
        assert sum(ages, timedelta()) / len(ages) > timedelta(seconds=seconds - 0.6 * usual - 3)


async def test_the_oldest_view_counts_and_a_slot_takes_as_long_as_all_of_them() -> None:
    async with World() as world:
        world.database()
        world.policy(**target(100, views=[{"name": "a"}, {"name": "mv"}, {"name": "c"}]))
        world.executor.seconds = 10  # two at once, and then the third
        await until(500)
        for view in ("a", "mv", "c"):
            assert max(oldest_ages(world, view)) == timedelta(seconds=100 - 25 + 10)


async def test_a_restart_takes_it_up_from_the_status() -> None:
    former = await World().__aenter__()
    former.database()
    former.policy(**target(60))
    former.executor.seconds = 8
    await until(20)
    await former.crash()
    async with World(former=former) as world:
        await until(120)
        assert starts(world) == [at(1), at(51), at(101)]
        await world.crash()
    await until(165)  # it was due at 151
    async with World(former=world) as again:
        await until(180)
        assert starts(again) == [at(1), at(51), at(101), at(165)]
        assert again.executor.calls[-1].run.due_at == at(151)  # the ledger knows whether it was run
        await until(200)
        await again.crash()
    await until(2000)  # longer than startingDeadlineSeconds
    async with World(former=again) as last:
        (place,) = last.supervisor.registry.policies
        await until(2020)
        assert [call.run.due_at for call in last.executor.calls][-1] == at(2000)
        assert last.condition(place, "Fresh") == ("True", "Refreshed")
        assert last.metrics.missed == {}


async def test_a_run_that_was_killed_is_run_again_as_the_same_slot() -> None:
    former = await World().__aenter__()
    former.database()
    former.policy(**target(60))
    former.executor.seconds = 8
    await until(55)
    await former.crash()
    async with World(former=former) as world:
        await until(66)
        slots = [call.run.slot_id for call in world.executor.calls]
        assert slots == ["slot:2026-11-22T12:00:01Z", "slot:2026-11-22T12:00:51Z", "slot:2026-11-22T12:00:51Z"]


async def test_a_target_that_cannot_be_met_is_said_with_by_how_much_until_it_is_met() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(40))
        world.executor.seconds = 30
        await until(40)
        assert world.condition(place, "TargetMissed") == ("True", "RunTooLong")
        assert said_of(world, place) == (
            "The rows will be 61 s old before the next ones are there, 21 s more than maxStalenessSeconds: "
            "a run takes 30 s, and the rows are as old as its beginning."
        )
        await until(500)
        assert max(oldest_ages(world)) == timedelta(seconds=61)  # it does what it can, and spoke the truth
        assert world.events.of(place).count(("Warning", "RunTooLong")) == 1
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        world.executor.seconds = 5
        await until(700)
        assert world.condition(place, "TargetMissed") is None
        assert max(oldest_ages(world)[-5:]) <= timedelta(seconds=40)


async def test_another_target_or_another_schedule_takes_the_condition_away() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(40))
        world.executor.seconds = 30
        await until(40)
        assert world.condition(place, "TargetMissed") is not None
        world.policy(schedule={"everySeconds": 300})
        await until(100)
        assert world.condition(place, "TargetMissed") is None
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:05:00Z"
        world.policy(**target(3600))
        await until(110)
        assert world.api.status(place)["schedule"] == "at most 3600s old"
        assert world.condition(place, "TargetMissed") is None


async def test_after_failures_it_is_due_again_with_growing_pauses_and_says_so() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.seconds = 8
        world.executor.script["mv"] = [FAILED, FAILED, FAILED]
        await until(200)
        assert starts(world)[:4] == [at(1), at(15), at(34), at(63)]  # 5, 10 and 20 after the end, whole seconds
        assert world.condition(place, "Fresh") == ("True", "Refreshed")

        world.executor.script["mv"] = [FAILED] * 12
        await until(300)
        assert world.condition(place, "TargetMissed") == ("True", "RunFailed")
        assert "the last run failed" in said_of(world, place)
        await until(4000)
        late = starts(world)[-4:]
        assert world.condition(place, "TargetMissed") is None
        assert world.executor.script["mv"] == []
        assert max(oldest_ages(world)) < timedelta(seconds=400)
        assert late[-1] - late[-2] == timedelta(seconds=50)


async def test_what_never_ran_well_is_tried_again_too() -> None:
    async with World() as world:
        place = world.policy(**target(60))  # no database
        await until(40)
        assert world.condition(place, "Fresh") == ("False", "DatabaseNotFound")
        assert starts(world) == []
        world.database()
        await until(90)
        assert len(starts(world)) == 1
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_request_puts_the_next_run_off() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.seconds = 8
        await until(30)
        world.api.annotate(place, "now")
        await until(50)
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:01:20Z"
        await until(100)
        assert starts(world) == [at(1), at(30), at(80)]


async def test_a_request_while_it_is_due_does_not_double_it() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.seconds = 8
        await until(49)
        world.api.annotate(place, "now")  # at work until 57; it is due at 51
        await until(90)
        assert starts(world) == [at(1), at(49)]


async def test_suspended_it_rests_and_resumed_it_is_due_at_once() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        await until(10)
        world.policy(**target(60, suspend=True))
        await until(500)
        assert starts(world) == [at(1)]
        assert "nextSlotTime" not in world.api.status(place)
        world.policy(**target(60))
        await until(502)
        assert starts(world) == [at(1), at(501)]


async def test_suspended_while_it_runs_it_rests_too() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.seconds = 8
        await until(5)
        world.policy(**target(60, suspend=True))
        await until(500)
        assert starts(world) == [at(1)]
        assert "nextSlotTime" not in world.api.status(place)


async def test_what_finds_no_place_in_time_is_missed_and_due_again() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("hog", schedule={"everySeconds": 40})
        world.executor.seconds = 70  # the hog's, from 40 to 110
        await until(45)
        place = world.policy(**target(200, startingDeadlineSeconds=20))
        await until(100)
        assert starts(world) == []
        missed = world.api.status(place)["missedSlots"]
        assert missed in (1, 2)
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        await until(115)
        assert len(starts(world)) == 1
        assert world.metrics.missed[place] in (missed, missed + 1)


async def test_a_lock_that_others_hold_is_no_reason_to_stop() -> None:
    async with World() as world:
        world.database()
        world.policy(**target(60, startingDeadlineSeconds=10))
        world.executor.held_until["mv"] = at(60)
        await until(200)
        begun = starts(world)
        assert sum(start >= at(60) for start in begun) >= 3


async def test_another_policys_run_covers_it_and_its_rows_count() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        world.executor.script["mv"] = [COVERED]
        await until(30)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        await until(120)
        assert starts(world)[:2] == [at(1), at(60)]


async def test_one_that_runs_longer_than_its_target_is_begun_again_only_when_it_has_ended() -> None:
    async with World() as world:
        world.database()
        world.policy(**target(10))
        world.executor.seconds = 100
        await until(350)
        assert world.executor.most_at_once["all"] == 1
        assert starts(world) == [at(1), at(102), at(203), at(304)]
        assert world.metrics.missed == {}


async def test_clocks_that_are_set_stop_nothing() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**target(60))
        await until(10)
        for hours in (1, 0, 24 * 3653, 0, -24 * 3653):
            world.clock.set_by = timedelta(hours=hours)
            before = len(starts(world))
            await until(_now(world) + 600)
            assert len(starts(world)) - before >= 3, hours
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.supervisor.healthy()


async def test_a_clock_that_is_set_back_names_no_second_slot_like_a_former_one() -> None:
    async with World() as world:
        world.database()
        world.policy(**target(60, historyLimit=20))
        await until(601)
        named = [call.run.slot_id for call in world.executor.calls]
        assert len(named) == len(set(named)) > 9
        # So far back that it is due at once, in the very second in which a former slot was.
        former = [call.run.due_at for call in world.executor.calls if call.run.due_at is not None][4]
        world.clock.set_by = former - timedelta(seconds=1) - at(601)
        await until(603)
        again = [call.run.slot_id for call in world.executor.calls]
        assert len(again) == len(named) + 1
        assert len(set(again)) == len(again)


NOW = at(1000)


def of_status(*views: dict[str, Any], seconds: int = 60, **status: Any) -> StalenessTarget:
    names = [{"name": view["name"]} for view in views]
    spec = MatviewRefreshPolicySpec.model_validate(policy_spec("mv", views=names))
    found = MatviewRefreshPolicyStatus.model_validate(
        {"views": [{"schema": "public"} | view for view in views]} | status
    )
    return staleness_target(seconds, spec=spec, status=found)


def view(name: str, started_at: datetime, *, seconds: float, data_as_of: datetime | None) -> dict[str, Any]:
    took = {"startedAt": started_at, "durationMs": round(seconds * 1000), "outcome": "SUCCESS"}
    return {"name": name, "dataAsOf": data_as_of} | took


def test_a_servers_clock_that_is_ahead_makes_no_rows_younger_than_their_run() -> None:
    ahead = of_status(view("mv", NOW, seconds=4, data_as_of=NOW + timedelta(days=9)))
    assert ahead.next_after(NOW) == NOW + timedelta(seconds=4 + 60 - 5)


def test_without_a_history_the_views_own_durations_are_added_up() -> None:
    both = of_status(
        view("a", NOW, seconds=8, data_as_of=NOW), view("b", NOW + timedelta(seconds=8), seconds=12, data_as_of=NOW)
    )
    assert both.next_after(NOW) == NOW + timedelta(seconds=60 - 25)


def test_failed_and_covered_runs_measure_nothing_and_five_good_ones_do() -> None:
    def entry(outcome: str, seconds: int) -> dict[str, Any]:
        return {"outcome": outcome, "startedAt": NOW, "durationMs": seconds * 1000, "views": 1, "failed": 0}

    history = [entry("FAILED", 50), entry("SKIPPED_COVERED", 40), *(entry("SUCCESS", each) for each in (4, 8, 4, 4, 4))]
    mv = view("mv", NOW, seconds=1, data_as_of=NOW)
    assert of_status(mv, history=history).next_after(NOW) == NOW + timedelta(seconds=50)
    assert of_status(mv, history=[entry("SUCCESS", 4)] * 4 + history).next_after(NOW) == NOW + timedelta(seconds=55)


def test_a_view_without_rows_makes_it_due_at_once_and_not_twice_in_a_second() -> None:
    new = of_status(view("a", NOW - timedelta(seconds=30), seconds=1, data_as_of=NOW), {"name": "b"})
    assert new.next_after(NOW) == NOW + timedelta(seconds=1)
    following = NOW + timedelta(seconds=1 + 58)
    assert new.due_between(NOW, NOW + timedelta(seconds=1.5)) == Due(1, NOW + timedelta(seconds=1), following)
    assert new.missed() is None


def _now(world: World) -> float:
    return (world.clock.now() - world.clock.set_by - at(0)).total_seconds()
