"""Who does not lead any more starts nothing, writes nothing and tells nothing, in whatever it was interrupted."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.world import World, until

pytestmark = pytest.mark.looptime(noop_cycles=3)


class Lead:
    """Whether it leads; asked at each use."""

    def __init__(self) -> None:
        self.held = True

    def holds(self) -> bool:
        return self.held


async def test_without_leadership_nothing_is_begun_written_or_told() -> None:
    lead = Lead()
    async with World(holds=lead.holds) as world:
        world.database()
        place = world.policy()
        await until(35)
        assert len(world.executor.calls) == 1
        before = len(world.api.attempts), len(world.events.all)
        lead.held = False  # nobody has told its loops
        world.api.annotate(place, "now")
        world.policy("another")
        await until(400)
        assert len(world.executor.calls) == 1
        assert (len(world.api.attempts), len(world.events.all)) == before
        assert world.api.status(place).get("lastHandledRequest") is None


async def test_a_group_is_not_begun_either() -> None:
    lead = Lead()
    async with World(holds=lead.holds) as world:
        world.database()
        world.policy(consistency="Group", views=[{"name": "a"}, {"name": "b"}])
        lead.held = False
        await until(100)
        assert world.executor.groups == []


async def test_of_a_slot_under_way_no_further_view_is_begun_and_no_status_is_written() -> None:
    lead = Lead()
    async with World(holds=lead.holds) as world:
        world.executor.seconds = 10
        world.database(limits={"maxConcurrentRefreshes": 1})
        place = world.policy(views=[{"name": "a"}, {"name": "b"}])
        await until(35)
        written = len(world.api.attempts)
        lead.held = False
        await until(100)
        assert world.executor.views == ["a"]
        assert len(world.api.attempts) == written
        assert world.api.status(place)["history"] == []


async def test_who_loses_the_lead_stops_its_runs_on_the_server_at_once_and_leaves_their_slots_to_the_next() -> None:
    lead = Lead()
    one = World(holds=lead.holds)
    await one.__aenter__()
    one.executor.seconds = 100
    one.database()
    place = one.policy()
    await until(35)
    lead.held = False
    began = asyncio.get_running_loop().time()
    await one.supervisor.stop(grace_seconds=0, flush_seconds=0)
    assert asyncio.get_running_loop().time() - began < 0.1
    assert one.executor.cancelled == ["mv"]
    assert one.api.status(place)["history"] == []
    await one.supervisor.stop(grace_seconds=0, flush_seconds=0)  # kopf's cleanup comes later
    one.executor.seconds = 0.1
    async with World(former=one) as two:
        await until(40)
        first, second = two.executor.calls
        assert first.run.slot_id == second.run.slot_id
        assert two.api.status(place)["history"][0]["outcome"] == "SUCCESS"


async def test_the_next_leader_goes_by_the_status_as_it_is_then() -> None:
    one = World()
    await one.__aenter__()
    one.database()
    place = one.policy()
    await until(95)
    await one.__aexit__(None, None, None)
    assert len(one.executor.calls) == 3
    async with World(former=one) as two:
        await until(119)
        assert len(two.executor.calls) == 3
        await until(125)
        assert len(two.executor.calls) == 4
        assert two.api.status(place).get("missedSlots", 0) == 0
