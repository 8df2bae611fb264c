"""One run of a shared view for all policies that are due for it, and nobody who waits for a run that does not come."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.refreshes import a_run
from tests.unit.memory_api import Body
from tests.unit.ports import FAILED, LOCK_HELD, Told, VirtualClock, at
from tests.unit.world import POLICY, World, key, until

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.run import slot_id
from matview_operator.domain.slot import scheduled
from matview_operator.domain.view import ViewName
from matview_operator.engine.budget import Budget
from matview_operator.engine.flights import REMEMBERED_SECONDS, REMEMBERED_VIEWS, Flights, FollowedInVain
from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

NAMES = "abcdefgh"
A_RUN = a_run(
    ViewName("public", "v"),
    timeout_seconds=600,
    policy_uid=uuid.UUID(int=1),
    slot_id=slot_id(at(0)),
    due_at=at(0),
    correlation_id="c",
)


def shared(world: World, count: int, *, views: str = "v", **fields: Any) -> list[Key]:
    """So many policies of as many tenants that name the same views."""
    listed = [{"name": name} for name in views.split()]
    return [world.policy(f"{NAMES[number]}", tenantId=f"t{number}", views=listed, **fields) for number in range(count)]


def told(world: World, place: Key) -> list[tuple[str, str | None]]:
    """Outcome and reason of each view of a policy."""
    return [(view["outcome"], view.get("reason")) for view in world.api.status(place).get("views", ())]


def outcomes(world: World, places: list[Key]) -> Counter[str]:
    """How many views of all these policies ended how."""
    return Counter(outcome for place in places for outcome, _ in told(world, place))


def view_of(world: World, place: Key, name: str = "v") -> Body:
    (view,) = [view for view in world.api.status(place)["views"] if view["name"] == name]
    return dict(view)


async def test_a_thousand_tenants_with_five_shared_views_due_at_once_are_five_refreshes() -> None:
    """DESIGN.md 9. Each status names the run that did the work, and says what its rows are as of."""
    async with World() as world:
        world.database()
        names = [f"v{number}" for number in range(5)]
        listed = [{"name": name} for name in names]
        places = [world.policy(f"p{n}", tenantId=f"t{n}", views=listed) for n in range(1000)]
        await until(45)
        assert sorted(world.executor.views) == names
        assert outcomes(world, places) == {"SUCCESS": 5, "SKIPPED_COVERED": 4995}
        runs = {str(call.run.view): call for call in world.executor.calls}
        for place in places:
            for view in world.api.status(place)["views"]:
                run = runs[view["name"]]
                assert view["dataAsOf"] == view["verifiedAt"] == run.at.isoformat().replace("+00:00", "Z")
                assert run.at >= at(30)
                if view["outcome"] == "SKIPPED_COVERED":
                    assert view["message"] == f"Run {run.run.correlation_id} refreshed it after this slot was due."
                    assert view["reason"] == "Covered"
                    assert view["correlationId"] == str(uuid.uuid5(world.known(place).uid, run.run.slot_id))
            assert world.condition(place, "Fresh") == ("True", "Refreshed")
            assert world.api.status(place)["lastSlotTime"] == "2026-11-22T12:00:30Z"


async def test_who_waits_for_a_run_holds_no_place_and_is_counted_as_waiting() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 2})
        world.executor.seconds = 5
        shared(world, 8)
        other = world.policy("other")
        await until(31)
        assert world.executor.views == ["v", "other"]
        assert world.supervisor.queue_depth == 7
        await until(40)
        assert told(world, other) == [("SUCCESS", None)]
        assert world.supervisor.queue_depth == 0


async def test_two_places_that_come_free_in_one_moment_are_one_refresh_of_a_view() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 2})
        world.executor.seconds = 5
        for name in ("a1", "a2"):
            world.policy(name, tenantId="hog")
        places = [world.policy(name, tenantId=name, views=[{"name": "v"}]) for name in ("b1", "b2")]
        await until(45)
        assert [(call.run.view.name, call.at) for call in world.executor.calls] == [
            ("a1", at(30)),
            ("a2", at(30)),
            ("v", at(35)),
        ]
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 1}


async def test_every_policys_next_slot_is_refreshed_anew() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 3)
        await until(70)
        assert [call.at for call in world.executor.calls] == [at(30), at(60)]
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 2}


async def test_a_run_that_began_before_a_slot_was_due_does_not_cover_it_and_one_more_does_for_all() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 5})
        world.executor.seconds = 4
        early = world.policy("early", tenantId="early", views=[{"name": "v"}])
        late = shared(world, 5, schedule={"everySeconds": 32})
        await until(45)
        assert [call.at for call in world.executor.calls] == [at(30), at(34)]
        assert told(world, early) == [("SUCCESS", None)]
        assert outcomes(world, late) == {"SUCCESS": 1, "SKIPPED_COVERED": 4}


async def test_who_comes_to_the_view_after_the_run_has_ended_is_covered_by_it_too() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 2
        world.policy("a", tenantId="a", views=[{"name": "v"}])
        later = world.policy("b", tenantId="b", views=[{"name": "own"}, {"name": "v"}])
        world.executor.seconds = 2
        world.policy("c", tenantId="c", views=[{"name": "own"}])
        await until(45)
        assert sorted(world.executor.views) == ["own", "v"]
        assert view_of(world, later)["outcome"] == "SKIPPED_COVERED"
        assert view_of(world, later)["dataAsOf"] == "2026-11-22T12:00:30Z"


async def test_who_is_covered_after_his_deadline_is_covered_and_not_missed() -> None:
    async with World() as world:
        world.database(windows=[{"kind": "Deny", "cron": "1 12 * * *", "durationSeconds": 600}])
        places = shared(world, 3, startingDeadlineSeconds=20)
        world.executor.slow["v"] = 45  # from 12:00:30 to 12:01:15: the window has closed as well
        await until(80)
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 2}
        for place in places:
            status = world.api.status(place)
            assert status["lastSlotTime"] == "2026-11-22T12:00:30Z"
            assert world.condition(place, "Fresh") == ("True", "Refreshed")


async def test_who_is_covered_after_his_deadline_begins_nothing_else() -> None:
    async with World() as world:
        world.inspector.reads = {"w": "v"}
        world.database(limits={"maxConcurrentRefreshes": 5})
        first, both = world.policy("v"), world.policy("both", views=[{"name": "v"}, {"name": "w"}])
        world.executor.slow["v"] = 29
        await until(59.5)
        assert told(world, first) == [("SUCCESS", None)]
        assert world.executor.views == ["v"]  # w was due at 30 s, and might begin until 50
        assert world.condition(both, "Fresh") == ("False", "SlotMissed")


async def test_who_waited_for_a_run_that_found_the_lock_held_is_missed_after_his_deadline() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("b", startingDeadlineSeconds=300)
        both = world.policy("both", views=[{"name": "b"}, {"name": "c"}])
        world.executor.slow["b"] = 25
        world.executor.script["b"] = [LOCK_HELD]
        await until(59)
        assert told(world, both) == []  # not even that c was interrupted
        assert world.condition(both, "Fresh") == ("False", "SlotMissed")
        assert world.api.status(both)["missedSlots"] == 1


async def test_what_is_not_known_any_more_is_asked_of_the_server() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("a", tenantId="a", views=[{"name": "v"}], schedule={"everySeconds": 3600})
        late = world.policy(
            "b",
            tenantId="b",
            # While the first one runs, the second one waits for its place, and only then v is looked at.
            views=[{"name": "own", "timeoutSeconds": 600}, {"name": "other"}, {"name": "v"}],
            schedule={"everySeconds": 3600},
            startingDeadlineSeconds=600,
        )
        world.executor.slow["own"] = REMEMBERED_SECONDS + 50
        await until(3600 + REMEMBERED_SECONDS + 100)
        assert [str(call.run.view) for call in world.executor.calls].count("v") == 2
        assert view_of(world, late)["outcome"] == "SUCCESS"


@pytest.mark.parametrize(("seconds", "covered"), [(REMEMBERED_SECONDS - 1, True), (REMEMBERED_SECONDS + 1, False)])
async def test_a_run_is_remembered_for_half_a_minute_though_none_comes_after_it(seconds: float, covered: bool) -> None:  # noqa: FBT001 - pytest
    clock = VirtualClock()
    flights = Flights(budget=Budget(limit_of=lambda _: 2, limit_in_all=4), clock=clock)
    slot, view = scheduled(at(0), starting_deadline_seconds=600), ("db", 1, A_RUN.view)
    async with flights.seat(key("db"), A_RUN, slot, shared=view, seconds=300, follows=lambda: None) as seat:
        seat.result = A_RUN.result(RefreshOutcome.SUCCESS, started_at=at(0), ended_at=at(0))
    await until(seconds)
    async with flights.seat(key("db"), A_RUN, slot, shared=view, seconds=300, follows=lambda: None) as seat:
        assert (seat.known is not None) is covered


# A run that comes to nothing.


async def test_when_a_run_fails_the_next_one_runs_itself_and_each_status_is_its_own() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 5)
        world.executor.script["v"] = [FAILED, FAILED]
        await until(45)
        assert len(world.executor.calls) == 3
        assert len({call.run.policy_uid for call in world.executor.calls}) == 3
        assert outcomes(world, places) == {"FAILED": 2, "SUCCESS": 1, "SKIPPED_COVERED": 2}


async def test_a_bug_in_one_run_is_not_its_followers() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 3)
        world.executor.script["v"] = [RuntimeError("a bug")]
        await until(45)
        assert outcomes(world, places) == {"FAILED": 1, "SUCCESS": 1, "SKIPPED_COVERED": 1}


async def test_a_deleted_policys_run_takes_nobody_with_it() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 5
        places = shared(world, 4)
        await until(31)
        leader = next(place for place in places if world.known(place).uid == world.executor.calls[0].run.policy_uid)
        world.api.delete(POLICY, leader)
        await until(45)
        assert world.executor.cancelled == ["v"]
        assert [call.at for call in world.executor.calls] == [at(30), at(31)]
        places.remove(leader)
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 2}


async def test_a_deleted_follower_is_gone_at_once_and_nobody_else_minds() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 5
        places = shared(world, 4)
        await until(31)
        follower = next(place for place in places if world.known(place).uid != world.executor.calls[0].run.policy_uid)
        world.api.delete(POLICY, follower)
        await until(32)
        assert world.supervisor.flights.following == 2
        await until(45)
        places.remove(follower)
        assert len(world.executor.calls) == 1
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 2}


async def test_a_suspended_database_stops_the_run_and_all_who_wait_for_it() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 15
        shared(world, 4)
        await until(31)
        world.database(suspend=True)
        await until(32)
        assert world.executor.cancelled == ["v"]
        assert world.supervisor.flights.following == 0
        assert world.supervisor.flights._flying == {}
        await until(100)
        assert len(world.executor.calls) == 1


async def test_a_hung_run_holds_its_followers_no_longer_than_their_own_would_take() -> None:
    async with World() as world:
        world.database()
        world.executor.hung_hosts.add("db")
        fields: dict[str, Any] = {
            "schedule": {"everySeconds": 1200},
            "startingDeadlineSeconds": 200,
            "retry": {"limit": 0},
        }
        patient = world.policy("a", tenantId="a", views=[{"name": "v", "timeoutSeconds": 3000}], **fields)
        hasty = world.policy("b", tenantId="b", views=[{"name": "v", "timeoutSeconds": 100}], **fields)
        late = fields | {"startingDeadlineSeconds": 20}
        too_late = world.policy("c", tenantId="c", views=[{"name": "v", "timeoutSeconds": 100}], **late)
        await until(1304)
        assert len(world.executor.calls) == 1
        await until(1306)
        assert [call.at for call in world.executor.calls] == [at(1200), at(1305)]
        assert world.condition(too_late, "Fresh") == ("False", "SlotMissed")
        await until(1410)
        assert told(world, hasty) == [("FAILED", "Timeout")]
        assert told(world, patient) == []


async def test_who_is_due_while_an_older_run_hangs_asks_the_server_at_its_deadline() -> None:
    """That run cannot cover it; whoever holds the lock is told as without other policies."""
    async with World() as world:
        world.database()
        world.executor.seconds = 1000
        world.policy("a", tenantId="a", views=[{"name": "v"}])
        late = world.policy("b", tenantId="b", views=[{"name": "v"}], schedule={"everySeconds": 32})
        world.executor.held_until["v"] = at(31)
        await until(31.5)
        world.executor.held_until["v"] = at(900)
        await until(53)
        assert told(world, late) == [("SKIPPED_LOCK_HELD", "LockHeld")]


async def test_a_lock_that_somebody_else_holds_is_asked_for_by_one_of_them() -> None:
    async with World() as world:
        world.database()
        world.secrets.seconds = 0.01  # so that all are due before the first one has asked
        places = shared(world, 8, startingDeadlineSeconds=29)
        world.executor.held_until["v"] = at(33)
        await until(31 - 0.6)
        assert len(world.executor.calls) == 1
        assert world.supervisor.flights.following == 0
        await until(59)
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 7}


async def test_a_lock_that_is_held_to_the_end_is_told_to_each() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 4)
        world.executor.held_until["v"] = at(900)
        await until(55)
        assert outcomes(world, places) == {"SKIPPED_LOCK_HELD": 4}
        for place in places:
            view = view_of(world, place)
            assert view["correlationId"] == str(uuid.uuid5(world.known(place).uid, "slot:2026-11-22T12:00:30Z"))


@pytest.mark.parametrize(("due", "asks"), [(0, False), (2, True)])
async def test_a_lock_found_held_before_a_slot_was_due_is_asked_for_again(due: float, asks: bool) -> None:  # noqa: FBT001 - pytest
    flights = Flights(budget=Budget(limit_of=lambda _: 2, limit_in_all=4), clock=VirtualClock())

    async def hold() -> None:
        slot = scheduled(at(0), starting_deadline_seconds=600)
        async with flights.seat(
            key("db"), A_RUN, slot, shared=("db", 1, A_RUN.view), seconds=300, follows=lambda: None
        ) as seat:
            await until(5)
            seat.result = A_RUN.result(RefreshOutcome.SKIPPED_LOCK_HELD, started_at=at(0), ended_at=at(5))

    holding = asyncio.create_task(hold())
    await until(3)
    run, slot = replace(A_RUN, due_at=at(due)), scheduled(at(due), starting_deadline_seconds=600)
    with pytest.raises(FollowedInVain) if asks else nullcontext():
        async with flights.seat(
            key("db"), run, slot, shared=("db", 1, A_RUN.view), seconds=300, follows=lambda: None
        ) as seat:
            assert seat.known is not None
            assert seat.known.outcome is RefreshOutcome.SKIPPED_LOCK_HELD
    await holding


# What is not covered.


async def test_a_request_is_never_covered_and_covers_the_slots_that_are_due() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 2
        asked = world.policy("asked", tenantId="x", views=[{"name": "v"}], schedule={"everySeconds": 3600})
        places = shared(world, 3)
        await until(31)
        world.api.annotate(asked, "r1")
        await until(45)
        assert [call.at for call in world.executor.calls] == [at(30), at(32)]  # behind the slot's run, not against it
        assert told(world, asked) == [("SUCCESS", None)]
        world.api.annotate(asked, "r2")
        await until(59.5)
        world.api.annotate(asked, "r3")
        await until(60.5)
        world.executor.seconds = 0.1
        await until(75)
        assert [call.at for call in world.executor.calls][2:] == [at(45), at(59.5), at(61.5)]
        assert outcomes(world, places) == {"SUCCESS": 1, "SKIPPED_COVERED": 2}


async def test_a_requests_run_covers_a_slot_that_was_due_before() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.executor.seconds = 5
        world.policy("hog", tenantId="hog")
        slot = world.policy("a", tenantId="a", views=[{"name": "v"}])
        asked = world.policy("b", tenantId="b", views=[{"name": "v"}], schedule={"everySeconds": 3600})
        await until(26)
        world.api.annotate(world.policy("other", views=[{"name": "other"}], schedule={"everySeconds": 3600}), "r0")
        await until(29)
        world.api.annotate(asked, "r1")
        await until(50)
        assert told(world, asked) == [("SUCCESS", None)]
        assert told(world, slot) == [("SKIPPED_COVERED", "Covered")]
        assert view_of(world, slot)["message"] == "Run r1 refreshed it after this slot was due."


async def test_a_tenants_own_views_and_groups_are_refreshed_for_each_policy() -> None:
    async with World() as world:
        world.database()
        own: dict[str, Any] = {"views": [{"name": "own"}], "tenantId": "t", "isolation": "Tenant"}
        groups: dict[str, Any] = {"views": [{"name": "g"}], "consistency": "Group"}
        for number in range(2):
            world.policy(f"own{number}", **own)
            world.policy(f"group{number}", **groups)
        await until(45)
        assert Counter(world.executor.views) == {"own": 2, "g": 2}


async def test_what_was_recovered_covers_nobody_because_an_earlier_attempt_did_it() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 3)
        recovered = Told(outcome=RefreshOutcome.SUCCESS, reason=RefreshReason.RECOVERED)
        world.executor.script["v"] = [recovered]
        await until(45)
        assert len(world.executor.calls) == 2
        assert outcomes(world, places) == {"SUCCESS": 2, "SKIPPED_COVERED": 1}


async def test_a_run_that_the_ledger_covers_covers_the_others_that_were_due_no_later() -> None:
    async with World() as world:
        world.database()
        places = shared(world, 3)
        world.executor.script["v"] = [
            Told(
                outcome=RefreshOutcome.SKIPPED_COVERED,
                reason=RefreshReason.COVERED,
                message="Run of-another-process refreshed it after this slot was due.",
            )
        ]
        await until(45)
        assert len(world.executor.calls) == 1
        assert {view_of(world, place)["message"] for place in places} == {
            "Run of-another-process refreshed it after this slot was due."
        }


async def test_options_of_a_run_do_not_matter_for_what_it_covers() -> None:
    """As for the ledger: the rows are there, whoever asked for them and how."""
    async with World() as world:
        world.database()
        plain = {"name": "v"}
        options: list[Body] = [
            plain,
            plain | {"guard": {"minRows": 1}},
            plain | {"timeoutSeconds": 7},
            plain | {"concurrently": "Never"},
        ]
        for number, view in enumerate(options):
            world.policy(f"p{number}", tenantId=f"t{number}", views=[view])
        await until(45)
        assert world.executor.views == ["v"]


async def test_another_databases_view_of_the_same_name_is_another() -> None:
    async with World() as world:
        for name in ("one", "two"):
            world.database(name)
            world.policy(name, databaseRef={"name": name}, views=[{"name": "v"}])
        await until(45)
        assert sorted(call.target.host for call in world.executor.calls) == ["one", "two"]


async def test_a_changed_database_is_another_database() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.executor.seconds = 2
        world.policy("a", tenantId="a", views=[{"name": "v"}])
        world.policy("b", tenantId="b", views=[{"name": "own"}, {"name": "v"}])
        await until(31)
        world.database(database="other")
        await until(45)
        assert [call.target.database for call in world.executor.calls if str(call.run.view) == "v"] == ["app", "other"]


async def test_a_clock_set_back_makes_no_run_cover_what_comes_after_it() -> None:
    async with World() as world:
        world.database()
        await until(3595)
        a = world.policy("a", tenantId="a", views=[{"name": "v"}], schedule={"everySeconds": 3600})
        await until(3602)
        assert told(world, a) == [("SUCCESS", None)]
        world.clock.set_by = timedelta(seconds=-3599)
        world.policy("b", tenantId="b", views=[{"name": "v"}], schedule={"everySeconds": 5})
        await until(3608)
        assert world.executor.views == ["v", "v"]
        assert world.executor.calls[1].at == at(5) + timedelta(seconds=0)


async def test_a_policy_that_changed_while_it_waited_for_a_run_is_run_as_it_is_now() -> None:
    async with World() as world:
        world.database()
        world.executor.seconds = 5
        a, b = shared(world, 2)
        await until(31)
        follower = b if world.known(a).uid == world.executor.calls[0].run.policy_uid else a
        world.policy(follower.name, tenantId="t", views=[{"name": "other"}])
        await until(45)
        assert world.executor.views == ["v", "other"]
        assert told(world, follower) == [("SUCCESS", None)]


# Fairness, and what is left behind.


async def test_a_shared_view_comes_first_for_whoever_has_the_first_turn() -> None:
    """It is behind a thousand views of one tenant, and the only one of another: it does not wait with the former's."""
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.executor.seconds = 1
        fields: dict[str, Any] = {"schedule": {"everySeconds": 1200}, "startingDeadlineSeconds": 3000}
        many = [world.policy(f"m{number:03}", tenantId="many", **fields) for number in range(1000)]
        many.append(world.policy("n", tenantId="many", views=[{"name": "v"}], **fields))
        single = world.policy("single", tenantId="single", views=[{"name": "v"}], **fields)
        await until(1210)  # statuses wait for runs, five seconds at most
        assert world.executor.views[1] == "v"
        assert told(world, single) == [("SUCCESS", None)]
        assert told(world, many[-1]) == [("SKIPPED_COVERED", "Covered")]


async def test_due_policies_that_are_deleted_leave_nothing_behind_and_each_waited_in_one_place() -> None:
    async with World(places=4) as world:
        world.api.seconds = 0
        for number in range(10):
            world.database(f"db{number}")
            world.executor.hung_hosts.add(f"db{number}")
        places = [
            world.policy(
                f"p{number}",
                databaseRef={"name": f"db{number % 10}"},
                tenantId=f"t{number % 100}",
                views=[{"name": f"v{number // 10 % 50}"}],
                schedule={"everySeconds": 60},
                startingDeadlineSeconds=50,
            )
            for number in range(1000)
        ]
        await until(61)
        engine = world.supervisor
        assert len(world.executor.calls) == 4
        assert engine.flights.following == 4
        assert engine.budget.waiting == 992
        assert engine.agenda.dispatcher.waiting == 0
        for place in places:
            world.api.delete(POLICY, place)
        await until(63)
        assert engine.queue_depth == 0
        assert engine.agenda.dispatcher._lanes == {}
        assert engine.budget._queues == {}
        assert not engine.flights._queued
        assert not engine.flights._flying
        assert not engine.flights._covers


async def test_ten_thousand_who_wait_and_are_cancelled_leave_nothing_behind() -> None:
    clock = VirtualClock()
    budget = Budget(limit_of=lambda _: 2, limit_in_all=4)
    flights = Flights(budget=budget, clock=clock)
    slot = scheduled(at(0), starting_deadline_seconds=600)
    never = asyncio.Event()

    async def wait(number: int) -> None:
        run = replace(A_RUN, view=ViewName("public", f"v{number // 10 % 500}"), tenant_id=f"t{number % 100}")
        database = key(f"db{number % 10}")
        async with flights.seat(
            database, run, slot, shared=(database.name, 1, run.view), seconds=300, follows=lambda: None
        ):
            await never.wait()

    tasks = [asyncio.create_task(wait(number)) for number in range(10_000)]
    await until(1)
    assert flights.following == 4  # two name each view
    assert budget.waiting + flights.following + len(flights._flying) == 10_000
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert flights.following == budget.waiting == 0
    assert not flights._queued
    assert not flights._flying
    assert not flights._covers
    assert not budget._queues
    assert not budget._recent
    assert budget._alarm is None


async def test_what_is_remembered_of_runs_is_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED_VIEWS <= 10_000
    monkeypatch.setattr("matview_operator.engine.flights.REMEMBERED_VIEWS", 50)
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 10})
        for number in range(100):
            world.policy(f"p{number}", schedule={"everySeconds": 60})
        await until(65)
        assert len(world.executor.calls) == 100
        assert len(world.supervisor.flights._covers) == 50
        world.api.annotate(key("p0"), "later")
        await until(65 + REMEMBERED_SECONDS + 1)
        world.api.annotate(key("p1"), "later")
        await until(65 + REMEMBERED_SECONDS + 5)
        assert len(world.supervisor.flights._covers) == 1
