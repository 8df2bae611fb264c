"""Views of one policy that do not read each other are refreshed at the same time, within all limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.ports import FAILED, LOCK_HELD, Told
from tests.unit.test_order import MANY, times, views
from tests.unit.world import POLICY, World, key, until

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.engine.ports import Key
from matview_operator.engine.strands import Strands

pytestmark = pytest.mark.looptime(noop_cycles=3)

TWO = {"maxConcurrentRefreshes": 2}
ONE = {"maxConcurrentRefreshes": 1}


def told(world: World, place: Key) -> list[tuple[str, str]]:
    return [(view["name"], view["outcome"]) for view in world.api.status(place)["views"]]


# Order.


async def test_independent_views_are_refreshed_at_the_same_time() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy(views=views("a", "b"))
        world.executor.slow.update(a=9, b=4)
        await until(50)
        assert times(world) == [("a", 30), ("b", 30)]
        assert world.executor.most_at_once["db"] == 2
        assert world.api.status(place)["history"][0]["durationMs"] == 9000


async def test_a_diamond_is_refreshed_from_top_to_bottom_and_its_sides_at_the_same_time() -> None:
    async with World() as world:
        world.database(limits=MANY)
        place = world.policy(
            views=views("bottom", "left", "right", "top", bottom="left right", left="top", right="top")
        )
        world.executor.seconds = 2
        world.executor.slow["left"] = 5
        await until(59)
        assert times(world) == [("top", 30), ("left", 32), ("right", 32), ("bottom", 37)]
        assert [name for name, _ in told(world, place)] == ["bottom", "left", "right", "top"]  # as listed


async def test_a_request_keeps_the_order_of_a_policys_views_too() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        place = world.policy(views=views("b", "a", "c"), schedule={"everySeconds": 31_536_000})
        world.executor.seconds = 2
        await until(5)
        world.api.annotate(place, "r1")
        await until(20)
        assert times(world) == [("a", 5), ("c", 5), ("b", 7)]
        assert told(world, place) == [("b", "SUCCESS"), ("a", "SUCCESS"), ("c", "SUCCESS")]


async def test_a_view_that_fails_skips_what_reads_it_and_nothing_else() -> None:
    async with World() as world:
        world.database(limits=MANY)
        place = world.policy(views=views("a", "b", "c", b="a"), retry={"limit": 0})
        world.executor.script["a"] = [FAILED]
        world.executor.slow["c"] = 5  # it is at work when the other one fails
        await until(50)
        assert times(world) == [("a", 30), ("c", 30)]
        assert told(world, place) == [("a", "FAILED"), ("b", "SKIPPED_UPSTREAM"), ("c", "SUCCESS")]


# Limits and turns.


async def test_no_more_views_of_a_policy_are_refreshed_at_once_than_their_database_allows() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 3})
        place = world.policy(views=views(*"abcdefgh"))
        world.executor.seconds = 2
        await until(59)
        assert world.executor.most_at_once["db"] == 3
        assert [begun for _, begun in times(world)] == [30, 30, 30, 32, 32, 32, 34, 34]
        assert {outcome for _, outcome in told(world, place)} == {"SUCCESS"}


async def test_no_more_views_of_a_policy_are_refreshed_at_once_than_half_of_all_places() -> None:
    async with World(places=5) as world:
        world.database(limits=MANY)
        world.policy(views=views(*"abcdefgh"))
        world.executor.seconds = 2
        await until(59)
        assert world.executor.most_at_once["all"] == 3


async def test_one_place_keeps_the_views_of_a_policy_apart_and_as_listed() -> None:
    async with World() as world:
        world.database(limits=ONE)
        world.policy(views=views("c", "a", "b"), schedule={"everySeconds": 600}, startingDeadlineSeconds=10)
        world.executor.seconds = 25
        await until(700)
        # The deadline is that of the slot's begin: the others wait for their place as long as it takes.
        assert times(world) == [("c", 600), ("a", 625), ("b", 650)]


async def test_a_policy_of_a_hundred_views_waits_for_one_place_at_a_time() -> None:
    async with World() as world:
        world.database(limits=TWO)
        world.policy("many", views=[{"name": f"m{view}"} for view in range(100)], schedule={"everySeconds": 600})
        world.executor.seconds = 1
        await until(601.5)
        other = world.policy("other", views=views("o"), schedule={"everySeconds": 31_536_000})
        world.api.annotate(other, "now")
        for _ in range(40):
            assert world.supervisor.budget.waiting <= 2
            assert world.supervisor.queue_depth <= 2
            await asyncio.sleep(1)
        assert ("o", 602) in times(world)  # behind one of the policy's views, not behind all of them
        assert world.executor.most_at_once["db"] == 2


async def test_a_policy_of_a_hundred_views_takes_each_place_in_its_tenants_turn() -> None:
    async with World() as world:
        world.database(limits=TWO)
        hundred = [{"name": f"m{view}"} for view in range(100)]
        world.policy("many", views=hundred, schedule={"everySeconds": 600}, tenantId="many")
        for number in range(10):
            world.policy(f"o{number}", schedule={"everySeconds": 600}, tenantId="others", startingDeadlineSeconds=60)
        world.executor.seconds = 1
        await until(620)
        assert [
            sum(view[0] == "m" for view, begun in times(world) if begun == 600 + second) for second in range(10)
        ] == [1] * 10


# What another policy's run covers.


async def test_a_view_that_another_policy_is_refreshing_holds_up_no_other_one() -> None:
    async with World() as world:
        world.database(limits=MANY)
        world.policy("a", tenantId="a", views=views("v"))
        world.executor.slow["v"] = 10
        place = world.policy("b", tenantId="b", views=views("v", "w", "own", w="v"))
        await until(59)
        assert times(world) == [("v", 30), ("own", 30), ("w", 40)]
        assert told(world, place) == [("v", "SKIPPED_COVERED"), ("w", "SUCCESS"), ("own", "SUCCESS")]


async def test_views_that_waited_for_others_runs_in_vain_ask_for_places_one_by_one() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        names = "uvwx"
        for name in names:
            world.policy(name, tenantId=name, views=views(name), retry={"limit": 0})
            world.executor.script[name] = [FAILED]
        place = world.policy("z", tenantId="z", views=views(*names))
        world.executor.seconds = 5
        await until(34)
        assert world.supervisor.flights.following == 4
        hog = world.policy("hog", tenantId="y", views=views(*(f"h{number}" for number in range(8))))
        world.api.annotate(hog, "now")
        await until(36)
        assert world.supervisor.budget.waiting == 1 + 1  # the hog's fifth view, and one of those four
        await until(59)
        assert told(world, place) == [(name, "SUCCESS") for name in names]


async def test_a_slot_of_which_one_view_was_covered_in_time_has_begun() -> None:
    async with World() as world:
        world.database(limits=TWO)
        world.policy("a", tenantId="a", views=views("v"))
        world.policy("hog", tenantId="hog", views=views("h"))
        place = world.policy("z", tenantId="z", views=views("v", "own"), startingDeadlineSeconds=10)
        world.policy("next", tenantId="next", views=views("n"))
        world.executor.seconds = 20
        world.executor.slow["v"] = 5
        world.executor.slow["n"] = 20
        await until(59)
        # Its own view found no place within ten seconds, but by then the other one was known to be fresh.
        assert sorted(times(world)) == [("h", 30), ("n", 35), ("own", 50), ("v", 30)]
        assert world.metrics.missed[place] == 0


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_slot_whose_views_find_no_place_in_time_is_missed_if_nothing_covered_one_by_then(
    succeeds: bool,  # noqa: FBT001 - pytest
) -> None:
    async with World() as world:
        world.database(limits=TWO)
        world.policy("a", tenantId="a", views=views("v"), retry={"limit": 0})
        world.policy("hog", tenantId="hog", views=views("h"))
        place = world.policy("z", tenantId="z", views=views("v", "own"), startingDeadlineSeconds=10)
        world.executor.seconds = 25
        world.executor.slow["v"] = 15
        world.executor.script["v"] = [] if succeeds else [FAILED]
        await until(59)
        assert times(world) == [("v", 30), ("h", 30)]
        assert world.metrics.missed[place] == 1
        assert world.supervisor.queue_depth == 0


async def test_a_view_that_is_skipped_after_the_deadline_is_not_the_begin_of_its_slot() -> None:
    async with World() as world:
        world.database(limits=MANY)
        for name, seconds in (("a", 15), ("b", 25)):
            world.policy(name, tenantId=name, views=views(name), retry={"limit": 0})
            world.executor.slow[name] = seconds
            world.executor.script[name] = [FAILED]
        place = world.policy("z", tenantId="z", views=views("b", "c", c="a"), startingDeadlineSeconds=10)
        await until(59)
        assert sorted(times(world)) == [("a", 30), ("b", 30)]
        assert world.metrics.missed[place] == 1


async def test_a_policy_that_changes_before_its_slot_has_begun_is_run_as_it_is_now_and_waits_for_nobodys_run() -> None:
    async with World() as world:
        world.database(limits=TWO)
        fields: dict[str, Any] = {"tenantId": "z", "startingDeadlineSeconds": 300, "schedule": {"everySeconds": 600}}
        for name, seconds in (("v", 100), ("h", 10)):
            world.policy(name, tenantId=name, views=views(name), schedule={"everySeconds": 600})
            world.executor.slow[name] = seconds
        place = world.policy("z", views=views("v", "own"), **fields)
        await until(605)
        assert (world.supervisor.flights.following, world.supervisor.budget.waiting) == (1, 1)
        world.policy("z", views=views("new"), **fields)
        await until(612)
        assert times(world)[2:] == [("new", 610)]
        assert told(world, place) == [("new", "SUCCESS")]
        assert world.supervisor.flights.following == 0


# Another attempt.


async def test_a_view_is_tried_again_while_another_one_is_refreshed() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy(views=views("a", "b", "c", c="a"), schedule={"everySeconds": 600})
        world.executor.slow["b"] = 60
        world.executor.script["a"] = [
            Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.CONNECTION_FAILED, message="so it is")
        ]
        await until(650)
        begun = dict(times(world))  # of each view the last time
        assert times(world)[:2] == [("a", 600), ("b", 600)]
        assert 600 < begun["a"] < begun["c"] < 620
        await until(661)
        assert [(view["name"], view["attempts"]) for view in world.api.status(place)["views"]] == [
            ("a", 2),
            ("b", 1),
            ("c", 1),
        ]
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_long_wait_for_another_attempt_is_told_while_another_view_is_refreshed() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy(views=views("a", "b"), schedule={"cron": "10 * * * *"})
        world.executor.slow["b"] = 60
        world.executor.script["a"] = [Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.TIMEOUT, message="slow")]
        await until(610)
        assert world.condition(place, "Fresh") == ("False", "Retrying")
        await until(1300)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_held_lock_is_waited_for_beside_the_other_views() -> None:
    async with World() as world:
        world.database(limits=ONE)
        place = world.policy(views=views("a", "b"))
        world.executor.script["a"] = [LOCK_HELD, LOCK_HELD]
        world.executor.slow["b"] = 10
        await until(59)
        assert times(world)[:2] == [("a", 30), ("b", 30.1)]
        assert told(world, place) == [("a", "SUCCESS"), ("b", "SUCCESS")]


# What is told.


async def test_a_slot_ends_with_its_last_view_and_began_with_its_first_whichever_ended_first() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy("mv", views=views("a", "b", "c"), startingDeadlineSeconds=1000)
        world.executor.slow.update(a=20, b=1, c=1)
        await until(29)
        writes = world.api.writes_to(place)
        await until(49)
        assert sorted(times(world)) == [("a", 30), ("b", 30), ("c", 31)]
        assert world.api.writes_to(place) == writes  # all but one have ended
        await until(51)
        assert world.api.writes_to(place) == writes + 1
        (entry,) = world.api.status(place)["history"]
        assert (entry["startedAt"], entry["durationMs"]) == ("2026-11-22T12:00:30Z", 20_000)
        assert world.metrics.lags == [0]


async def test_the_lag_is_that_of_the_view_that_began_first_though_another_one_ended_before_it() -> None:
    async with World() as world:
        world.database(limits=TWO)
        world.policy("hog", views=views("h"), tenantId="hog")
        place = world.policy("mv", views=views("a", "b"), tenantId="mv")
        world.executor.slow.update(h=5, a=20, b=1)
        await until(59)
        assert sorted(times(world)) == [("a", 30), ("b", 35), ("h", 30)]
        assert world.api.status(place)["history"][0]["startedAt"] == "2026-11-22T12:00:30Z"
        assert world.metrics.lags == [0, 0]


async def test_a_request_is_worked_on_until_the_last_view_has_ended() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy(views=views("a", "b"), schedule={"everySeconds": 31_536_000})
        world.executor.slow.update(a=1, b=10)
        await until(5)
        world.api.annotate(place, "r1")
        await until(14)
        assert world.condition(place, "Reconciling") == ("True", "RefreshRequested")
        assert "lastHandledRequest" not in world.api.status(place)
        await until(16)
        assert world.condition(place, "Reconciling") is None
        assert world.api.status(place)["lastHandledRequest"] == "r1"


# The end.


async def end_in_the_middle(world: World, how: str) -> None:
    match how:
        case "suspended database":
            world.database(limits=TWO, suspend=True)
        case "deleted":
            world.api.delete(POLICY, key("mv"))
        case _:
            await world.supervisor.stop(grace_seconds=0)


@pytest.mark.parametrize("how", ["suspended database", "deleted", "shutdown"])
async def test_all_that_runs_is_stopped_and_what_waits_is_not_begun(how: str) -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy("mv", views=views("a", "b", "c", "d", d="a"), startingDeadlineSeconds=1000)
        world.executor.seconds = 15
        await until(40)
        assert (world.executor.running["db"], world.supervisor.budget.waiting) == (2, 1)
        await end_in_the_middle(world, how)
        await until(41)
        assert sorted(world.executor.cancelled) == ["a", "b"]
        assert world.executor.running["db"] == world.supervisor.queue_depth == 0
        assert not world.supervisor.budget._queues
        if how != "deleted":
            assert told(world, place) == [(name, "INTERRUPTED") for name in "abcd"]
        assert (
            ("lastSlotTime" in world.api.status(place)) is (how == "suspended database") if how != "deleted" else True
        )
        assert len(world.executor.calls) == 2


async def test_at_the_end_of_the_process_all_that_runs_has_the_grace_to_end() -> None:
    async with World() as world:
        world.database(limits=TWO)
        place = world.policy("mv", views=views("a", "b", "c", "d", d="a"), startingDeadlineSeconds=1000)
        world.executor.slow.update(a=6, b=9)
        await until(31)
        await world.supervisor.stop(grace_seconds=20)
        assert asyncio.get_running_loop().time() == pytest.approx(39, abs=0.5)
        assert world.executor.cancelled == []
        outcomes = ["SUCCESS", "SUCCESS", "INTERRUPTED", "INTERRUPTED"]
        assert told(world, place) == [*zip("abcd", outcomes, strict=True)]
        assert "lastSlotTime" not in world.api.status(place)


async def test_what_is_stopped_is_waited_for_though_it_is_stopped_again() -> None:
    told: list[str] = []

    async def attempt(name: str) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            try:
                await asyncio.sleep(2)  # the server is asked to stop it
            except asyncio.CancelledError:
                told.append(f"{name}, in a hurry")
                raise
            told.append(name)
            raise

    async def slot() -> None:
        async with Strands() as strands:
            strands.begin(attempt("a"))
            await asyncio.sleep(5)
            strands.begin(attempt("b"))
            await asyncio.sleep(50)

    once, twice = asyncio.create_task(slot()), asyncio.create_task(slot())
    await until(10)
    once.cancel()
    twice.cancel()
    await until(11)
    assert not once.done()
    twice.cancel()
    await asyncio.wait([once, twice])
    assert asyncio.get_running_loop().time() == 12
    assert sorted(told) == ["a", "a, in a hurry", "b", "b, in a hurry"]


async def test_a_group_stays_one_transaction() -> None:
    async with World() as world:
        world.database(limits=MANY)
        world.policy(views=views("a", "b"), consistency="Group")
        await until(31)
        assert [names for names, _ in world.executor.groups] == [["a", "b"]]
        assert times(world) == [("a", 30), ("b", 30.1)]
