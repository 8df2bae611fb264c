"""A whole engine on ports in memory, in virtual time, driven by objects that users apply, annotate and delete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Any, Self

from tests.unit.memory_api import Body, MemoryApi, MemoryEvents
from tests.unit.ports import (
    MemoryExecutor,
    MemoryInspector,
    MemoryMetrics,
    MemoryPruner,
    MemorySecrets,
    VirtualClock,
)

from matview_operator.domain.destination import Destinations
from matview_operator.domain.shard import Shard
from matview_operator.engine.fence import FencedEvents, FencedExecutor, FencedWriter
from matview_operator.engine.intake import WHOLE, Intake
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy
from matview_operator.engine.supervisor import Supervisor

POLICY = "MatviewRefreshPolicy"
DATABASE = "MatviewDatabase"
NAMESPACE = "analytics"


def key(name: str, namespace: str = NAMESPACE) -> Key:
    return Key(namespace, name)


def policy_spec(name: str, **fields: Any) -> Body:
    """A policy's spec: the view of the policy's name, every 30 s; further fields as in the CRD."""
    return {
        "databaseRef": {"name": "db"},
        "views": [{"name": name}],
        "schedule": {"everySeconds": 30},
        "startingDeadlineSeconds": 20,
    } | fields


class World:
    """An operator's engine and what surrounds it. A second one on the same `api` is the operator after a restart."""

    def __init__(
        self,
        *,
        former: World | None = None,
        places: int = 32,
        shard: Shard = WHOLE,
        holds: Callable[[], bool] = lambda: True,
    ) -> None:
        """`holds` is whether it leads."""
        self.clock: VirtualClock = VirtualClock() if former is None else former.clock
        self.executor: MemoryExecutor = MemoryExecutor(self.clock) if former is None else former.executor
        self.inspector: MemoryInspector = MemoryInspector() if former is None else former.inspector
        self.pruner = MemoryPruner()
        self.secrets: MemorySecrets = MemorySecrets() if former is None else former.secrets
        self.api: MemoryApi = MemoryApi(self.clock) if former is None else former.api
        self.events = MemoryEvents(self.clock)
        self.metrics = MemoryMetrics()
        self.supervisor = Supervisor(
            executor=FencedExecutor(self.executor, holds=holds, clock=self.clock),
            inspector=self.inspector,
            pruner=self.pruner,
            secrets=self.secrets,
            destinations=Destinations(),
            writer=FencedWriter(self.api, holds=holds),
            events=FencedEvents(self.events, holds=holds),
            metrics=self.metrics,
            clock=self.clock,
            max_concurrent_refreshes=places,
            ledger_keep_days=30,
            random=Random(7),  # noqa: S311 - jitter
        )
        self.intake = Intake(supervisor=self.supervisor, clock=self.clock, shard=shard)

    async def __aenter__(self) -> Self:
        """Start, load what is stored, databases first, and watch."""
        self.supervisor.start()
        for _, body in sorted(self.api.objects.items(), key=lambda item: item[0]):
            self._tell("ADDED", body)
        self.api.tell = self._tell
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.tell = lambda *_: None
        await self.supervisor.stop(grace_seconds=0)

    async def crash(self) -> None:
        """End as by SIGKILL: nothing is drained, nothing is written."""
        self.api.tell = lambda *_: None
        self.supervisor.agenda.dispatcher._closed = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    def database(self, name: str = "db", *, namespace: str = NAMESPACE, **fields: Any) -> Key:
        """Apply a MatviewDatabase with a Secret of its own; its host is its name."""
        place = key(name, namespace)
        data = {"host": name, "port": "5432", "dbname": "app", "username": "mv", "password": "p"}
        self.secrets.data.setdefault(place, data)
        self.api.put(DATABASE, place, {"secretRef": {"name": name}, "sslMode": "disable"} | fields)
        return place

    def policy(
        self,
        name: str = "mv",
        *,
        namespace: str = NAMESPACE,
        annotations: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Key:
        """Apply a MatviewRefreshPolicy; see policy_spec."""
        place = key(name, namespace)
        self.api.put(POLICY, place, policy_spec(name, **fields), annotations=annotations)
        return place

    def known(self, place: Key) -> Policy:
        """The policy as the engine knows it."""
        return self.supervisor.registry.policies[place]

    def condition(self, place: Key, kind: str, *, of: str = POLICY) -> tuple[str, str] | None:
        """Status and reason of a stored condition."""
        for condition in self.api.status(place, of).get("conditions", ()):
            if condition["type"] == kind:
                return condition["status"], condition["reason"]
        return None

    def _tell(self, news: str, body: Body) -> None:
        match news, body["kind"]:
            case "DELETED", "MatviewRefreshPolicy":
                self.intake.policy_gone(body)
            case "DELETED", _:
                self.intake.database_gone(body)
            case _, "MatviewRefreshPolicy":
                self.intake.policy_seen(body)
            case _:
                self.intake.database_seen(body)


async def until(seconds: float) -> None:
    """Let virtual time pass until so many seconds after EPOCH."""
    await asyncio.sleep(seconds - asyncio.get_running_loop().time())
