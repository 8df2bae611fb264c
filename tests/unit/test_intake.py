"""What users apply, change and delete takes effect at once; stale and repeated news changes nothing."""

from __future__ import annotations

import logging
from copy import deepcopy
from datetime import timedelta

import pytest
from tests.unit.ports import EPOCH, at
from tests.unit.world import DATABASE, POLICY, World, key, policy_spec, until

from matview_operator.engine.ports import ApiUnavailable

pytestmark = pytest.mark.looptime(noop_cycles=3)


# News that is none.


async def test_own_status_writes_that_come_back_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with World() as world:
        world.database()
        world.policy()
        await until(1)
        loaded = [record for record in caplog.records if record.__dict__.get("action") == "schedule_loaded"]
        assert len(loaded) == 1
        looks, known = world.inspector.calls.total(), world.known(key("mv"))
        await until(280)
        assert len(world.executor.calls) == 9
        assert world.known(key("mv")) is known
        assert world.inspector.calls.total() == looks
        assert [record for record in caplog.records if record.__dict__.get("action") == "schedule_loaded"] == loaded


async def test_the_version_of_every_news_is_taken_so_that_writes_do_not_conflict() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(1)
        for second in range(2, 60):
            await until(second)
            world.api.put(POLICY, place, policy_spec("mv"), annotations={"somebody": f"else {second}"})
        await until(100)
        assert len(world.api.attempts) == len(world.api.writes)


async def test_an_object_without_usable_metadata_is_logged_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with World() as world:
        bodies: list[object] = [None, {}, {"metadata": {"name": "x"}}, {"metadata": "x"}, []]
        for body in bodies:
            for tell in (
                world.intake.policy_seen,
                world.intake.policy_gone,
                world.intake.database_seen,
                world.intake.database_gone,
            ):
                tell(body)
        assert world.supervisor.registry.policies == {}
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 20


# Changes.


async def test_a_changed_schedule_takes_effect_at_once_and_forgets_the_old_slots() -> None:
    async with World() as world:
        world.database()
        place = world.policy(startingDeadlineSeconds=1000)
        world.executor.seconds = 50
        await until(65)  # 30 is in flight until 80; 60 waits
        world.policy(schedule={"everySeconds": 50}, startingDeadlineSeconds=1000)
        await until(69)
        assert world.condition(place, "Fresh") == ("Unknown", "NotYetRun")
        assert world.api.status(place)["schedule"] == "every 50s"
        assert world.api.status(place)["nextSlotTime"] == "2026-11-22T12:01:40Z"
        world.executor.seconds = 0.1
        await until(160)
        assert [call.run.due_at for call in world.executor.calls] == [at(30), at(100), at(150)]
        assert [entry["slotTime"][-9:-1] for entry in world.api.status(place)["history"]] == [
            "12:02:30",
            "12:01:40",
            "12:00:30",
        ]
        assert world.metrics.missed == {}


async def test_a_schedule_changed_back_and_forth_owes_nothing() -> None:
    async with World() as world:
        world.database()
        world.policy(startingDeadlineSeconds=1000)
        await until(35)
        world.policy(schedule={"everySeconds": 7200}, startingDeadlineSeconds=1000)
        await until(600)
        world.policy(startingDeadlineSeconds=1000)
        await until(629)
        assert len(world.executor.calls) == 1
        await until(631)
        assert world.executor.calls[-1].at == at(630)
        assert world.metrics.missed == {}


async def test_other_changes_keep_the_slots_as_they_are() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(45)
        world.policy(concurrently="Never", views=[{"name": "mv"}, {"name": "more"}])
        await until(65)
        assert [(call.at, str(call.run.view)) for call in world.executor.calls] == [
            (at(30), "mv"),
            (at(60), "mv"),
            (at(60), "more"),
        ]
        assert world.api.status(place)["observedGeneration"] == 2


async def test_what_a_slot_in_flight_tells_is_not_lost_when_the_policy_changes_meanwhile() -> None:
    async with World() as world:
        world.database()
        both = [{"name": "a"}, {"name": "b", "dependsOn": [{"name": "a"}]}]
        place = world.policy(views=both, startingDeadlineSeconds=1000)
        world.executor.seconds = 40
        await until(95)  # 30 runs until 110; 60 is superseded by 90
        world.policy(views=[{"name": "b"}], startingDeadlineSeconds=1000)
        await until(111)
        status = world.api.status(place)
        assert status["lastSlotTime"] == "2026-11-22T12:00:30Z"
        assert "missedSlots" not in status  # after a crash 60 would be counted once more
        assert [view["name"] for view in status["views"]] == ["b"]  # a is not the policy's any more
        await until(115)
        assert world.executor.views == ["a", "b", "b"]  # the slot that waited runs as the policy is now
        await until(151)
        assert world.api.status(place)["missedSlots"] == 1


async def test_a_slot_that_waits_for_a_place_runs_as_its_policy_is_by_then_if_the_slot_is_still_its() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("a", startingDeadlineSeconds=1000)  # has the place
        world.policy("changed", startingDeadlineSeconds=1000)
        world.policy("moved", startingDeadlineSeconds=1000)
        world.executor.seconds = 10
        await until(35)
        world.policy("changed", views=[{"name": "new"}], startingDeadlineSeconds=1000)
        world.policy("moved", schedule={"everySeconds": 3600}, startingDeadlineSeconds=1000)
        await until(59)
        assert [(call.run.due_at, str(call.run.view)) for call in world.executor.calls] == [
            (at(30), "a"),
            (at(30), "new"),
        ]


async def test_an_invalid_change_meanwhile_erases_no_history() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(35)
        world.executor.seconds = 10
        await until(65)
        world.policy(schedule={"cron": "99 * * * *"})
        await until(300)
        status = world.api.status(place)
        assert [entry["outcome"] for entry in status["history"]] == ["SUCCESS", "SUCCESS"]
        assert world.condition(place, "Ready") == ("False", "InvalidSpec")
        assert world.condition(place, "Stalled") == ("True", "InvalidSpec")
        assert "nextSlotTime" not in status
        assert len(world.executor.calls) == 2


async def test_an_invalid_spec_is_stalled_at_once_and_ready_when_it_is_mended() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "99 * * * *"})
        await until(0.5)
        assert world.condition(place, "Stalled") == ("True", "InvalidSpec")
        assert world.events.of(place) == [("Warning", "InvalidSpec")]
        world.policy()
        await until(1)
        assert world.condition(place, "Stalled") is None
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        await until(31)
        assert len(world.executor.calls) == 1


async def test_a_fresh_end_of_the_former_spec_does_not_hide_what_is_wrong_with_the_new_one() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.seconds = 20
        await until(35)
        world.policy(databaseRef={"name": "missing"})
        await until(60)
        assert world.condition(place, "Ready") == ("False", "DatabaseNotFound")
        assert [event for event in world.events.of(place) if event[1] != "Refreshed"] == [
            ("Normal", "Scheduled"),
            ("Warning", "DatabaseNotFound"),
        ]


# Databases.


async def test_a_raised_limit_lets_waiting_slots_begin_at_once() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        for name in ("a", "b", "c", "d"):
            world.policy(name, schedule={"everySeconds": 60}, startingDeadlineSeconds=1000)
        world.executor.seconds = 50
        await until(65)
        assert world.executor.running == {"db": 1}
        world.database(limits={"maxConcurrentRefreshes": 3})
        await until(65.1)
        assert world.executor.running == {"db": 3}


async def test_a_database_that_comes_later_or_goes_is_said_by_its_policies() -> None:
    async with World() as world:
        place = world.policy()
        await until(1)
        assert world.condition(place, "Ready") == ("False", "DatabaseNotFound")
        assert world.condition(place, "Stalled") is None  # it may come
        database = world.database()
        await until(2)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        world.api.delete(DATABASE, database)
        await until(3)
        assert world.condition(place, "Ready") == ("False", "DatabaseNotFound")
        await until(31)
        assert world.api.status(place)["views"][0]["reason"] == "DatabaseNotFound"
        world.database()
        await until(61)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.condition(place, "Ready") == ("True", "Scheduled")


async def test_policies_of_a_suspended_database_that_is_deleted_say_so_and_go_on() -> None:
    async with World() as world:
        database = world.database(suspend=True)
        place = world.policy(startingDeadlineSeconds=1000)
        await until(100)
        world.api.delete(DATABASE, database)
        await until(119)
        assert world.condition(place, "Ready") == ("False", "DatabaseNotFound")
        world.database()
        await until(121)
        assert [call.at for call in world.executor.calls] == [at(120)]
        assert world.metrics.missed == {}


async def test_another_database_under_the_name_is_another_one() -> None:
    async with World() as world:
        database = world.database(suspend=True)
        place = world.policy()
        await until(1)
        world.api.delete(DATABASE, database, unseen=True)
        world.database(suspend=True)
        await until(2)
        world.database()
        await until(3)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "Connected")
        assert len(world.supervisor.registry.resource_versions) == 2


async def test_an_invalid_database_is_stalled_and_its_policies_are_not_ready() -> None:
    async with World() as world:
        database = world.database(database="a\0b")
        place = world.policy()
        await until(1)
        assert world.condition(database, "Stalled", of=DATABASE) == ("True", "InvalidSpec")
        assert world.condition(place, "Ready") == ("False", "DatabaseNotReady")
        world.database(database="ab")
        await until(2)
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "Connected")
        assert world.condition(place, "Ready") == ("True", "Scheduled")


# Sharing.


async def test_two_tenants_policies_on_one_view_are_stalled_and_well_again_when_one_goes() -> None:
    async with World() as world:
        world.database()
        views = [{"name": "shared"}]
        one = world.policy("one", isolation="Tenant", tenantId="a", views=views)
        await until(1)
        assert world.condition(one, "Ready") == ("True", "Scheduled")
        two = world.policy("two", isolation="Tenant", tenantId="b", views=views)
        await until(2)
        assert [world.condition(place, "Stalled") for place in (one, two)] == [("True", "SharedView")] * 2
        await until(35)
        assert world.executor.calls == []
        world.api.delete(POLICY, two)
        await until(36)
        assert world.condition(one, "Ready") == ("True", "Scheduled")
        assert [str(call.run.view) for call in world.executor.calls] == ["shared"]  # the slot of 30, which had failed
        await until(61)
        assert [call.run.due_at for call in world.executor.calls] == [at(30), at(60)]


async def test_a_rival_that_changes_its_views_sets_the_other_free() -> None:
    async with World() as world:
        world.database()
        one = world.policy("one", isolation="Tenant", tenantId="a", views=[{"name": "shared"}])
        world.policy("two", views=[{"name": "shared"}])
        await until(1)
        assert world.condition(one, "Stalled") == ("True", "SharedView")
        world.policy("two", views=[{"name": "own"}])
        await until(2)
        assert world.condition(one, "Ready") == ("True", "Scheduled")


# Deletion.


async def test_a_deleted_policy_is_forgotten_at_once_and_its_run_is_stopped() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.seconds = 20
        await until(35)
        writes = len(world.api.writes)
        world.api.delete(POLICY, place)
        await until(36)
        assert world.executor.cancelled == ["mv"]
        assert world.executor.running.total() == 0
        await until(400)
        assert len(world.executor.calls) == 1
        assert [ref for _, ref, _ in world.api.writes[writes:] if ref.key == place] == []
        assert world.metrics.gone == [place]
        assert world.metrics.runs == {}  # nothing is counted for a policy that is gone: its series would come back
        registry = world.supervisor.registry
        assert (registry.policies, registry._by_view, registry._by_database) == ({}, {}, {})
        assert len(registry.resource_versions) == 1  # the database's


async def test_a_policy_deleted_in_an_outage_of_writes_leaves_no_document_behind() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(1)
        world.api.outage = ApiUnavailable("down")
        await until(31)
        assert world.supervisor.reporter.pending == 1
        world.api.delete(POLICY, place)
        await until(31.5)
        assert world.supervisor.reporter.pending == 0


async def test_a_policy_that_is_applied_again_is_a_new_one() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(65)
        first = world.known(place)
        world.api.delete(POLICY, place)
        world.policy()
        await until(89)
        assert world.known(place).ref.uid != first.ref.uid
        assert "history" not in world.api.status(place) or world.api.status(place)["history"] == []
        assert world.condition(place, "Fresh") == ("Unknown", "NotYetRun")
        await until(91)
        assert len(world.api.status(place)["history"]) == 1


async def test_a_successor_whose_predecessors_deletion_was_lost_takes_its_place() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.seconds = 20
        await until(35)
        world.api.delete(POLICY, place, unseen=True)
        world.policy()
        await until(36)
        assert world.executor.cancelled == ["mv"]
        assert world.metrics.gone == [place]
        assert world.api.status(place).get("history", []) == []  # what was interrupted was the predecessor's
        await until(100)
        assert len(world.supervisor.registry.resource_versions) == 2


async def test_a_deletion_that_the_watch_lost_is_noticed_by_the_next_write() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(1)
        world.api.delete(POLICY, place, unseen=True)
        await until(400)
        assert world.supervisor.registry.policies == {}
        assert [call.at for call in world.executor.calls] == [at(30)]
        assert world.metrics.gone == [place]


async def test_a_list_prunes_what_is_not_in_it_but_nothing_that_came_meanwhile() -> None:
    async with World() as world:
        database = world.database()
        lost, kept = world.policy("lost"), world.policy("kept")
        await until(1)
        world.api.delete(POLICY, lost, unseen=True)
        known = world.intake.known_uids()
        listed = {body["metadata"]["uid"] for body in world.api.objects.values()}
        created = world.policy("created")
        world.intake.prune(known_before=known, listed=listed)
        assert set(world.supervisor.registry.policies) == {kept, created}
        assert set(world.supervisor.registry.databases) == {database}
        world.api.delete(DATABASE, database, unseen=True)
        uids = {body["metadata"]["uid"] for body in world.api.objects.values()}
        world.intake.prune(known_before=world.intake.known_uids(), listed=uids)
        await until(2)
        assert world.condition(kept, "Ready") == ("False", "DatabaseNotFound")


async def test_news_of_a_deletion_that_comes_twice_or_of_a_predecessor_is_ignored() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(1)
        former = world.api.objects[POLICY, place]
        world.api.delete(POLICY, place)
        world.policy()
        world.intake.policy_gone(former)
        world.intake.policy_gone(former)
        world.intake.database_gone(former | {"kind": DATABASE})
        assert list(world.supervisor.registry.policies) == [place]
        assert len(world.supervisor.registry.resource_versions) == 2


async def test_thousands_of_changes_leave_nothing_behind() -> None:
    async with World() as world:
        world.database()
        for number in range(300):
            place = world.policy(f"p{number % 7}", views=[{"name": f"v{number}"}])
            if number % 3 == 0:
                world.api.delete(POLICY, place)
        await until(1)
        registry, agenda = world.supervisor.registry, world.supervisor.agenda
        assert len(registry.resource_versions) == len(registry.policies) + 1
        assert len(registry._by_view) == len(registry.policies)
        assert len(agenda.timers._due) == len(registry.policies)
        assert agenda.dispatcher._lanes == {}


async def test_late_news_of_an_earlier_spec_changes_nothing() -> None:
    async with World() as world:
        database = world.database()
        place = world.policy()
        early = [deepcopy(world.api.objects[kind, which]) for kind, which in ((POLICY, place), (DATABASE, database))]
        world.policy(suspend=True)
        world.database(suspend=True)
        await until(5)
        for body, seen in zip(early, (world.intake.policy_seen, world.intake.database_seen), strict=True):
            seen(body)
        # At once, and not only when the next write of a status has brought the newest object back.
        assert world.known(place).generation == 2
        assert world.supervisor.registry.databases[database].generation == 2
        await until(95)
        assert world.executor.calls == []
        assert world.api.status(place)["observedGeneration"] == 2


async def test_a_policy_older_than_the_operator_counts_its_slots_from_its_own_creation() -> None:
    async with World() as world:
        world.database()
        await until(100)
        spec = policy_spec("mv", startingDeadlineSeconds=1000)
        body = world.api.put(POLICY, key("later"), spec)
        created = (EPOCH + timedelta(seconds=31)).isoformat()
        world.api.delete(POLICY, key("later"))
        older = body | {"metadata": body["metadata"] | {"uid": "11111111-1111-4111-8111-111111111111"}}
        older["metadata"]["creationTimestamp"] = created
        world.intake.policy_seen(older)
        await until(101)
        # Due since then: 60 and 90.
        assert [call.run.due_at for call in world.executor.calls] == [at(90)]
        assert world.metrics.missed == {key("later"): 1}
