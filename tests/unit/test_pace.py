"""The least interval between scheduled refreshes of a view, limits.minIntervalSeconds: ten seconds unless written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.ports import COVERED, FAILED, UNKNOWN, at
from tests.unit.world import World, key, until

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.slot import scheduled
from matview_operator.domain.view import ViewName
from matview_operator.engine.pace import Pace
from matview_operator.engine.registry import Registry

pytestmark = pytest.mark.looptime(noop_cycles=3)


def every(seconds: int, **fields: Any) -> dict[str, Any]:
    return {"schedule": {"everySeconds": seconds}, "startingDeadlineSeconds": 300} | fields


def of(view: str) -> dict[str, Any]:
    return {"views": [{"name": view}]}


def begun(world: World, view: str = "mv") -> list[float]:
    """When runs of the view began, in seconds."""
    return [(call.at - at(0)).total_seconds() for call in world.executor.calls if str(call.run.view) == view]


async def test_t7_no_schedule_refreshes_a_view_more_often_than_its_administrator_wants() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 10})
        place = world.policy(**every(5))
        await until(36)
        assert begun(world) == [5, 15, 25, 35]
        # The newest slot is run, the one that waited for it is missed.
        assert [call.run.due_at for call in world.executor.calls] == [at(5), at(15), at(25), at(35)]
        assert world.api.status(place)["missedSlots"] == world.metrics.missed[place] == 3
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_a_schedule_that_is_denser_than_the_interval_is_said_so_until_either_is_changed() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 100})
        by_the_second = world.policy("dense", **every(30))
        by_the_minute = world.policy("cron", schedule={"cron": "0,1 * * * *"}, **of("other"))
        fitting = world.policy("fitting", **every(100), **of("third"))
        await until(20)
        assert world.condition(by_the_second, "Ready") == world.condition(by_the_minute, "Ready") == ("True", "Paced")
        assert world.condition(fitting, "Ready") == ("True", "Scheduled")
        (message,) = [c["message"] for c in world.api.status(by_the_second)["conditions"] if c["type"] == "Ready"]
        assert message.startswith("The schedule has slots 30 s apart, and limits.minIntervalSeconds")
        world.database(limits={"minIntervalSeconds": 60})
        world.policy("dense", **every(60))
        await until(40)
        for place in (by_the_second, by_the_minute, fitting):
            assert world.condition(place, "Ready") == ("True", "Scheduled")


async def test_a_slot_that_comes_too_soon_waits_and_is_run() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 40})
        place = world.policy(**every(30))
        await until(100)
        assert [(call.at, call.run.due_at) for call in world.executor.calls] == [(at(30), at(30)), (at(70), at(60))]
        assert world.metrics.missed == {}
        assert world.supervisor.budget.waiting == 0
        await until(115)
        assert begun(world) == [30, 70, 110]
        assert world.metrics.missed == {}
        assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_several_policies_of_one_view_have_one_interval_and_other_views_their_own() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 20})
        world.database("other", limits={"minIntervalSeconds": 20})
        world.policy("a", **every(30), **of("mv"))
        world.policy("b", **every(45), **of("mv"))
        world.policy("c", **every(45), **of("mv2"))
        world.policy("d", **every(45), **of("mv3"), databaseRef={"name": "other"})
        await until(89)
        assert begun(world) == [30, 50, 70]
        assert begun(world, "mv2") == begun(world, "mv3") == [45]


async def test_policies_that_are_due_together_do_not_wait_for_each_other_unless_the_first_run_failed() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1, "minIntervalSeconds": 10})
        world.policy("a", **every(30), **of("mv"))
        world.policy("b", **every(30), **of("mv"))
        world.executor.script["mv"] = [None, FAILED]  # type: ignore[list-item]  # the first one succeeds
        await until(40)
        assert begun(world) == [30]  # and covers the other's slot
        await until(75)
        assert begun(world) == [30, 60, 70]


async def test_policies_of_tenants_own_that_are_due_together_keep_the_interval() -> None:
    async with World() as world:
        world.inspector.facts = {"bookkeeping": Bookkeeping.MISSING}
        world.database(limits={"maxConcurrentRefreshes": 1, "minIntervalSeconds": 10})
        for number in range(4):
            world.policy(f"p{number}", **every(3600), **of("mv"), isolation="Tenant", tenantId="t")
        world.clock.set_by = at(3580) - at(0)
        await until(100)
        assert begun(world) == [3600, 3610, 3620, 3630]


async def test_a_schedule_as_often_as_the_interval_allows_is_not_pushed_on_by_its_own_lag() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 10, "maxConcurrentRefreshes": 1})
        world.policy("a", **every(10), **of("first"))
        place = world.policy("b", **every(10), **of("mv"))
        world.executor.seconds = 3
        await until(19)
        world.policy("a", **every(10, suspend=True), **of("first"))
        await until(35)
        assert begun(world) == [13, 20, 30]
        assert world.metrics.missed.get(place) is None


async def test_a_request_does_not_wait_but_what_it_ran_counts() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 10})
        place = world.policy(**every(30))
        await until(27)
        world.api.annotate(place, "r1")
        await until(40)
        world.api.annotate(place, "r2")
        await until(50)
        assert begun(world) == [27, 37, 40]


async def test_what_refreshed_nothing_does_not_count() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 40})
        world.policy(**every(30))
        world.executor.script["mv"] = [COVERED]
        await until(65)
        assert begun(world) == [30, 60]


async def test_what_failed_before_the_server_was_asked_does_not_count() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 200})
        world.policy(**every(30), views=[{"name": "mv", "dependsOn": [{"name": "other"}]}])
        await until(50)
        assert begun(world) == []  # nobody names the other one
        world.policy("other", **every(3600))
        await until(65)
        assert begun(world) == [50.1]  # at once: see test_retries.py


async def test_a_group_waits_for_the_interval_unless_its_views_were_refreshed_together() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1, "minIntervalSeconds": 20})
        both: dict[str, Any] = {"views": [{"name": "x"}, {"name": "y"}], "consistency": "Group"}
        world.policy("a", **every(60), **of("x"))
        world.policy("b", **every(60), **both)
        world.policy("c", **every(60), **both)
        await until(119)
        # To the third one the ledger says that it is covered; here that is another run.
        assert (begun(world, "x"), begun(world, "y")) == ([60, 80, 80.2], [80.1, 80.3])


async def test_a_slot_that_may_not_wait_so_long_is_missed_and_says_why() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 40})
        place = world.policy(**every(30, startingDeadlineSeconds=5))
        await until(66)
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")
        (fresh,) = (each for each in world.api.status(place)["conditions"] if each["type"] == "Fresh")
        assert fresh["message"].endswith("It had to wait for limits.minIntervalSeconds of the MatviewDatabase.")
        assert begun(world) == [30]


async def test_the_interval_outlasts_a_restart() -> None:
    async with World() as former:
        former.database(limits={"minIntervalSeconds": 50})
        former.policy(**every(30))
        await until(55)
        await former.crash()
    async with World(former=former) as world:
        await until(85)
        assert begun(world) == [30, 80]


async def test_an_interval_that_is_lowered_or_lifted_keeps_nothing_waiting() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 3600})
        world.policy("a", **every(30))
        await until(65)
        world.database(limits={"minIntervalSeconds": 0})
        await until(69)
        assert begun(world, "a") == [30, 65]


async def test_a_clock_that_is_set_back_makes_nothing_wait_longer_than_the_interval() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 20})
        place = world.policy(**every(30))
        world.executor.script["mv"] = [FAILED]
        await until(31)
        world.clock.set_by = at(-7200) - at(0)
        world.api.delete("MatviewRefreshPolicy", place)
        world.policy("again", **every(15), **of("mv"))
        await until(80)
        assert begun(world)[:2] == [30, 45 - 7200]


async def test_a_clock_that_was_set_back_since_one_view_was_refreshed_keeps_the_interval_of_the_others() -> None:
    async with World() as world:
        world.inspector.facts["bookkeeping"] = Bookkeeping.MISSING  # else it would say that a later run covers the slot
        world.database(limits={"minIntervalSeconds": 40})
        views: list[dict[str, Any]] = [{"name": "a"}, {"name": "b"}]
        world.policy("both", views=views, schedule={"everySeconds": 600}, startingDeadlineSeconds=300)
        await until(3601)
        world.clock.set_by = timedelta(seconds=-12_000)  # so far that the schedule goes on from the new time
        b = world.policy("b", views=views[1:], schedule={"everySeconds": 31_536_000})
        await until(4195)
        world.api.annotate(b, "now")
        await until(4300)
        assert begun(world, "b")[-2:] == [4195 - 12_000, 4195 + 40 - 12_000]
        assert begun(world, "a")[-2:] == [3600, 4195 + 40 - 12_000]


async def test_what_became_of_a_commit_is_asked_at_once_and_told_if_a_window_closes() -> None:
    async with World() as world:
        world.database(limits={"minIntervalSeconds": 3600})
        place = world.policy(**every(30))
        world.executor.script["mv"] = [UNKNOWN]
        await until(40)
        assert len(begun(world)) == 2
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
    async with World() as world:
        world.database(windows=[{"kind": "Deny", "cron": "1 12 * * *", "durationSeconds": 600}])
        place = world.policy(**every(54))
        world.executor.script["mv"] = [UNKNOWN] * 20
        await until(100)
        assert max(begun(world)) < 60
        assert world.condition(place, "Fresh") == ("False", "CommitUnknown")


def result(started: float, *, seconds: float = 1, outcome: RefreshOutcome = RefreshOutcome.SUCCESS) -> RefreshResult:
    return RefreshResult(
        view_name="mv",
        tenant_id=None,
        correlation_id="c",
        outcome=outcome,
        started_at=at(started),
        duration_ms=round(1000 * seconds),
        lock_key_debug="",
    )


@pytest.mark.parametrize(
    ("former", "again"), [(100, 160), (1000, 70)], ids=["begun meanwhile", "begun before the clock was set back"]
)
async def test_a_run_that_hung_and_ends_late_does_not_hide_one_that_was_begun_meanwhile(
    former: float, again: float
) -> None:
    least = timedelta(seconds=60)
    async with World() as world:
        world.database()
        policy = world.known(world.policy(**every(600)))
        pace = Pace(registry=world.supervisor.registry)
        for late in (result(former), result(10, seconds=110, outcome=RefreshOutcome.FAILED)):
            slot = scheduled(late.started_at, starting_deadline_seconds=60)
            pace.ended(key("db"), ViewName("public", "mv"), late, slot=slot, least=least)
        slot = scheduled(at(121), starting_deadline_seconds=60)
        assert pace.next_start(policy, slot, least=least, ledger=False, now=at(121)) == at(again)


def test_views_that_no_policy_names_any_more_are_forgotten() -> None:
    pace, slot = Pace(registry=Registry()), scheduled(at(0), starting_deadline_seconds=60)
    for number in range(5000):
        pace.ended(key("db"), ViewName("public", f"mv{number}"), result(0), slot=slot, least=timedelta(seconds=10))
    assert len(pace._begun) <= 1001
