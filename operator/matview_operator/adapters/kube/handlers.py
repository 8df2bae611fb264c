"""Kopf's watch streams, handed to the intake. Nothing else of kopf is used: no timer, no finalizer, no annotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio import client

from matview_operator.adapters.kube.client import kopf_login
from matview_operator.adapters.kube.resync import PAGE, Resync
from matview_operator.api.database import MatviewDatabase
from matview_operator.api.model import GROUP, VERSION
from matview_operator.api.policy import MatviewRefreshPolicy
from matview_operator.engine.intake import Intake


def watch(
    registry: kopf.OperatorRegistry, *, intake: Intake, resync: Resync, configuration: client.Configuration
) -> None:
    """Register the handlers. They are coroutines, so that kopf runs them in our loop and not in threads."""

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await kopf_login(configuration)

    @kopf.on.event(GROUP, VERSION, MatviewRefreshPolicy.PLURAL, registry=registry)
    async def policy_event(event: Any, **_: Any) -> None:
        tell(event, seen=intake.policy_seen, gone=intake.policy_gone)

    @kopf.on.event(GROUP, VERSION, MatviewDatabase.PLURAL, registry=registry)
    async def database_event(event: Any, **_: Any) -> None:
        tell(event, seen=intake.database_seen, gone=intake.database_gone)

    def tell(event: Any, *, seen: Callable[[object], None], gone: Callable[[object], None]) -> None:
        if event["type"] is None:
            resync.named(event["object"])
        (gone if event["type"] == "DELETED" else seen)(event["object"])


_WORKER_SECONDS = 0.02
"""For so long kopf keeps a task, a queue and the object after its last news."""


class NoMemories(ResourceMemories):
    """Kopf keeps a kilobyte of each object, for handlers that remember something; none of ours does."""

    async def recall(self, raw_body: kopf.RawBody, **known: Any) -> ResourceMemory:
        """Make one for this piece of news alone."""
        return await super().recall(raw_body, **known | {"ephemeral": True})


class _Backoffs:
    """Seconds between attempts of kopf's requests, without an end.

    By default kopf ends, and the operator with it, when something answers 5xx for a minute: a load balancer whose API
    server is away, for instance.
    """

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3, 5)
        yield from repeat(8)


class _NoDiffs(kopf.DiffBaseStorage):
    """For every event kopf makes a deep copy of the object, to see what changed; none of our handlers asks it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


def configure(settings: kopf.OperatorSettings) -> None:
    """Switch off what would write to objects, scan the cluster, or keep 5,000 objects' workers."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.networking.request_timeout = 60
    settings.watching.chunk_size = PAGE
    settings.queueing.idle_timeout = _WORKER_SECONDS
    settings.networking.error_backoffs = _Backoffs()
