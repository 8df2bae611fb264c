"""Who waits for a view whose refresh failed and is tried again later gives that up when there is newer work to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.unit.ports import FAILED, LOCK_HELD, Told
from tests.unit.test_order import HOURLY, MANY, outcomes, times, views
from tests.unit.world import POLICY, World, key, until

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

SECONDS = {"everySeconds": 120}
"""The source's schedule: due at 120, while those that read it are due every 30 seconds."""
ONE_RETRY = {"limit": 1, "maxBackoffSeconds": 100}
"""After 50 to 100 seconds."""
CONNECTION_LOST = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.CONNECTION_LOST)


@asynccontextmanager
async def world_where(**reads: str) -> AsyncIterator[World]:
    """`b="a"`: the view b reads a."""
    async with World() as world:
        world.inspector.reads = reads
        world.database(limits=MANY)
        yield world


def source(world: World, **fields: Any) -> Key:
    """The policy of the view that fails at 120, and once more after 170."""
    world.executor.script["a"] = [FAILED, FAILED]
    return world.policy("source", **{"views": views("a"), "schedule": SECONDS, "retry": ONE_RETRY} | fields)


def begun(world: World, view: str) -> list[float]:
    return [at for name, at in times(world) if name == view]


def why(world: World, place: Key, view: str) -> str:
    """What the policy's status says of the view."""
    (told,) = (each["message"] for each in world.api.status(place)["views"] if each["name"] == view)
    return str(told)


async def test_a_view_that_waits_for_anothers_next_attempt_does_not_keep_its_policy_from_newer_slots() -> None:
    async with world_where(b="a") as world:
        source(world)
        place = world.policy("p", views=views("x", "b"))
        await until(149)
        assert begun(world, "x") == [30, 60, 90, 120]
        assert begun(world, "b") == [30, 60, 90], "the attempt at its upstream may succeed in time"
        await until(169)
        assert begun(world, "x")[-1] == 150
        assert begun(world, "b") == [30, 60, 90]
        assert outcomes(world, place) == {"x": "SUCCESS", "b": "SKIPPED_UPSTREAM"}
        assert "It reads a, which policy source failed to refresh" in why(world, place, "b")
        assert world.api.status(place)["history"][0]["outcome"] == "SKIPPED_UPSTREAM"
        # When that has ended for good, the slots after it are none of its business.
        await until(239)
        assert len(begun(world, "a")) == 2
        assert begun(world, "x")[-1] == 210
        assert begun(world, "b")[-1] >= 210


async def test_what_succeeds_at_its_next_attempt_in_time_is_worth_the_wait() -> None:
    async with world_where(b="a") as world:
        source(world, retry=ONE_RETRY | {"maxBackoffSeconds": 20, "backoffSeconds": 10})
        world.executor.script["a"] = [FAILED]
        world.policy("p", views=views("x", "b"))
        await until(149)
        (_, again) = begun(world, "a")
        assert 130 < again < 140.2
        assert begun(world, "b")[-1] == pytest.approx(again + 0.1)


async def test_an_attempt_that_is_under_way_is_waited_for_however_many_failed_before() -> None:
    async with world_where(b="a") as world:
        source(world, retry=ONE_RETRY | {"maxBackoffSeconds": 20, "backoffSeconds": 10})
        world.executor.script["a"] = [FAILED]
        world.executor.slow["a"] = 25
        world.policy("p", views=views("x", "b"), schedule={"everySeconds": 60})
        await until(239)
        (_, again) = begun(world, "a")
        assert again < 180 < again + 25, "the second attempt is under way when the newer slot is due"
        assert begun(world, "x") == [60, 120, pytest.approx(again + 25.1)]
        assert begun(world, "b")[1] == pytest.approx(again + 25)


async def test_a_slow_upstream_and_a_held_lock_are_no_failures() -> None:
    async with world_where(b="a", d="c") as world:
        world.policy("slow", views=views("a"), schedule=SECONDS)
        world.policy("held", views=views("c"), schedule=SECONDS, startingDeadlineSeconds=70)
        world.executor.slow["a"] = 40
        world.executor.script["c"] = [LOCK_HELD] * 100
        places = [world.policy(name, views=views(f"x{name}", name)) for name in "bd"]
        await until(159)
        assert begun(world, "xb")[-1] == begun(world, "xd")[-1] == 120
        await until(161)
        assert begun(world, "xb")[-1] == pytest.approx(160.1)
        assert begun(world, "b")[-2:] == [90, 160], "it covers the slot at 150 too"
        await until(179)
        assert len(begun(world, "c")) > 3
        assert begun(world, "xd")[-1] == 120
        assert all("SKIPPED_UPSTREAM" not in outcomes(world, place).values() for place in places)


async def test_of_several_policies_one_that_is_refreshing_the_view_is_worth_the_wait() -> None:
    async with world_where(b="a") as world:
        source(world)
        world.policy("other", views=views("a"), schedule=SECONDS, retry=ONE_RETRY)
        world.executor.script["a"] = [FAILED]
        world.executor.slow["a"] = 20
        world.policy("p", views=views("x", "b"))
        await until(159)
        assert begun(world, "a") == [120, 140], "the other one's begins when the first has failed"
        assert begun(world, "x") == [30, 60, 90, 120]
        await until(161)
        assert begun(world, "b")[-1] == 160


async def test_of_several_policies_the_last_one_to_fail_ends_the_wait() -> None:
    async with world_where(b="a") as world:
        source(world)
        world.policy("other", views=views("a"), schedule=SECONDS, retry={"limit": 0})
        world.executor.slow["a"] = 20
        world.policy("p", views=views("x", "b"))
        await until(159)
        assert begun(world, "a") == [120, 140]
        assert begun(world, "x")[-1] == 120
        await until(161)
        assert begun(world, "x")[-1] == 160
        assert outcomes(world, key("p"))["b"] == "SKIPPED_UPSTREAM"


async def test_one_that_rested_and_was_given_up_is_no_reason_while_another_policys_is_at_work() -> None:
    async with world_where(b="a") as world:
        place = source(world)
        world.policy("who-comes-later-by-name", views=views("a"), schedule=SECONDS)
        world.executor.script["a"] = [FAILED]
        world.policy("p", views=views("x", "b"))
        await until(120.05)
        world.executor.slow["a"] = 50
        await until(145)
        world.policy("source", views=views("a"), schedule=HOURLY)
        await until(146)
        assert world.api.status(place)["history"][0]["outcome"] == "FAILED"
        await until(169)
        assert times(world)[-2:] == [("x", 120), ("a", 120.1)], "the slot at 150 waits for what is at work"
        await until(171)
        assert begun(world, "b")[-1] == pytest.approx(170.1)


@pytest.mark.parametrize("own", [True, False], ids=["a view of the same policy", "another policy's view"])
async def test_a_wait_for_what_waits_itself_for_a_next_attempt_is_no_better(*, own: bool) -> None:
    async with world_where(b="m", m="a") as world:
        if own:
            source(world, views=views("a", "m"))
        else:
            source(world)
            world.policy("middle", views=views("m"), schedule=SECONDS, startingDeadlineSeconds=100)
        place = world.policy("p", views=views("x", "b"))
        await until(169)
        assert begun(world, "x")[-2:] == [120, 150]
        assert outcomes(world, place)["b"] == "SKIPPED_UPSTREAM"
        assert "It reads a, which policy source failed to refresh" in why(world, place, "b")


async def test_a_policy_that_changes_does_not_wait_for_anothers_next_attempt_by_what_it_said_before() -> None:
    async with world_where(b="a") as world:
        source(world)
        place = world.policy("p", views=views("x", "b"), schedule=SECONDS)
        await until(130)
        assert world.api.status(place).get("history", []) == []
        world.api.put(POLICY, place, world.api.objects[POLICY, place]["spec"] | {"views": views("x")})
        await until(131)
        assert world.api.status(place)["history"][0]["outcome"] == "SKIPPED_UPSTREAM"


async def test_a_request_waits_for_nobody_elses_next_attempt() -> None:
    async with world_where(b="a") as world:
        source(world)
        place = world.policy("p", views=views("b"), schedule=HOURLY)
        await until(130)
        world.api.annotate(place, "r1")
        await until(131)
        assert begun(world, "b") == [130]
        assert outcomes(world, place) == {"b": "SUCCESS"}


async def test_a_request_that_waits_for_a_running_view_goes_on_when_that_fails_and_rests() -> None:
    async with world_where(b="a") as world:
        source(world)
        world.executor.slow["a"] = 10
        place = world.policy("p", views=views("b"), schedule=HOURLY)
        await until(125)
        world.api.annotate(place, "r1")
        await until(140)
        assert begun(world, "b") == [130]


@pytest.mark.parametrize("schedule", [HOURLY, {"everySeconds": 5}], ids=["alone", "a slot behind it"])
async def test_a_request_waits_for_its_own_next_attempts(schedule: dict[str, int]) -> None:
    async with world_where(b="a") as world:
        retry = {"backoffSeconds": 20, "maxBackoffSeconds": 20}
        place = world.policy("p", views=views("b", "a"), schedule=schedule, retry=retry)
        world.executor.script["a"] = [CONNECTION_LOST] * 2
        world.executor.slow["a"] = 1
        await until(1)
        world.api.annotate(place, "r1")
        await until(25)
        second, last = begun(world, "a")[1:3]
        assert last > second + 1, "it rested before its last attempt"
        assert begun(world, "b")[0] == pytest.approx(last + 1)
        assert [entry["outcome"] for entry in world.api.status(place)["history"] if "request" in entry] == ["SUCCESS"]


async def test_the_next_attempt_of_a_request_keeps_no_slot_waiting() -> None:
    async with world_where(b="a") as world:
        asked = source(world, schedule=HOURLY, retry={"backoffSeconds": 200, "maxBackoffSeconds": 300})
        world.executor.script["a"] = [CONNECTION_LOST] * 2
        world.executor.slow["a"] = 10
        place = world.policy("p", views=views("x", "b"))
        await until(25)
        world.api.annotate(asked, "r1")
        await until(59)
        assert begun(world, "a") == [25, 35], "its third attempt is yet to come"
        assert begun(world, "b") == [45]
        await until(61)
        assert begun(world, "b") == [45, 60]
        assert outcomes(world, place) == {"x": "SUCCESS", "b": "SUCCESS"}
        assert "lastHandledRequest" not in world.api.status(asked)
