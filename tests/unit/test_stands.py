"""What waits for nothing but a place is little more than a name in the line, and loses nothing by that."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from tests.unit.test_order import times
from tests.unit.world import World, key, until

from matview_operator.domain.run import Run
from matview_operator.engine import runner
from matview_operator.engine.attempts import Attempts
from matview_operator.engine.order import FIRST_LOOK_SECONDS
from matview_operator.engine.ports import Key
from matview_operator.engine.runs import run_of

pytestmark = pytest.mark.looptime(noop_cycles=3)

ONE = {"maxConcurrentRefreshes": 1}
HOURLY: dict[str, Any] = {"schedule": {"everySeconds": 3600}, "startingDeadlineSeconds": 3000}
HALF_MINUTELY = HOURLY | {"schedule": {"everySeconds": 30}}


def is_empty(world: World) -> bool:
    """Whether nobody holds a place or waits for one."""
    return not world.supervisor.budget._queues and not world.supervisor.budget._taken


async def waiting_until_40(world: World, *names: str, **fields: Any) -> list[Key]:
    """Policies whose slot of 30 waits for the only place, which another one, the first by name, has until 40."""
    world.database(limits=ONE)
    world.executor.slow["a"] = 10
    world.policy("a", **HALF_MINUTELY)
    policies = [world.policy(name, **HALF_MINUTELY | fields) for name in names]
    await until(35)
    assert times(world) == [("a", 30)]
    return policies


def prepared(world: World) -> int:
    """How many slots have all in memory that a run needs."""
    gc.collect()  # of what others have left as well
    found = [each for each in gc.get_objects() if isinstance(each, Attempts)]
    return sum(each._registry is world.supervisor.registry for each in found)


async def test_who_waits_for_a_place_takes_one_task_and_nothing_of_what_a_run_needs() -> None:
    async with World() as world:
        world.database(limits=ONE)
        world.executor.seconds = 10
        policies = [world.policy(f"p{number}", **HOURLY) for number in range(200)]
        await until(3599)
        before = len(asyncio.all_tasks())
        await until(3605)
        assert world.supervisor.budget.waiting == 199
        assert len(asyncio.all_tasks()) - before <= len(policies) + 5
        assert prepared(world) == 1
        await until(3600 + 2500)
        assert [view for view, _ in times(world)] == sorted(
            f"p{number}" for number in range(200)
        )  # as their timers fire
        assert {world.api.status(policy)["views"][0]["outcome"] for policy in policies} == {"SUCCESS"}
        assert is_empty(world)
        await until(7205)  # and so those whose runs of the hour before are the last that are remembered
        assert world.supervisor.budget.waiting == 199
        assert prepared(world) == 1


async def test_who_is_late_in_the_line_is_missed_at_once_and_not_when_its_turn_comes() -> None:
    async with World() as world:
        (policy,) = await waiting_until_40(world, "late", startingDeadlineSeconds=7)
        assert "missedSlots" not in world.api.status(policy)
        await until(37.5)
        assert world.api.status(policy)["missedSlots"] == 1
        await until(45)
        assert times(world) == [("a", 30)]
        assert is_empty(world)


async def test_who_is_deleted_in_the_line_keeps_no_place_from_those_behind() -> None:
    async with World() as world:
        gone, _ = await waiting_until_40(world, "gone", "next")
        world.api.delete("MatviewRefreshPolicy", gone)
        await until(45)
        assert times(world) == [("a", 30), ("next", 40)]
        assert is_empty(world)


async def test_who_is_changed_in_the_line_is_refreshed_as_it_is_then() -> None:
    async with World() as world:
        await waiting_until_40(world, "changed")
        world.policy("changed", **HALF_MINUTELY, views=[{"name": "other"}])
        await until(45)
        assert times(world) == [("a", 30), ("other", 40)]
        assert is_empty(world)


async def test_a_view_that_another_policy_comes_to_name_meanwhile_keeps_its_turn_and_covers_the_other() -> None:
    async with World() as world:
        await waiting_until_40(world, "mine", "more")
        spec = HOURLY | {"schedule": {"everySeconds": 36}}  # due at 36 as well
        other = world.policy("other", views=[{"name": "mine"}], **spec)
        await until(45)
        assert times(world) == [("a", 30), ("mine", 40), ("more", 40.1)]
        assert world.api.status(other)["views"][0]["outcome"] == "SKIPPED_COVERED"
        assert is_empty(world)


async def test_what_is_found_to_read_another_view_meanwhile_gives_its_place_back_and_comes_after_that() -> None:
    async with World() as world:
        world.database(limits=ONE, inventory={"checkIntervalSeconds": 60})
        world.executor.slow["a"] = 100
        for name in ("a", "b_downstream", "c_between", "d_upstream"):
            world.policy(name, **HOURLY)
        await until(3610)
        world.inspector.reads = {"b_downstream": "d_upstream"}
        await until(3720)
        assert times(world) == [("a", 3600), ("c_between", 3700), ("d_upstream", 3700.1), ("b_downstream", 3700.2)]
        assert is_empty(world)


async def test_who_is_covered_already_does_not_wait_for_a_place() -> None:
    async with World() as world:
        world.database(limits=ONE)
        world.executor.slow |= {"a": 35, "c": 10}
        world.policy("a", schedule={"everySeconds": 60}, startingDeadlineSeconds=60)
        mine = world.policy("b", startingDeadlineSeconds=60)
        world.policy("c", startingDeadlineSeconds=60)
        await until(96)
        # The slot of 60 waited until 95; its run began after 90, and so does for the slot of then as well.
        assert times(world) == [("b", 30), ("c", 30.1), ("a", 60), ("b", 95), ("c", 95.1)]
        assert world.api.status(mine)["lastSlotTime"] == "2026-11-22T12:01:30Z"


async def test_what_is_wrong_is_told_at_once_and_not_when_its_turn_comes() -> None:
    async with World() as world:
        (policy,) = await waiting_until_40(world, "mine", views=[{"name": "mine", "dependsOn": [{"name": "nobodys"}]}])
        assert world.api.status(policy)["views"][0]["reason"] == "DependencyMissing"
        assert world.supervisor.budget.waiting == 0


async def test_a_process_that_ends_leaves_what_stands_in_the_line_due() -> None:
    async with World() as world:
        (policy,) = await waiting_until_40(world, "mine")
    assert is_empty(world)
    assert "lastSlotTime" not in world.api.status(policy)
    async with World(former=world):
        await until(50)
        assert times(world) == [("a", 30), ("a", 35.06), ("mine", 45.06)]


async def test_a_request_keeps_its_turn_for_as_long_as_it_takes() -> None:
    async with World() as world:
        world.database(limits=ONE)
        world.executor.slow["a"] = 500
        world.policy("a", **HOURLY)
        await until(3601)
        requested = {"matviews.skeldir.io/requestedAt": "now"}
        policy = world.policy("mine", **HOURLY | {"startingDeadlineSeconds": 60}, annotations=requested)
        await until(3602)
        world.policy("later", **HOURLY, annotations=requested)
        assert world.condition(policy, "Reconciling") is not None
        assert world.supervisor.budget.waiting == 1
        await until(4150)
        assert times(world) == [("a", 3600), ("mine", 4100), ("later", 4100.1)]
        assert world.api.status(policy)["lastHandledRequest"] == "now"


async def test_what_comes_after_another_view_does_not_stand_in_the_line_before_that() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "c"}
        await waiting_until_40(world, "b", "c")
        assert (world.supervisor.budget.waiting, world.supervisor.turns.waiting) == (1, 1)
        await until(45)
        assert times(world) == [("a", 30), ("c", 40), ("b", 40.1)]


async def test_nobody_holds_a_place_before_it_is_known_what_his_views_come_after() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "c"}
        world.inspector.seconds = 1.5
        await until(29)
        world.database(limits=ONE)
        for name in ("b", "c"):
            world.policy(name, **HALF_MINUTELY)
        await until(45)
        assert times(world) == [("c", 30.5), ("b", 30.6)]


async def test_a_place_that_comes_when_another_policys_run_is_waited_for_is_handed_on() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 2})
        world.executor.slow |= {"a": 10, "b": 10, "mine": 5}
        for name in ("a", "b", "c", "mine", "more"):
            world.policy(name, tenantId="many", isolation="Shared", schedule={"everySeconds": 30})
        await until(35)
        fields: dict[str, Any] = {"tenantId": "other", "isolation": "Shared", "schedule": {"everySeconds": 36}}
        world.policy("other", views=[{"name": "mine"}], **fields)
        await until(46)
        # The newcomer's turn is the next but one: `mine` has its own while that one's run is under way.
        assert times(world) == [("a", 30), ("b", 30), ("mine", 40), ("c", 40), ("more", 40.1)]
        assert world.api.status(key("mine"))["views"][0]["outcome"] == "SKIPPED_COVERED"
        assert is_empty(world)


async def test_a_bug_before_the_first_view_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Attempts) -> None:
        raise ZeroDivisionError

    async with World() as world:
        await waiting_until_40(world, "b", "c")
        with monkeypatch.context() as patch:
            patch.setattr(Attempts, "next", fail)
            await until(40.01)
        await until(75)
        assert times(world)[1:] == [("a", 60), ("b", 70), ("c", 70.1)]
        assert is_empty(world)


async def test_a_bug_in_the_first_view_leaves_its_place_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_first(*arguments: Any, **fields: Any) -> Run:
        run = run_of(*arguments, **fields)
        if run.view.name == "b1" and not failed:
            failed.append(run)
            raise ZeroDivisionError
        return run

    failed: list[Run] = []
    monkeypatch.setattr(runner, "run_of", fail_first)
    async with World() as world:
        (policy,) = await waiting_until_40(world, "b", views=[{"name": "b1"}, {"name": "b2"}])
        await until(45)
        assert times(world) == [("a", 30), ("b2", 40)]
        assert [view["outcome"] for view in world.api.status(policy)["views"]] == ["FAILED", "SUCCESS"]
        assert is_empty(world)


async def test_a_look_that_takes_too_long_is_waited_for_once() -> None:
    async with World() as world:
        world.inspector.seconds = 100
        await until(29.5)
        world.database(limits=ONE)
        for name in ("b", "c"):
            world.policy(name, **HALF_MINUTELY)
        await until(45)
        assert times(world) == [("b", 30 + FIRST_LOOK_SECONDS), ("c", 30.1 + FIRST_LOOK_SECONDS)]
