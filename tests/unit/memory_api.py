"""An API server in memory: objects with versions, status writes that it takes or not, events."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.unit.ports import VirtualClock

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.model import API_VERSION, REQUESTED_AT
from matview_operator.domain.conditions import Transition
from matview_operator.engine.ports import (
    ApiUnavailable,
    Key,
    ObjectGone,
    ObjectRef,
    Status,
    StatusConflict,
    StatusRefused,
)

Body = dict[str, Any]


@dataclass(slots=True)
class MemoryApi:
    """Keeps objects as the API server does, and is the status writer's far end.

    `tell` hears every change of an object, as the watch does.
    """

    clock: VirtualClock
    tell: Callable[[str, Body], None] = lambda *_: None
    objects: dict[tuple[str, Key], Body] = field(default_factory=dict)
    writes: list[tuple[datetime, ObjectRef, Status]] = field(default_factory=list)
    seconds: float = 0.01
    outage: ApiUnavailable | None = None
    refused: set[Key] = field(default_factory=set)
    """Whose status it never takes (422)."""
    attempts: list[datetime] = field(default_factory=list)
    _version: int = 0

    def put(self, kind: str, key: Key, spec: Body, *, annotations: Mapping[str, str] | None = None) -> Body:
        """Create an object or replace its spec; a changed spec bumps the generation."""
        former = self.objects.get((kind, key))
        body: Body = (
            deepcopy(former)
            if former
            else {
                "apiVersion": API_VERSION,
                "kind": kind,
                "metadata": {
                    "name": key.name,
                    "namespace": key.namespace,
                    "uid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{kind}/{key}/{self._version}")),
                    "generation": 0,
                    "creationTimestamp": self.clock.now().replace(microsecond=0).isoformat(),
                },
            }
        )
        if annotations is not None:
            body["metadata"]["annotations"] = dict(annotations)
        if body.get("spec") != spec:
            body["metadata"]["generation"] += 1
            body["spec"] = deepcopy(spec)
        return self._store(kind, key, body)

    def annotate(self, key: Key, token: str | None) -> Body:
        """Ask a policy for a refresh, or take the request away."""
        body = self.objects["MatviewRefreshPolicy", key]
        annotations = {} if token is None else {REQUESTED_AT: token}
        return self.put("MatviewRefreshPolicy", key, body["spec"], annotations=annotations)

    def delete(self, kind: str, key: Key, *, unseen: bool = False) -> None:
        """Delete an object; `unseen`: the watch loses the news."""
        body = self.objects.pop((kind, key))
        if not unseen:
            self.tell("DELETED", body)

    def status(self, key: Key, kind: str = "MatviewRefreshPolicy") -> Body:
        """The stored status of an object."""
        status: Body = self.objects[kind, key].get("status", {})
        return status

    def writes_to(self, key: Key) -> int:
        """How many statuses of this object were written."""
        return sum(ref.key == key for _, ref, _ in self.writes)

    async def write(self, ref: ObjectRef, status: Status, *, resource_version: str) -> str:
        self.attempts.append(self.clock.now())
        await asyncio.sleep(self.seconds)
        if self.outage is not None:
            raise self.outage
        stored = self.objects.get((ref.kind, ref.key))
        if stored is None or stored["metadata"]["uid"] != ref.uid:
            raise ObjectGone(str(ref.key))
        if stored["metadata"]["resourceVersion"] != resource_version:
            raise StatusConflict(resource_version=stored["metadata"]["resourceVersion"], stored=stored)
        if ref.key in self.refused:
            raise StatusRefused("422 Invalid")
        # A merge patch: null removes, lists are replaced. Stored objects are replaced, too, never changed.
        merged = stored.get("status", {}) | status_document(status)
        body = stored | {"status": {name: value for name, value in merged.items() if value is not None}}
        self.writes.append((self.clock.now(), ref, status))
        return str(self._store(ref.kind, ref.key, body)["metadata"]["resourceVersion"])

    def _store(self, kind: str, key: Key, body: Body) -> Body:
        self._version += 1
        body = body | {"metadata": body["metadata"] | {"resourceVersion": str(self._version)}}
        self.objects[kind, key] = body
        self.tell("MODIFIED", body)
        return body


@dataclass(slots=True)
class MemoryEvents:
    """Every event, in order."""

    clock: VirtualClock
    all: list[tuple[datetime, ObjectRef, Transition]] = field(default_factory=list)

    def record(self, ref: ObjectRef, transition: Transition) -> None:
        self.all.append((self.clock.now(), ref, transition))

    def of(self, key: Key) -> list[tuple[str, str]]:
        """Type and reason of one object's events."""
        return [(said.type, said.reason) for _, ref, said in self.all if ref.key == key]
