"""Connections are opened a moment before several views are due on one database, and that failing harms nobody."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from tests.unit.ports import Ahead, at
from tests.unit.world import World, until

from matview_operator.domain.jitter import part_of_second
from matview_operator.engine.timers import LEAD_SECONDS

pytestmark = pytest.mark.looptime(noop_cycles=3)

BEFORE = 30 - LEAD_SECONDS


def ahead(seconds: float, count: int, *, host: str = "db", tenant_setting: str | None = None) -> Ahead:
    return Ahead(at=at(seconds), host=host, tenant_setting=tenant_setting, count=count)


async def test_a_database_is_connected_to_before_each_instant_at_which_several_views_are_due() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        world.policy("a")
        world.policy("b")
        world.policy("c", schedule={"everySeconds": 60})
        await until(61)
        assert world.executor.ahead == [ahead(BEFORE, 2), ahead(BEFORE + 30, 3)]
        assert [call.at for call in world.executor.calls] == [at(30)] * 2 + [at(60)] * 3


async def test_all_moments_of_one_second_are_one_instant() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        places = [world.policy(f"p{number}", jitterSeconds=1) for number in range(4)]
        first = min(part_of_second(world.known(place).uid, jitter_seconds=1).total_seconds() for place in places)
        await until(31)
        assert world.executor.ahead == [ahead(BEFORE + first, 4)]
        assert len(world.executor.calls) == 4


async def test_the_views_of_one_policy_count_each_and_a_group_once() -> None:
    async with World() as world:
        for name in ("one", "two", "group"):
            world.database(name, limits={"maxConcurrentRefreshes": 4})
        several = [{"name": "a"}, {"name": "b"}]
        world.policy("one", databaseRef={"name": "one"})
        world.policy("two", databaseRef={"name": "two"}, views=several)
        world.policy("group", databaseRef={"name": "group"}, views=several, consistency="Group")
        await until(31)
        assert world.executor.ahead == [ahead(BEFORE, 2, host="two")]


async def test_no_more_connections_than_refreshes_that_the_database_may_have_at_once() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 2})
        for number in range(9):
            world.policy(f"p{number}")
        await until(31)
        assert world.executor.ahead == [ahead(BEFORE, 2)]


async def test_no_more_connections_than_half_of_all_refreshes() -> None:
    async with World(places=4) as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        for number in range(9):
            world.policy(f"p{number}")
        await until(31)
        assert world.executor.ahead == [ahead(BEFORE, 2)]


async def test_tenants_get_connections_for_their_setting() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        for name in ("a", "b"):
            own: dict[str, Any] = {"tenantId": name, "isolation": "Tenant", "tenantSetting": "App.Tenant"}
            world.policy(name, views=[{"name": f"{name}_mv"}], **own)
        await until(31)
        assert world.executor.ahead == [ahead(BEFORE, 2, tenant_setting="app.tenant")]


@pytest.mark.parametrize(
    "database",
    [{"suspend": True}, {"windows": [{"kind": "Deny", "cron": "55 11 * * *", "durationSeconds": 600}]}],
    ids=["suspended", "closed"],
)
async def test_nothing_is_connected_to_where_nothing_may_be_refreshed(database: dict[str, Any]) -> None:
    async with World() as world:
        world.database(**database)
        world.policy("a")
        world.policy("b")
        await until(31)
        assert (world.executor.ahead, world.executor.calls) == ([], [])


async def test_who_does_not_lead_connects_to_nothing() -> None:
    async with World(holds=lambda: False) as world:
        world.database()
        world.policy("a")
        world.policy("b")
        await until(31)
        assert world.executor.ahead == []


async def test_a_secret_that_was_read_within_a_minute_is_not_read_for_it() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 4})
        world.policy("a")
        world.policy("b")
        await until(29)
        before = world.secrets.reads.total()
        await until(29.9)
        assert len(world.executor.ahead) == 1
        assert world.secrets.reads.total() == before
        await until(31)
        assert world.secrets.reads.total() == before + 1  # whoever refreshes reads it nevertheless


async def test_a_server_that_hangs_delays_no_run_and_is_asked_once_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    async with World() as world:
        world.executor.seconds = 100
        world.executor.hung_hosts.add("db")
        world.database(limits={"timeoutSeconds": 20, "maxConcurrentRefreshes": 4})
        world.policy("a")
        world.policy("b")
        await until(119)
        assert world.executor.ahead == [ahead(BEFORE, 2)]
        assert [call.at for call in world.executor.calls][:2] == [at(30)] * 2
        await until(130)
        assert world.executor.ahead[1:] == []
        await until(150)
        assert world.executor.ahead[1:] == [ahead(BEFORE + 120, 2)]
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
