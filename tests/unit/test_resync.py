"""Listing the objects: once at start, so that all are known, then to prune what the watch lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio import client
from tests.unit.memory_api import Body
from tests.unit.world import POLICY, World, key, until

from matview_operator.adapters.kube.resync import PERIOD_SECONDS, RELISTED_SECONDS, Resync
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.engine.ports import ApiUnavailable

pytestmark = pytest.mark.looptime(noop_cycles=3)


class Listed:
    """A Resync whose pages come from a world's API server."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.down = False
        self.lists: list[str] = []
        monkeypatch.setattr(Resync, "_page", self._page)
        self.resync = Resync(client.ApiClient(client.Configuration()), intake=world.intake, namespaces=())

    async def _page(self, plural: str, _namespace: str | None, token: str | None) -> Body:
        self.lists.append(plural)
        if self.down:
            raise ApiUnavailable("out of reach")
        await asyncio.sleep(0)
        kind = {"matviewrefreshpolicies": POLICY, "matviewdatabases": "MatviewDatabase"}[plural]
        items = [body for (of, _), body in self.world.api.objects.items() if of == kind]
        first = 0 if token is None else int(token)
        following = str(first + 2) if first + 2 < len(items) else ""
        return {"items": items[first : first + 2], "metadata": {"continue": following}}

    def name_all(self) -> None:
        """As a watch that begins."""
        for (kind, _), body in list(self.world.api.objects.items()):
            self.resync.named(body)
            (self.world.intake.policy_seen if kind == POLICY else self.world.intake.database_seen)(body)


@pytest.fixture
async def listed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listed]:
    world = World()
    world.supervisor.start()
    yield Listed(world, monkeypatch)
    await world.supervisor.stop(grace_seconds=0)


def apply(world: World, *names: str) -> None:
    """Store objects without telling the engine."""
    world.database()
    for name in names:
        world.policy(name, schedule={"everySeconds": 31_536_000})


async def test_everything_is_loaded_page_by_page_databases_first(listed: Listed) -> None:
    apply(listed.world, "a", "b", "c", "d", "e")
    await listed.resync.load()
    assert listed.lists == ["matviewdatabases", *["matviewrefreshpolicies"] * 3]
    assert {place.name for place in listed.world.supervisor.registry.policies} == {"a", "b", "c", "d", "e"}
    await until(1)
    assert {listed.world.condition(key(name), "Ready") for name in "abcde"} == {("True", "Scheduled")}


async def test_what_is_held_until_all_are_known_has_its_status_read(
    listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(listed.world, "a", "b", "c")
    entry = {"outcome": "SUCCESS", "startedAt": "2026-11-22T11:00:00Z", "durationMs": 5, "views": 1, "failed": 0}
    listed.world.api.objects[POLICY, key("a")]["status"] = {"history": [entry, {"outcome": "who knows"}]}
    held, intake = [], listed.world.intake
    seen = intake.policy_seen

    def noted(body: Any) -> None:
        held.append(type(body["status"]))
        seen(body)

    monkeypatch.setattr(intake, "policy_seen", noted)
    await listed.resync.load()
    assert held == [MatviewRefreshPolicyStatus] * 3
    (known,) = listed.world.known(key("a")).status.history
    assert known.duration_ms == 5


async def test_one_objects_surprise_keeps_nobody_else_from_being_loaded(
    listed: Listed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    apply(listed.world, "a", "bad", "c")
    intake = listed.world.intake
    seen = intake.policy_seen

    def surprised(body: Any) -> None:
        if body["metadata"]["name"] == "bad":
            raise RuntimeError("a bug")
        seen(body)

    monkeypatch.setattr(intake, "policy_seen", surprised)
    await listed.resync.load()
    assert {place.name for place in listed.world.supervisor.registry.policies} == {"a", "c"}
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == ["object not taken in"]


async def test_the_start_waits_until_the_api_server_answers(listed: Listed) -> None:
    apply(listed.world, "a")
    listed.down = True
    loading = asyncio.create_task(listed.resync.load())
    await until(100)
    assert not loading.done()
    assert 10 < len(listed.lists) < 200
    listed.down = False
    await loading
    assert list(listed.world.supervisor.registry.policies) == [key("a")]


async def test_the_periodic_list_prunes_what_is_gone_and_a_failed_one_nothing(listed: Listed) -> None:
    apply(listed.world, "a", "b", "c")
    await listed.resync.load()
    await until(1)  # their first statuses are written: no write tells of the deletion
    listed.world.api.delete(POLICY, key("b"))
    running = asyncio.create_task(listed.resync.run())
    listed.down = True
    await until(PERIOD_SECONDS + 5)
    assert len(listed.world.supervisor.registry.policies) == 3
    listed.down = False
    await until(2 * PERIOD_SECONDS + 5)
    assert {place.name for place in listed.world.supervisor.registry.policies} == {"a", "c"}
    running.cancel()


async def test_a_deletion_that_was_lost_when_the_watch_began_anew_is_found_by_a_list_soon_after(listed: Listed) -> None:
    world = listed.world
    apply(world, "a", "b", "c")
    await listed.resync.load()
    await until(1)  # their first statuses are written: no write tells of the deletion
    running = asyncio.create_task(listed.resync.run())
    # The watch's first list, which has what was created after the load, too.
    world.policy("new", schedule={"everySeconds": 31_536_000})
    listed.name_all()
    listed.lists.clear()
    await until(60)
    assert listed.lists == []
    world.api.delete(POLICY, key("b"))
    listed.down = True
    listed.name_all()
    await until(60 + RELISTED_SECONDS + 1)
    assert listed.lists == ["matviewdatabases"]
    assert key("b") in world.supervisor.registry.policies
    # Tried again, and then no more.
    listed.down = False
    await until(60 + 2 * RELISTED_SECONDS + 1)
    assert {place.name for place in world.supervisor.registry.policies} == {"a", "c", "new"}
    listed.lists.clear()
    await until(PERIOD_SECONDS)
    assert listed.lists == []
    running.cancel()
