"""Who comes when not all that is due can run at once: tenants in turns, and no server waits for one that hangs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.ports import at
from tests.unit.world import World, until

from matview_operator.engine.budget import LONG_SECONDS

pytestmark = pytest.mark.looptime(noop_cycles=3)


@pytest.mark.parametrize("tenants", [("many", "single"), (None, "single"), ("many", None)])
async def test_a_tenant_with_a_thousand_due_views_delays_another_by_one_refresh_per_place(
    tenants: tuple[str | None, str | None],
) -> None:
    """Ten policies of a hundred views each and, last of all, one of one view."""
    fields: list[dict[str, Any]] = [{} if tenant is None else {"tenantId": tenant} for tenant in tenants]
    many, single = fields
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 2})
        world.executor.seconds = 1
        for number in range(10):
            views: list[dict[str, Any]] = [{"name": f"m{number}_{view}"} for view in range(100)]
            world.policy(f"many{number}", views=views, schedule={"everySeconds": 600}, **many)
        world.policy("single", schedule={"everySeconds": 600}, **single)
        await until(610)
        assert next(call.at for call in world.executor.calls if call.run.view.name == "single") == at(601)


async def test_a_policy_with_a_hundred_views_lets_its_tenants_other_policies_go_in_between() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.executor.seconds = 1
        world.policy("many", views=[{"name": f"m{view}"} for view in range(100)], schedule={"everySeconds": 600})
        world.policy("single", schedule={"everySeconds": 600})
        await until(610)
        assert world.executor.views[:4] == ["m0", "single", "m1", "m2"]


async def test_two_hung_databases_that_may_take_all_places_cost_the_others_nothing_once_they_are_known() -> None:
    async with World(places=8) as world:
        for name in ("hung1", "hung2", "fine"):
            world.database(name, limits={"maxConcurrentRefreshes": 100})
        world.executor.hung_hosts.update({"hung1", "hung2"})
        for number in range(20):
            world.policy(f"h{number}", databaseRef={"name": f"hung{number % 2 + 1}"})
        world.policy("late", databaseRef={"name": "fine"}, schedule={"everySeconds": 5})
        await until(59)
        begun = [(call.at - at(0)).total_seconds() for call in world.executor.calls if call.target.host == "fine"]
        assert world.executor.running["hung1"] + world.executor.running["hung2"] == 8
        # At 30 all places have just been taken. When there is one again, its run does for the slot of 40 as well.
        assert begun == pytest.approx([5, 10, 15, 20, 25, 30 + LONG_SECONDS, 45, 50, 55], abs=0.2)


async def test_more_hung_databases_than_places_keep_no_other_from_being_refreshed() -> None:
    """One server with the databases of forty tenants hangs, with the default limits."""
    async with World(places=32) as world:
        for number in range(40):
            world.database(f"hung{number}", namespace=f"n{number}")
            world.executor.hung_hosts.add(f"hung{number}")
            for policy in range(3):
                world.policy(
                    f"p{policy}",
                    namespace=f"n{number}",
                    databaseRef={"name": f"hung{number}"},
                    views=[{"name": f"v{policy}"}],
                )
        world.database("fine", namespace="fine")
        fine = world.policy("late", namespace="fine", databaseRef={"name": "fine"}, schedule={"everySeconds": 5})
        await until(600)
        begun = [(call.at - at(0)).total_seconds() for call in world.executor.calls if call.target.host == "fine"]
        late = [begin for begin in begun if begin > 31]
        assert late[0] <= 30 + 2 * LONG_SECONDS + 0.1
        assert late[2:] == pytest.approx([5 * number for number in range(round(late[2] / 5), 120)], abs=0.1)
        assert world.executor.most_at_once["all"] <= 32 + 41
        assert max(world.executor.most_at_once[f"hung{number}"] for number in range(40)) <= 2
        assert world.metrics.missed[fine] <= 2
