"""A bad policy shows at once: databases and views are looked up on every change and every five minutes."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.unit.ports import VirtualClock, at
from tests.unit.world import DATABASE, POLICY, World, until

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice
from matview_operator.engine.registry import Policy

pytestmark = pytest.mark.looptime(noop_cycles=3)

YEARLY = {"everySeconds": 31_536_000}


async def test_one_look_serves_all_policies_of_a_database_and_it_is_repeated_every_300_s() -> None:
    async with World() as world:
        world.database("db")
        world.database("other")
        for number in range(20):
            world.policy(f"p{number}", schedule=YEARLY)
        await until(299)
        assert world.inspector.calls == {"db": 1, "other": 1}
        await until(301)
        assert world.inspector.calls == {"db": 2, "other": 2}
        await until(901)
        assert world.inspector.calls == {"db": 4, "other": 4}


async def test_each_database_is_looked_at_as_often_as_it_says_also_when_it_says_otherwise() -> None:
    async with World() as world:
        world.database("often", inventory={"checkIntervalSeconds": 45})
        world.database("seldom", inventory={"checkIntervalSeconds": 86_400})
        world.policy(schedule=YEARLY, databaseRef={"name": "nowhere"})
        await until(229)
        assert world.inspector.calls == {"often": 6, "seldom": 1}
        world.database("seldom", inventory={"checkIntervalSeconds": 30})
        await until(301)
        # At once for the change, then at 240, 270 and 300.
        assert world.inspector.calls == {"often": 7, "seldom": 5}


async def test_a_change_of_a_policy_or_its_database_is_looked_at_at_once() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=YEARLY)
        await until(10)
        world.inspector.answers["typo"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no typo.")
        world.policy(schedule=YEARLY, views=[{"name": "typo"}])
        await until(10.5)
        assert world.condition(place, "Ready") == ("False", "ViewNotFound")
        assert world.condition(place, "Fresh") == ("Unknown", "NotYetRun")
        assert world.api.status(place)["observedGeneration"] == 2
        world.inspector.answers.clear()
        world.database(allowSuperuser=True)
        await until(11)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.executor.calls == []


async def test_what_is_mended_on_the_server_shows_within_300_s_and_so_does_what_breaks_there() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=YEARLY)
        denied = Problem(RefreshReason.PERMISSION_DENIED, "GRANT it")
        await until(200)
        world.inspector.answers["mv"] = denied
        await until(301)
        assert world.condition(place, "Stalled") == ("True", "PermissionDenied")
        world.inspector.answers.clear()
        await until(601)
        assert world.condition(place, "Stalled") is None
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.events.of(place) == [
            ("Normal", "Scheduled"),
            ("Warning", "PermissionDenied"),
            ("Normal", "Scheduled"),
        ]


async def test_views_that_readers_must_wait_for_are_noted_and_warned_of_once() -> None:
    async with World() as world:
        world.database()
        world.inspector.answers["a"] = ModeChoice(RefreshMode.BLOCKING, RefreshReason.NO_UNIQUE_INDEX)
        world.inspector.answers["c"] = ModeChoice(RefreshMode.BLOCKING, RefreshReason.FIRST_POPULATE)  # only once
        place = world.policy(views=[{"name": "a"}, {"name": "b"}, {"name": "c"}])
        await until(100)
        assert world.condition(place, "Ready") == ("True", "BlockingRefresh")
        (message,) = [c["message"] for c in world.api.status(place)["conditions"] if c["type"] == "Ready"]
        assert message.startswith("Readers wait while a is refreshed")
        world.policy(views=[{"name": "a"}, {"name": "b"}, {"name": "c"}], historyLimit=3)
        await until(700)
        assert world.events.of(place).count(("Warning", "BlockingRefresh")) == 1
        assert ("Normal", "Scheduled") not in world.events.of(place)
        world.inspector.answers.clear()
        await until(1000)
        assert world.condition(place, "Ready") == ("True", "Scheduled")


@pytest.mark.parametrize("consistency", ["View", "Group"])
async def test_what_a_group_needs_of_its_views_is_asked_before_the_first_slot(consistency: str) -> None:
    async with World() as world:
        world.database()
        world.policy(views=[{"name": "a"}, {"name": "b"}], consistency=consistency)
        await until(1)
        assert [check.grouped for check in world.inspector.asked] == [consistency == "Group"] * 2


async def test_a_server_that_cannot_be_used_is_said_by_database_and_policies() -> None:
    async with World() as world:
        database = world.database()
        place = world.policy(schedule=YEARLY)
        world.inspector.down["db"] = Problem(RefreshReason.SUPERUSER_REFUSED, "Use another role.")
        await until(1)
        assert world.condition(database, "Ready", of=DATABASE) == ("False", "SuperuserRefused")
        assert world.condition(database, "Stalled", of=DATABASE) == ("True", "SuperuserRefused")
        assert world.condition(place, "Ready") == ("False", "SuperuserRefused")


async def test_what_was_found_of_the_server_stays_while_it_is_down() -> None:
    async with World() as world:
        database = world.database()
        await until(1)
        found = world.api.status(database, DATABASE)["server"]
        assert (found["version"], found["role"], found["bookkeeping"]) == ("18.4", "mv", "Installed")
        world.inspector.down["db"] = Problem(RefreshReason.CONNECTION_FAILED, "refused")
        await until(301)
        assert world.condition(database, "Ready", of=DATABASE) == ("False", "ConnectionFailed")
        assert world.api.status(database, DATABASE)["server"] == found


async def test_t5_an_outdated_server_shows_with_an_event_and_what_to_do() -> None:
    async with World() as world:
        world.inspector.facts = {"version": "16.1", "version_num": 160_001}
        database = world.database()
        place = world.policy(schedule=YEARLY)
        await until(1)
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "VulnerableServer")
        assert "Update the server to 16.2" in world.api.status(database, DATABASE)["conditions"][0]["message"]
        assert world.events.of(database) == [("Warning", "VulnerableServer")]
        assert world.condition(place, "Ready") == ("True", "Scheduled")


async def test_a_search_path_that_has_no_effect_is_said_by_the_database() -> None:
    async with World() as world:
        database = world.database(searchPath=["app"])
        world.policy(schedule=YEARLY)
        await until(1)
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "Connected")
        assert "spec.searchPath has no effect" in world.api.status(database, DATABASE)["conditions"][0]["message"]


async def test_a_ledger_that_is_not_to_be_trusted_shows_with_an_event_and_what_to_do() -> None:
    async with World() as world:
        world.inspector.facts = {"bookkeeping": Bookkeeping.OUTDATED, "bookkeeping_flaw": "it has a rule"}
        database = world.database()
        place = world.policy(schedule=YEARLY)
        await until(1)
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "LedgerNotUsed")
        said = world.api.status(database, DATABASE)
        assert "matview-operator migrate" in said["conditions"][0]["message"]
        assert said["server"]["bookkeeping"] == "Outdated"
        assert world.events.of(database) == [("Warning", "LedgerNotUsed")]
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        world.inspector.facts = {"bookkeeping": Bookkeeping.MISSING}
        await until(301)
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "Connected")
        assert "matview-operator migrate" in world.api.status(database, DATABASE)["conditions"][0]["message"]


@pytest.mark.parametrize("harm", ["missing", "incomplete"])
async def test_an_unusable_secret_shows_at_once(harm: str) -> None:
    async with World() as world:
        database = world.database()
        if harm == "missing":
            del world.secrets.data[database]
        else:
            world.secrets.data[database] = {"host": "db"}
        place = world.policy(schedule=YEARLY)
        await until(1)
        reason = "SecretNotFound" if harm == "missing" else "SecretInvalid"
        assert world.condition(place, "Ready") == ("False", reason)
        assert world.condition(database, "Ready", of=DATABASE) == ("False", reason)
        assert world.inspector.calls == {}


async def test_a_suspended_database_is_left_alone() -> None:
    async with World() as world:
        database = world.database(suspend=True)
        world.policy(schedule=YEARLY)
        await until(1000)
        assert world.inspector.calls == {}
        assert world.secrets.reads == {}
        assert world.condition(database, "Ready", of=DATABASE) == ("True", "Suspended")


async def test_more_time_than_the_database_allows_is_an_invalid_spec() -> None:
    async with World() as world:
        world.database(limits={"timeoutSeconds": 10})
        place = world.policy(schedule=YEARLY, views=[{"name": "mv", "timeoutSeconds": 11}])
        await until(1)
        assert world.condition(place, "Stalled") == ("True", "InvalidSpec")
        world.database(limits={"timeoutSeconds": 11})
        await until(2)
        assert world.condition(place, "Ready") == ("True", "Scheduled")


async def test_a_policy_that_moved_is_judged_by_its_new_database_alone() -> None:
    async with World() as world:
        world.inspector.down["old"] = Problem(RefreshReason.CONNECTION_FAILED, "refused")
        world.database("old")
        world.database("new")
        place = world.policy(schedule=YEARLY, databaseRef={"name": "old"})
        world.policy(schedule=YEARLY, databaseRef={"name": "new"})  # before the old one was looked at
        await until(5)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        world.policy(schedule=YEARLY, databaseRef={"name": "old"})
        await until(5.02)  # while the old one is being looked at
        world.policy(schedule=YEARLY, databaseRef={"name": "new"})
        await until(10)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.events.of(place) == [("Normal", "Scheduled")]


async def test_a_policy_that_changes_while_it_is_looked_at_is_judged_as_it_is_now() -> None:
    async with World() as world:
        world.inspector.answers["typo"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no typo.")
        world.database()
        place = world.policy(schedule=YEARLY, views=[{"name": "typo"}])
        await until(0.02)
        world.policy(schedule=YEARLY)
        await until(5)
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.events.of(place) == [("Normal", "Scheduled")]


async def test_a_server_that_takes_long_to_look_at_delays_nobody_elses_look() -> None:
    async with World() as world:
        world.inspector.seconds = 30
        world.database("slow")
        world.policy("there", databaseRef={"name": "slow"}, schedule=YEARLY)
        await until(1)
        world.inspector.seconds = 0.05
        world.database("db")
        place = world.policy(schedule=YEARLY)
        await until(2)
        assert world.condition(place, "Ready") == ("True", "Scheduled")


async def test_a_database_is_never_looked_at_twice_at_once_and_what_is_asked_meanwhile_is_not_lost() -> None:
    async with World() as world:
        world.inspector.seconds = 10
        world.database()
        place = world.policy(schedule=YEARLY)
        await until(5)
        later = world.policy("later", schedule=YEARLY)
        await until(9)
        assert world.inspector.calls == {"db": 1}
        await until(19)
        assert world.inspector.calls == {"db": 2}
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.condition(later, "Ready") is None
        await until(21)
        assert world.condition(later, "Ready") == ("True", "Scheduled")


async def test_a_bug_in_one_databases_look_stops_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    async with World() as world:
        for number in range(10):
            world.inspector.down[f"bad{number}"] = RuntimeError("a bug")
            world.database(f"bad{number}")
        world.database()
        place = world.policy(schedule=YEARLY)
        await until(700)
        assert world.supervisor.healthy()
        assert world.condition(place, "Ready") == ("True", "Scheduled")
        assert world.inspector.calls["bad0"] == 3
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 30
        assert errors[0].__dict__["action"] == "preflight"


async def test_a_policy_deleted_while_it_is_looked_at_gets_no_status() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule=YEARLY)
        await until(0.02)
        world.api.delete(POLICY, place)
        await until(5)
        assert world.events.of(place) == []
        assert [ref for _, ref, _ in world.api.writes if ref.key == place] == []


async def test_judging_thousands_of_policies_lets_slots_begin_in_between() -> None:
    async with World() as world:
        world.database()
        for number in range(500):
            world.policy(f"p{number}", schedule=YEARLY)
        judged = 0
        when_others_had_their_turn: list[int] = []

        def judge(_: Policy) -> None:
            nonlocal judged
            judged += 1
            asyncio.get_running_loop().call_soon(lambda: when_others_had_their_turn.append(judged))

        world.supervisor.preflights._judged = judge
        await until(5)
        assert judged == 500
        assert when_others_had_their_turn[0] <= 50


def test_virtual_time_begins_at_a_full_hour() -> None:
    """The figures of these tests rely on it."""
    assert at(0).minute == at(0).second == 0
    assert VirtualClock().set_by.total_seconds() == 0
