"""T11: somebody with rights in the database holds a view's advisory lock for ever; the keys are public."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.ports import EPOCH, at
from tests.unit.world import World, until

pytestmark = pytest.mark.looptime(noop_cycles=3)


async def test_t11_a_lock_held_for_ever_is_told_each_slot_and_delays_nobody_else() -> None:
    async with World(places=1) as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        squatted = world.policy("squatted", views=[{"name": "taken"}])
        neighbour = world.policy("neighbour", views=[{"name": "free"}])
        world.executor.held_until["taken"] = EPOCH + timedelta(days=1)
        await until(301)
        status = world.api.status(squatted)
        assert world.condition(squatted, "Fresh") == ("False", "LockHeld")
        assert (status["views"][0]["outcome"], status["views"][0]["reason"]) == ("SKIPPED_LOCK_HELD", "LockHeld")
        assert "dataAsOf" not in status["views"][0]
        # Ten slots were due; the one that became due last is still being tried.
        assert status["missedSlots"] == 9
        assert world.metrics.missed[squatted] >= 9
        # No failure: nothing is wrong with the policy. One event, and a write for each slot.
        assert status["consecutiveFailures"] == 0
        assert world.events.of(squatted).count(("Warning", "LockHeld")) == 1
        assert world.api.writes_to(squatted) <= 12
        starts = [call.at for call in world.executor.calls if call.run.view.name == "free"]
        assert [round((start - EPOCH).total_seconds()) for start in starts] == [*range(30, 301, 30)]
        assert max(start - at(30 * number) for number, start in enumerate(starts, start=1)) < timedelta(seconds=0.2)
        assert world.condition(neighbour, "Fresh") == ("True", "Refreshed")
        # It lets go, and all is as it should be from the next slot on.
        world.executor.held_until.clear()
        await until(335)
        assert world.condition(squatted, "Fresh") == ("True", "Refreshed")
