"""Ledgers forget: every database once a day, one after another, and no trouble with one stops the others."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.ports import MemoryPruner, MemorySecrets

from matview_operator.api.database import MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import Key, ObjectRef
from matview_operator.engine.registry import Database, Registry
from matview_operator.engine.retention import DAY_SECONDS, ROUND_SECONDS, Retention
from matview_operator.engine.targets import Targets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.looptime(noop_cycles=3)

HOUR = 3600


@asynccontextmanager
async def pruning(*names: str, **spec: Any) -> AsyncIterator[tuple[MemoryPruner, Registry]]:
    """Databases whose hosts are called as they are, and the loop."""
    registry, secrets, pruner = Registry(), MemorySecrets(), MemoryPruner()
    for name in names:
        place = Key("analytics", name)
        secrets.data[place] = {"host": name, "port": "5432", "dbname": "app", "username": "mv", "password": "p"}
        registry.databases[place] = Database(
            ref=ObjectRef(kind="MatviewDatabase", key=place, uid=f"uid of {name}"),
            generation=1,
            spec=MatviewDatabaseSpec.model_validate({"secretRef": {"name": name}, "sslMode": "disable"} | spec),
            status=MatviewDatabaseStatus(),
        )
    retention = Retention(
        registry=registry, pruner=pruner, targets=Targets(secrets=secrets, destinations=Destinations()), keep_days=30
    )
    task = asyncio.create_task(retention.run())
    yield pruner, registry
    assert not task.done()
    task.cancel()


async def test_each_database_is_pruned_once_a_day_and_never_two_at_once() -> None:
    async with pruning("a", "b") as (pruner, _):
        await asyncio.sleep(ROUND_SECONDS - 1)
        assert pruner.calls == []
        await asyncio.sleep(6)
        assert pruner.calls == [("a", 30, ROUND_SECONDS), ("b", 30, ROUND_SECONDS + 1)]
        await asyncio.sleep(DAY_SECONDS - HOUR)
        assert len(pruner.calls) == 2
        await asyncio.sleep(2 * HOUR)
        assert [host for host, *_ in pruner.calls] == ["a", "b", "a", "b"]


async def test_what_failed_is_tried_again_in_an_hour_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with pruning("a", "b", "c", "d") as (pruner, _):
        pruner.down["a"] = Problem(RefreshReason.PERMISSION_DENIED, "Install it anew.")
        pruner.down["b"] = RuntimeError("surprise")
        pruner.down["c"] = Problem(RefreshReason.CONNECTION_FAILED, "refused")
        with caplog.at_level(logging.INFO):
            await asyncio.sleep(ROUND_SECONDS + 60)
        assert [host for host, *_ in pruner.calls] == ["a", "b", "c", "d"]
        said = [record.levelname for record in caplog.records if record.__dict__.get("action") == "prune"]
        assert said == ["WARNING", "ERROR"]
        assert "Install it anew." in caplog.text
        pruner.calls.clear()
        await asyncio.sleep(1.5 * HOUR)
        assert [host for host, *_ in pruner.calls] == ["a", "b", "c"]


async def test_a_suspended_database_is_left_alone() -> None:
    async with pruning("idle", suspend=True) as (pruner, _):
        await asyncio.sleep(DAY_SECONDS)
        assert pruner.calls == []


async def test_a_database_that_is_deleted_is_forgotten() -> None:
    async with pruning("a", "b") as (pruner, registry):
        await asyncio.sleep(ROUND_SECONDS + 0.5)
        # While the first one is pruned.
        del registry.databases[Key("analytics", "b")]
        await asyncio.sleep(DAY_SECONDS)
        assert {host for host, *_ in pruner.calls} == {"a"}
