"""The API server is gone: what is due goes on by the Secrets as they were read last, for a while. Or it is slow."""

from __future__ import annotations

import pytest
from tests.unit.ports import Told, at
from tests.unit.world import DATABASE, World, until

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.engine.targets import REMEMBERED_SECONDS

pytestmark = pytest.mark.looptime(noop_cycles=3)

FOR_EVER = 1_000_000


@pytest.mark.parametrize("silent_seconds", [0, 15])
async def test_slots_go_on_while_the_api_server_cannot_be_asked_for_a_secret(silent_seconds: float) -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(45)
        world.secrets.unanswered, world.secrets.silent_seconds = FOR_EVER, silent_seconds
        await until(640)
        assert [call.at for call in world.executor.calls] == [
            at(30),
            *[at(30 * number + min(3, silent_seconds)) for number in range(2, 22)],
        ]
        assert world.api.status(place)["consecutiveFailures"] == 0


async def test_a_secret_is_remembered_for_a_quarter_of_an_hour() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"everySeconds": 300})
        await until(310)
        world.secrets.unanswered = FOR_EVER
        await until(300 + REMEMBERED_SECONDS - 10)
        assert [call.at for call in world.executor.calls] == [at(300), at(600), at(900)]
        await until(300 + REMEMBERED_SECONDS + 90)
        assert len(world.executor.calls) == 3
        (view,) = world.api.status(place)["views"]
        assert (view["outcome"], view["reason"]) == ("FAILED", "ConnectionFailed")


@pytest.mark.parametrize("what", ["another Secret", "a Secret that was deleted before"])
async def test_what_is_remembered_is_of_the_database_as_it_is_now(what: str) -> None:
    async with World() as world:
        place = world.database()
        world.policy(retry={"limit": 0})
        await until(45)
        if what == "another Secret":
            world.secrets.unanswered = FOR_EVER
            stored = world.api.objects[DATABASE, place]["spec"]
            world.api.put(DATABASE, place, stored | {"secretRef": {"name": "other"}})
        else:
            del world.secrets.data[place]
            await until(65)
            world.secrets.unanswered = FOR_EVER
        await until(95)
        assert [call.at for call in world.executor.calls] == [at(30)]


# It answers, after a long time.


async def test_a_slot_whose_deadline_passes_while_its_secret_is_read_is_missed() -> None:
    async with World() as world:
        world.database()
        place = world.policy(startingDeadlineSeconds=2)
        await until(20)
        world.secrets.seconds = 1.9
        await until(35)
        assert [call.at for call in world.executor.calls] == [at(31.9)]
        world.secrets.seconds = 2.1
        await until(65)
        assert len(world.executor.calls) == 1
        assert world.condition(place, "Fresh") == ("False", "SlotMissed")


async def test_what_was_remembered_and_is_refused_is_read_however_long_that_takes() -> None:
    async with World() as world:
        place = world.database()
        world.policy()
        await until(45)
        world.secrets.seconds = 10
        world.secrets.data[place] = dict(world.secrets.data[place]) | {"host": "moved"}
        world.executor.script["mv"] = [Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)]
        await until(80)
        assert [(call.at, call.target.host) for call in world.executor.calls[1:]] == [
            (at(63), "db"),
            (at(73.1), "moved"),
        ]


@pytest.mark.parametrize(("seconds", "reads", "begun"), [(0.5, 1, 0.5), (10, 0, 3)])
async def test_slots_that_are_due_at_once_wait_for_one_read_and_none_longer_than_it_waits(
    seconds: float, reads: int, begun: float
) -> None:
    async with World() as world:
        place = world.database(limits={"maxConcurrentRefreshes": 4, "minIntervalSeconds": 0})
        for number in range(4):
            world.policy(f"p{number}", views=[{"name": f"v{number}"}])
        await until(45)
        before = world.secrets.reads[place]
        world.secrets.seconds = seconds
        await until(75)
        assert world.secrets.reads[place] - before == reads  # of those that were answered
        assert [call.at for call in world.executor.calls[4:]] == [at(60 + begun)] * 4


async def test_a_rival_that_comes_while_the_secret_is_read_is_seen() -> None:
    async with World() as world:
        world.database()
        place = world.policy(isolation="Tenant", tenantId="a")
        await until(20)
        world.secrets.seconds = 2
        await until(31)
        world.policy("other", isolation="Tenant", tenantId="b", views=[{"name": "mv"}])
        await until(40)
        assert world.executor.calls == []
        assert world.condition(place, "Fresh") == ("False", "SharedView")
