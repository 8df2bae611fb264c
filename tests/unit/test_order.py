"""GATE-2C: what is due together goes upstream before downstream, across policies; failures skip what reads them."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from tests.unit.ports import COVERED, EPOCH, FAILED, UNKNOWN, Told, at
from tests.unit.world import POLICY, World, key, until

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.precedence import Precedence
from matview_operator.domain.slot import scheduled
from matview_operator.engine.lines import Due, Line, Part
from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

MANY = {"maxConcurrentRefreshes": 50}
HOURLY = {"everySeconds": 3600}


def views(*names: str, **depends_on: str) -> list[dict[str, Any]]:
    """Views by name; `b="a c"`: b depends on a and c."""
    return [
        {"name": name}
        | ({"dependsOn": [{"name": other} for other in depends_on[name].split()]} if name in depends_on else {})
        for name in names
    ]


def times(world: World) -> list[tuple[str, float]]:
    """Which view began when, in seconds since the start."""
    return [(str(call.run.view), round((call.at - EPOCH).total_seconds(), 3)) for call in world.executor.calls]


def outcomes(world: World, place: Key) -> dict[str, str]:
    return {view["name"]: view["outcome"] for view in world.api.status(place)["views"]}


def said(world: World, place: Key, kind: str = "Stalled") -> str:
    return next((c["message"] for c in world.api.status(place)["conditions"] if c["type"] == kind), "")


# Order.


@pytest.mark.parametrize("names", list(permutations(["p1", "p2", "p3"])), ids="".join)
async def test_gate_2c_a_chain_over_three_policies_goes_in_order_whichever_timer_fires_first(
    names: tuple[str, ...],
) -> None:
    async with World() as world:
        world.inspector.reads = {"c": "b", "b": "a"}
        world.database(limits=MANY)
        for name, view in zip(names, "abc", strict=True):
            world.policy(name, views=views(view))
        await until(31)
        assert times(world) == [("a", 30), ("b", 30.1), ("c", 30.2)]
        assert {world.api.status(key(name))["history"][0]["outcome"] for name in names} == {"SUCCESS"}


async def test_what_has_to_wait_once_more_when_it_has_its_place_is_waited_for_all_the_same() -> None:
    async with World() as world:
        world.inspector.facts["bookkeeping"] = Bookkeeping.MISSING
        world.inspector.reads = {"d": "c"}
        world.database(limits={"maxConcurrentRefreshes": 1, "minIntervalSeconds": 20})
        world.policy("p1", views=views("b"))
        world.policy("p2", views=views("c", "b"))
        world.policy("p3", views=views("d"), startingDeadlineSeconds=29)
        world.executor.slow["b"] = 1
        await until(59)
        # The second has its turn when b was refreshed, and its own b would come too soon.
        assert times(world) == [("b", 30), ("c", 50), ("d", 50.1)]


async def test_what_was_changed_while_it_waited_for_its_place_is_waited_for_all_the_same() -> None:
    async with World() as world:
        world.inspector.reads = {"d": "c"}
        world.database(limits={"maxConcurrentRefreshes": 2, "minIntervalSeconds": 0})
        world.policy("p1", views=views("a"))
        world.policy("p2", views=views("b"))
        world.policy("p3", views=views("c", "e"))
        world.policy("p4", views=views("d"))
        world.executor.slow |= {"a": 1, "b": 1}
        await until(30.5)
        world.policy("p3", views=views("c"))
        await until(59)
        assert times(world) == [("a", 30), ("b", 30), ("c", 31), ("d", 31.1)]


async def test_gate_2c_what_is_due_is_waited_for_though_its_timer_has_not_fired_yet() -> None:
    async with World() as world:
        world.inspector.reads = {f"v{number:03}": "z" for number in range(250)}
        world.database(limits=MANY)
        for number in range(250):
            world.policy(f"v{number:03}")
        world.policy("z")  # the last of those due at the same instant
        await until(29)
        assert world.executor.calls == []
        await until(35)
        assert times(world)[0] == ("z", 30)
        assert min(begun for view, begun in times(world) if view != "z") == 30.1
        assert len(world.executor.calls) == 251


async def test_gate_2c_the_two_sides_of_a_diamond_are_refreshed_at_the_same_time() -> None:
    async with World() as world:
        world.inspector.reads = {"left": "top", "right": "top", "bottom": "left right"}
        world.database(limits=MANY)
        for name in ("bottom", "left", "right", "top", "alone"):
            world.policy(name)
        await until(31)
        assert sorted(times(world), key=lambda each: (each[1], each[0])) == [
            ("alone", 30),
            ("top", 30),
            ("left", 30.1),
            ("right", 30.1),
            ("bottom", 30.2),
        ]


async def test_gate_2c_a_view_waits_through_a_managed_one_that_nobody_is_due_for() -> None:
    async with World() as world:
        world.inspector.reads = {"c": "b", "b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b", schedule=HOURLY)
        world.policy("c")
        await until(31)
        assert times(world) == [("a", 30), ("c", 30.1)]


async def test_gate_2c_what_nobody_is_due_for_is_not_waited_for() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", schedule=HOURLY)
        world.policy("b")
        await until(31)
        assert times(world) == [("b", 30)]


async def test_gate_2c_what_a_function_hides_is_waited_for_because_depends_on_says_so() -> None:
    async with World() as world:
        world.database(limits=MANY)
        world.policy("p", views=[{"name": "m", "dependsOn": [{"schema": "raw", "name": "Costs"}]}])
        world.policy("q", views=[{"schema": "raw", "name": "Costs"}])
        await until(31)
        assert times(world) == [("raw.Costs", 30), ("m", 30.1)]


async def test_gate_2c_a_policys_own_views_go_in_order_and_else_at_once() -> None:
    async with World() as world:
        world.inspector.reads = {"a": "d", "b": "e"}
        world.database(limits=MANY)
        place = world.policy("p", views=views("b", "a", "c", "d"))
        world.policy("q", views=views("w", "x", "y", "e"))
        world.executor.seconds = 1
        await until(40)
        # b waits for e of the other policy, and holds up nobody of its own.
        assert [each for each in times(world) if each[0] in "abcd"] == [("c", 30), ("d", 30), ("b", 31), ("a", 31)]
        assert [view["name"] for view in world.api.status(place)["views"]] == ["b", "a", "c", "d"]


async def test_gate_2c_policies_whose_views_read_each_others_do_not_wait_for_each_other_for_ever() -> None:
    async with World() as world:
        world.inspector.reads = {"a1": "b2", "b1": "a2"}
        world.database(limits=MANY)
        world.policy("a", views=views("a1", "a2"))
        world.policy("b", views=views("b1", "b2"))
        await until(31)
        assert sorted(times(world)) == [("a1", 30.1), ("a2", 30), ("b1", 30.1), ("b2", 30)]


async def test_gate_2c_a_group_waits_as_a_whole_for_what_it_reads_outside() -> None:
    async with World() as world:
        world.inspector.reads = {"m": "x"}
        world.database(limits=MANY)
        world.policy("g", views=views("k", "m"), consistency="Group")
        world.policy("x")
        world.policy("y", views=views("y", y="k"))
        await until(31)
        assert times(world) == [("x", 30), ("k", 30.1), ("m", 30.2), ("y", 30.3)]


async def test_gate_2c_waiting_holds_no_place() -> None:
    async with World() as world:
        world.inspector.reads = {"a": "z", "b": "z"}
        world.database(limits={"maxConcurrentRefreshes": 1})
        for name in ("a", "b", "c", "z"):
            world.policy(name)
        await until(31)
        assert [view for view, _ in times(world)][:2] == ["c", "z"]
        assert len(world.executor.calls) == 4


async def test_gate_2c_a_thousand_that_wait_for_one_are_woken_once_by_its_end() -> None:
    async with World() as world:
        world.inspector.reads = {f"v{number}": "hub" for number in range(1000)}
        world.database(limits=MANY)
        for number in range(1000):
            world.policy(f"v{number}")
        world.policy("hub")
        world.executor.seconds = 5
        await until(34.9)
        assert times(world) == [("hub", 30)]
        line = world.supervisor.turns._lines[key("db"), world.executor.calls[0].run.view]
        (part,) = line.parts.values()
        (gathering,) = part.gatherings  # one for all, and nothing that asks again and again
        assert len(gathering.waiting) == world.supervisor.queue_depth == 1000
        world.executor.seconds = 0.01
        await until(40)
        assert len(world.executor.calls) == 1001
        assert world.supervisor.queue_depth == 0


async def test_gate_2c_a_lock_that_is_tried_again_is_not_the_end() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b")
        world.executor.held_until["a"] = at(36)
        await until(49)
        (begun,) = [begun for view, begun in times(world) if view == "b"]
        assert begun > 36
        assert times(world)[-1][0] == "b"


async def test_gate_2c_a_slot_behind_one_of_its_own_policy_is_waited_for_too() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("p", views=views("slow", "a", a="slow"), startingDeadlineSeconds=300)
        world.policy("b", schedule={"everySeconds": 60}, startingDeadlineSeconds=300)
        world.executor.seconds = 20  # the slot of 12:00:30 takes until 12:01:10, that of 12:01 until 12:01:50
        await until(115)
        assert [each for each in times(world) if each[0] != "slow"] == [("a", 50), ("a", 90), ("b", 110)]


async def test_gate_2c_after_a_restart_what_was_missed_is_caught_up_in_order() -> None:
    first = World()
    async with first as world:
        world.inspector.reads = {"c": "b", "b": "a"}
        world.database(limits=MANY)
        for name in ("c", "b", "a"):
            world.policy(name, startingDeadlineSeconds=600)
        await until(31)
        await world.crash()
    await until(95)
    async with World(former=first) as world:
        await until(97)
        assert [view for view, begun in times(world) if begun > 90] == ["a", "b", "c"]


# Failure.


@pytest.mark.parametrize(
    "told",
    [
        FAILED,
        Told(outcome=RefreshOutcome.REJECTED_BY_GUARD, reason=RefreshReason.TOO_FEW_ROWS),
        Told(outcome=RefreshOutcome.INTERRUPTED, reason=RefreshReason.CONNECTION_LOST),
    ],
    ids=lambda told: told.outcome.value,
)
async def test_gate_2c_what_reads_a_failed_view_is_skipped_and_names_it(told: Told) -> None:
    async with World() as world:
        world.inspector.reads = {"c": "b", "b": "a"}
        world.database(limits=MANY)
        for name in ("c", "b", "alone"):
            world.policy(name)
        world.policy("source", views=views("a"), retry={"limit": 0})
        world.executor.script["a"] = [told]
        await until(31)
        assert sorted(world.executor.views) == ["a", "alone"]
        for name in ("b", "c"):
            (view,) = world.api.status(key(name))["views"]
            assert (view["outcome"], view["reason"]) == ("SKIPPED_UPSTREAM", "UpstreamFailed")
            assert "It reads a, which policy source failed to refresh" in view["message"]
            assert world.condition(key(name), "Fresh") == ("False", "UpstreamFailed")
            assert world.api.status(key(name))["consecutiveFailures"] == 0
        await until(61)
        assert world.executor.views[-3:] == ["a", "b", "c"]
        assert world.condition(key("c"), "Fresh") == ("True", "Refreshed")


@pytest.mark.parametrize("told", [COVERED, Told(outcome=RefreshOutcome.SKIPPED_UNCHANGED)])
async def test_gate_2c_a_covered_view_is_as_good_as_a_refreshed_one(told: Told) -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("b")
        world.policy("a")
        world.executor.script["a"] = [told]
        await until(31)
        assert world.executor.views == ["a", "b"]


async def test_gate_2c_within_a_policy_too_what_reads_a_failed_view_is_skipped() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        place = world.policy("p", views=views("b", "a", "c"))
        world.executor.script["a"] = [FAILED]
        await until(31)
        assert outcomes(world, place) == {"b": "SKIPPED_UPSTREAM", "a": "FAILED", "c": "SUCCESS"}


async def test_a_view_that_is_skipped_for_its_upstream_is_no_begin_of_a_suspended_policys_slot() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a", "c": "z"}
        world.database(limits=MANY)
        for name, seconds in (("a", 10), ("z", 20)):
            world.policy(name)
            world.executor.slow[name] = seconds
        world.executor.script["a"] = [FAILED]
        place = world.policy("p", views=views("b", "c"), startingDeadlineSeconds=29)
        await until(35)
        world.policy("p", views=views("b", "c"), suspend=True)
        await until(200)
        assert world.executor.views.count("z") == 6
        assert world.executor.views.count("c") == 0
        assert world.api.status(place)["views"] == []


async def test_gate_2c_of_several_policies_one_that_refreshed_the_view_is_enough() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("p", views=views("a"))
        world.policy("q", views=views("a"))
        world.policy("b")
        world.executor.script["a"] = [FAILED, None, FAILED, FAILED]  # type: ignore[list-item] # None: SUCCESS
        await until(31)
        assert world.executor.views == ["a", "a", "b"]
        await until(61)
        assert world.executor.views[3:] == ["a", "a"]
        assert outcomes(world, key("b")) == {"b": "SKIPPED_UPSTREAM"}


async def test_gate_2c_a_view_that_fails_while_it_is_waited_for_skips_though_it_was_due_before() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", schedule={"everySeconds": 60})
        world.policy("b", schedule={"everySeconds": 90}, startingDeadlineSeconds=60)
        world.executor.seconds = 50
        world.executor.script["a"] = [FAILED]
        await until(112)
        assert times(world) == [("a", 60)]
        assert outcomes(world, key("b")) == {"b": "SKIPPED_UPSTREAM"}


async def test_gate_2c_a_failure_of_a_slot_before_skips_nothing() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", schedule={"everySeconds": 60})
        world.policy("b")
        world.executor.script["a"] = [FAILED]
        await until(91)
        assert times(world) == [("b", 30), ("a", 60), ("b", 90)]


async def test_gate_2c_a_policy_that_may_not_run_fails_and_what_reads_its_view_says_so() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", isolation="Tenant", tenantId="t1")
        world.policy("a2", views=views("a"))
        world.policy("b")
        await until(31)
        assert world.executor.calls == []
        assert outcomes(world, key("b")) == {"b": "SKIPPED_UPSTREAM"}


# Cycles and missing names.


async def test_fault_23_a_cycle_is_named_in_stalled_and_all_others_go_on() -> None:
    async with World() as world:
        world.database(limits=MANY)
        for name, other in (("a", "b"), ("b", "c"), ("c", "a")):  # each by itself is well
            world.policy(name, views=views(name, **{name: other}))
        world.policy("alone")
        await until(31)
        assert world.executor.views == ["alone"]
        for name in "abc":
            assert world.condition(key(name), "Stalled") == ("True", "DependencyCycle")
            assert "in a cycle" in said(world, key(name))
            assert "a → b → c → a" in said(world, key(name))
            (view,) = world.api.status(key(name))["views"]
            assert (view["outcome"], view["reason"]) == ("FAILED", "DependencyCycle")
        assert world.condition(key("alone"), "Stalled") is None
        world.policy("c")
        await until(33)
        for name in "abc":
            assert world.condition(key(name), "Stalled") is None
            assert world.condition(key(name), "Ready") == ("True", "Scheduled")
        await until(61)
        assert [view for view, begun in times(world) if begun >= 60 and view != "alone"] == ["c", "b", "a"]


async def test_fault_23_a_group_with_a_view_in_between_is_stalled_and_the_view_goes_on() -> None:
    async with World() as world:
        world.inspector.reads = {"z": "m", "m": "k"}
        world.database(limits=MANY)
        place = world.policy("g", views=views("k", "z"), consistency="Group")
        world.policy("m", schedule=HOURLY)
        await until(31)
        assert world.condition(place, "Stalled") == ("True", "DependencyCycle")
        assert "(k, z) → m → (k, z)" in said(world, place)
        assert world.condition(key("m"), "Ready") == ("True", "Scheduled")


async def test_fault_23_a_missing_dependency_is_named_in_stalled_until_a_policy_names_it() -> None:
    async with World() as world:
        world.database(limits=MANY)
        world.policy("b", views=views("b", b="a"))
        world.policy("alone")
        await until(31)
        assert world.executor.views == ["alone"]
        assert world.condition(key("b"), "Stalled") == ("True", "DependencyMissing")
        assert "b depends on a (spec.views[].dependsOn)" in said(world, key("b"))
        world.policy("a")
        await until(33)
        assert world.condition(key("b"), "Stalled") is None
        await until(61)
        assert [view for view, begun in times(world) if begun >= 60 and view != "alone"] == ["a", "b"]
        world.api.delete(POLICY, key("a"))
        await until(63)
        assert world.condition(key("b"), "Stalled") == ("True", "DependencyMissing")


async def test_fault_23_a_dependency_that_moves_to_another_database_is_missed_at_once() -> None:
    async with World() as world:
        world.database()
        world.database("other")
        world.policy("b", views=views("b", b="a"), schedule=HOURLY)
        world.policy("a", schedule=HOURLY)
        await until(1)
        assert world.condition(key("b"), "Stalled") is None
        world.policy("a", schedule=HOURLY, databaseRef={"name": "other"})
        await until(2)
        assert world.condition(key("b"), "Stalled") == ("True", "DependencyMissing")


async def test_fault_23_what_the_catalogue_says_stays_known_while_the_server_does_not_answer() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("b")
        world.policy("a")
        await until(5)
        world.inspector.down["db"] = Problem(RefreshReason.CONNECTION_FAILED, "Nobody there.")
        world.policy("c")
        await until(31)
        assert [each for each in times(world) if each[0] != "c"] == [("a", 30), ("b", 30.1)]


# What changes meanwhile.


async def test_gate_2c_a_view_whose_policy_is_deleted_is_waited_for_no_longer() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b")
        world.executor.seconds = 10
        await until(32)
        assert world.executor.views == ["a"]
        world.api.delete(POLICY, key("a"))
        await until(33)
        assert times(world) == [("a", 30), ("b", 32)]
        assert {str(view) for view in world.supervisor.registry.views[key("db")]} == {"b"}
        world.api.delete(POLICY, key("b"))
        await until(34)
        registry, turns = world.supervisor.registry, world.supervisor.turns
        assert (registry.views, registry.revisions, registry.dependent) == ({}, {}, {})
        assert turns._works == {}
        assert not any(line.parts for line in turns._lines.values())


async def test_gate_2c_a_view_whose_schedule_is_suspended_is_waited_for_only_while_it_runs() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b")
        world.executor.seconds = 10
        await until(32)
        world.policy("a", suspend=True)
        await until(71)
        assert times(world) == [("a", 30), ("b", 40), ("b", 60)]


@pytest.mark.parametrize("change", ["suspended", "deleted", "other views"])
async def test_gate_2c_a_slot_that_waited_and_will_not_run_any_more_is_waited_for_no_longer(change: str) -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        fields: dict[str, Any] = {"views": views("slow", "a", a="slow"), "startingDeadlineSeconds": 300}
        world.policy("p", **fields)
        world.policy("b", schedule={"everySeconds": 60}, startingDeadlineSeconds=300)
        world.executor.seconds = 20  # the slot of 12:00:30 takes until 12:01:10, and that of 12:01 waits behind it
        await until(65)
        match change:
            case "suspended":
                world.policy("p", **fields, suspend=True)
            case "deleted":
                world.api.delete(POLICY, key("p"))
            case _:
                world.policy("p", **fields | {"views": views("slow")})
        await until(115)
        assert [each for each in times(world) if each[0] != "slow"] == [
            ("a", 50),
            ("b", 65 if change == "deleted" else 70),
        ]


async def test_gate_2c_a_slot_that_waits_beyond_its_deadline_is_missed_and_the_next_one_goes() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", schedule={"everySeconds": 60})
        place = world.policy("b", schedule={"everySeconds": 60})
        world.executor.seconds = 50
        await until(81)
        assert world.executor.views == ["a"]
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        assert world.metrics.missed[place] == 1
        world.executor.seconds = 1
        await until(122)
        assert times(world)[1:] == [("a", 120), ("b", 121)]


async def test_gate_2c_at_the_end_of_the_process_nobody_begins_after_the_one_that_it_waited_for() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b")
        world.executor.seconds = 3
        await until(31)
        await world.supervisor.stop(grace_seconds=10)
        assert world.clock.now() < at(34)
        assert world.executor.views == ["a"]


# Requests.


async def test_gate_2c_a_request_waits_for_what_is_being_refreshed_and_runs_though_that_failed() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b", schedule=HOURLY)
        world.executor.seconds = 5
        world.executor.script["a"] = [FAILED]
        await until(31)
        world.api.annotate(key("b"), "r1")
        await until(45)
        assert times(world) == [("a", 30), ("b", 35)]
        assert world.api.status(key("b"))["lastHandledRequest"] == "r1"
        assert outcomes(world, key("b")) == {"b": "SUCCESS"}


async def test_gate_2c_within_a_request_what_reads_a_failed_view_is_skipped() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a", "c": "b"}
        world.database(limits=MANY)
        place = world.policy("p", views=views("c", "b", "a"), schedule=HOURLY)
        world.executor.script["a"] = [FAILED]
        world.api.annotate(place, "r1")
        await until(5)
        assert outcomes(world, place) == {"c": "SKIPPED_UPSTREAM", "b": "SKIPPED_UPSTREAM", "a": "FAILED"}
        world.api.annotate(place, "r2")
        await until(10)
        assert world.executor.views == ["a", "a", "b", "c"]


async def test_gate_2c_an_upstream_whose_commit_is_unknown_is_asked_for_until_it_is_known() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a")
        world.policy("b")
        world.executor.script["a"] = [UNKNOWN]
        await until(40)
        assert world.executor.views == ["a", "a", "b"]


async def test_gate_2c_what_fails_in_a_request_skips_no_slot() -> None:
    async with World() as world:
        world.inspector.reads = {"b": "a"}
        world.database(limits=MANY)
        world.policy("a", schedule=HOURLY)
        world.policy("b")
        world.executor.script["a"] = [FAILED]
        await until(29.95)
        world.api.annotate(key("a"), "r1")
        await until(31)
        assert times(world) == [("a", 29.95), ("b", 30.05)]


async def test_gate_2c_what_waits_by_an_older_order_is_not_waited_for() -> None:
    """It may wait for us: by the older order we come first."""
    line = Line()
    older: Precedence[Key] = Precedence()
    newer: Precedence[Key] = Precedence()
    other = Due(slot=scheduled(EPOCH, starting_deadline_seconds=60))
    line.parts[other] = Part(asked=older)
    ours = Due(slot=scheduled(EPOCH, starting_deadline_seconds=60))
    assert line.gather(ours, older) is not None
    assert line.gather(ours, newer) is None
    line.parts[other].waits = False
    assert line.gather(ours, newer) is not None


async def test_gate_2c_what_is_due_later_is_waited_for_only_while_it_is_refreshed() -> None:
    """Else two could wait for each other: one behind its policy's slot before, which waits for the other."""
    line = Line()
    order: Precedence[Key] = Precedence()
    later = Due(slot=scheduled(at(30), starting_deadline_seconds=60))
    line.parts[later] = Part()
    ours = Due(slot=scheduled(EPOCH, starting_deadline_seconds=60))
    assert line.gather(ours, order) is None
    line.parts[later].waits = False
    assert line.gather(ours, order) is not None
