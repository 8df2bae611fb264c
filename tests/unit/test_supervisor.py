"""The engine as a whole: idle at a thousand policies, restarted, stopped, and telling when a loop has died."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from tests.unit.ports import at
from tests.unit.world import World, key, until

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

pytestmark = pytest.mark.looptime(noop_cycles=3)

POLICIES = 1000


async def test_a_thousand_idle_policies_write_nothing_and_a_restart_repeats_neither_writes_nor_events() -> None:
    async with World() as world:
        world.database()
        world.api.seconds = 0
        for number in range(POLICIES):
            world.policy(f"p{number}", schedule={"cron": "0 3 1 1 *"})
        await until(10)
        assert len(world.api.writes) == POLICIES + 1  # each says once that it is ready
        assert len(world.events.all) == POLICIES + 1
        await until(700)  # two periodic preflights later
        assert world.inspector.calls == {"db": 3}
        assert len(world.api.writes) == POLICIES + 1
        assert len(world.api.attempts) == POLICIES + 1
        assert len(world.events.all) == POLICIES + 1
        await world.crash()
    async with World(former=world) as again:
        await until(720)
        assert len(again.supervisor.registry.policies) == POLICIES
        assert again.inspector.calls == {"db": 4}
        assert len(again.api.attempts) == POLICIES + 1
        assert again.events.all == []


async def test_a_restart_repeats_no_condition_and_no_event_of_policies_in_trouble() -> None:
    world = await World().__aenter__()
    world.database("db", database="gone")
    world.policy("nowhere", databaseRef={"name": "nowhere"})
    world.policy("invalid", schedule={"cron": "99 * * * *"})
    world.policy("suspended", suspend=True)
    world.inspector.answers["typo"] = Problem(RefreshReason.VIEW_NOT_FOUND, "There is no typo.")
    world.policy("typo", suspend=True)
    await until(100)
    assert world.condition(key("nowhere"), "Ready") == ("False", "DatabaseNotFound")
    assert world.known(key("nowhere")).status.consecutive_failures == 3
    await world.crash()
    before = len(world.api.writes)
    for name in ("nowhere", "typo"):
        world.api.annotate(key(name), "r1")  # they are worked on before the first preflight has spoken
    async with World(former=world) as again:
        await until(119)
        assert [said.reason for _, _, said in again.events.all] == ["Refreshed"]  # typo's request, against all odds
        assert {ref.key.name for _, ref, _ in again.api.writes[before:]} == {"nowhere", "typo"}
        assert again.condition(key("typo"), "Ready") == ("False", "ViewNotFound")


async def test_loops_are_healthy_while_they_run_and_not_before() -> None:
    world = World()
    assert not world.supervisor.healthy()
    async with world:
        await until(1)
        assert world.supervisor.healthy()
        await until(3600)
        assert world.supervisor.healthy()
    assert not world.supervisor.healthy()


@pytest.mark.parametrize("number", [0, 1, 2], ids=["timers", "reporter", "preflights"])
async def test_a_loop_that_has_died_is_told(
    number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    supervisor = world.supervisor
    loop = (supervisor.agenda.timers, supervisor.reporter, supervisor.preflights)[number]

    async def die() -> None:
        await asyncio.sleep(10)
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(loop), "run", lambda _: die())
    async with world:
        if number != 0:
            await until(9)
            assert supervisor.healthy()
        await until(11)
        assert not supervisor.healthy()
        told = [record.__dict__["action"] for record in caplog.records if record.levelno == logging.CRITICAL]
        assert told == ["loop_ended"] * (2 if number == 0 else 1)  # a loop of timers of its own for what waits


async def test_timers_that_have_not_gone_round_lately_are_told_and_a_clock_that_was_set_soon_is_not() -> None:
    async with World() as world:
        for jump in (timedelta(hours=1), timedelta(hours=-1)):
            await asyncio.sleep(10)
            assert world.supervisor.healthy()
            world.clock.set_by = jump  # until the next round it is as if they had stood still
            assert not world.supervisor.healthy()
            await asyncio.sleep(2)
            assert world.supervisor.healthy()


# The end.


async def test_stopping_lets_runs_end_within_the_grace_and_writes_what_came_of_them() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.seconds = 10
        await until(35)
        await world.supervisor.stop(grace_seconds=20)
        assert asyncio.get_running_loop().time() == pytest.approx(40, abs=1)
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert world.executor.cancelled == []


async def test_what_the_grace_does_not_suffice_for_is_stopped_said_and_due_again() -> None:
    world = await World().__aenter__()
    world.database()
    place = world.policy(views=[{"name": "a"}, {"name": "b"}], startingDeadlineSeconds=100)
    world.executor.seconds = 30
    await until(35)
    await world.supervisor.stop(grace_seconds=5)
    assert sorted(world.executor.cancelled) == ["a", "b"]
    status = world.api.status(place)
    assert [view["outcome"] for view in status["views"]] == ["INTERRUPTED", "INTERRUPTED"]
    assert "lastSlotTime" not in status
    assert status["consecutiveFailures"] == 0
    assert world.condition(place, "Ready") == ("True", "Scheduled")
    world.executor.seconds = 0.1
    async with World(former=world) as again:
        await until(45)
        assert [call.run.due_at for call in again.executor.calls] == [at(30)] * 4
        assert again.condition(place, "Fresh") == ("True", "Refreshed")


async def test_stopping_begins_no_run_that_still_waits_for_a_place() -> None:
    world = await World().__aenter__()
    world.database(limits={"maxConcurrentRefreshes": 1})
    first, second = world.policy("first"), world.policy("second")
    world.executor.seconds = 10
    await until(35)
    writes = world.api.writes_to(second)
    await world.supervisor.stop(grace_seconds=20)
    assert world.executor.views == ["first"]
    assert world.condition(first, "Fresh") == ("True", "Refreshed")
    assert world.api.writes_to(second) == writes  # nothing came of it: its slot stays due
    async with World(former=world) as again:
        await until(49)
        assert again.executor.calls[-1].run.due_at == at(30)
        assert again.executor.views == ["first", "second"]


async def test_nothing_is_taken_up_while_stopping() -> None:
    async with World() as world:
        world.database()
        world.policy(startingDeadlineSeconds=1000)
        world.executor.seconds = 100
        await until(35)
        ending = asyncio.create_task(world.supervisor.stop(grace_seconds=200))
        await until(65)
        world.policy("another", schedule={"everySeconds": 5})
        world.api.annotate(key("mv"), "r1")
        await ending
        assert len(world.executor.calls) == 1


async def test_stopping_in_an_outage_of_the_api_server_ends_all_the_same() -> None:
    async with World() as world:
        world.database()
        world.policy()
        await until(29)
        world.api.seconds = 10_000  # it never answers
        await until(31)
        await world.supervisor.stop(grace_seconds=5)
        assert asyncio.get_running_loop().time() < 45
