"""Clocks that somebody sets: no slot that ended is replayed, and nothing stops."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.ports import at
from tests.unit.world import World, until

pytestmark = pytest.mark.looptime(noop_cycles=3)

YEARS = timedelta(days=3653)


async def test_ten_years_of_missed_slots_are_counted_exactly_in_status_and_metrics() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "* * * * *", "timeZone": "Europe/Berlin"})
        await until(65)
        world.clock.set_by = YEARS
        await until(70)
        assert [call.run.due_at for call in world.executor.calls] == [at(60), at(60) + YEARS]
        missed = YEARS // timedelta(minutes=1) - 1
        assert world.metrics.missed == {place: missed}
        assert world.api.status(place)["missedSlots"] == missed
