"""Many slots that are due at once: what they share, and what lets them go first."""

from __future__ import annotations

import pytest
from tests.unit.ports import Told, at
from tests.unit.world import World, until

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshOutcome, RefreshReason

pytestmark = pytest.mark.looptime(noop_cycles=3)


async def test_slots_at_work_at_the_same_time_share_a_read_of_their_secret_for_a_second_and_no_longer() -> None:
    async with World() as world:
        place = world.database()
        for number in range(80):
            world.policy(f"p{number}")
        await until(29)
        before = world.secrets.reads[place]
        await until(30.55)
        world.secrets.data[place] = dict(world.secrets.data[place]) | {"host": "moved"}
        await until(40)
        assert len(world.executor.calls) == 80  # two at once, a tenth of a second each: four seconds
        assert world.secrets.reads[place] - before <= 10
        assert {call.target.host for call in world.executor.calls if call.at > at(31.7)} == {"moved"}
        # Nobody was at work between the two waves: nothing was kept.
        world.secrets.data[place] = dict(world.secrets.data[place]) | {"host": "again"}
        await until(60.05)
        assert {call.target.host for call in world.executor.calls[80:]} == {"again"}


async def test_a_secret_that_was_shared_and_is_refused_is_read_again_within_the_slot() -> None:
    async with World() as world:
        place = world.database()
        for number in range(9):
            world.policy(f"p{number}")
        refused = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.AUTHENTICATION_FAILED)
        world.executor.script["p8"] = [refused]
        await until(30.35)
        assert world.executor.views[-1] != "p8"
        world.secrets.data[place] = dict(world.secrets.data[place]) | {"host": "moved"}
        await until(32)
        assert [call.target.host for call in world.executor.calls if call.run.view.name == "p8"] == ["db", "moved"]


async def test_while_runs_wait_statuses_that_the_ledger_knows_without_them_come_after_and_within_seconds() -> None:
    async with World() as world:
        world.database()
        policies = [world.policy(f"p{number}", schedule={"everySeconds": 60}) for number in range(160)]
        await until(59)
        before = len(world.api.writes)
        await until(64)
        assert len(world.executor.calls) >= 80
        assert len(world.api.writes) == before
        await until(67)  # runs still wait, but the oldest have waited long enough
        assert len(world.api.writes) > before
        assert world.supervisor.budget.waiting
        await until(75)
        assert [world.api.status(policy)["lastSlotTime"] for policy in policies] == ["2026-11-22T12:01:00Z"] * 160


async def test_without_a_ledger_no_status_waits_for_the_runs_of_others() -> None:
    async with World() as world:
        world.inspector.facts["bookkeeping"] = Bookkeeping.MISSING
        world.database()
        for number in range(40):
            world.policy(f"p{number}")
        await until(29)
        before = len(world.api.writes)
        await until(31)
        assert world.supervisor.budget.waiting
        assert len(world.api.writes) - before >= 15  # of twenty runs that ended
