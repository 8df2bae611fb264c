"""The engine's ports in memory: servers whose runs take virtual time, an API server that keeps objects, a clock."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.database import Bookkeeping
from matview_operator.api.model import API_VERSION, REQUESTED_AT
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.domain.conditions import Transition
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.mode import ModeChoice
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.server import ServerFacts
from matview_operator.engine.ports import (
    ApiUnavailable,
    Key,
    ObjectGone,
    ObjectRef,
    Status,
    StatusConflict,
    StatusRefused,
)

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
"""When virtual time begins: a full hour, so that every usual interval has a slot at it."""

Body = dict[str, Any]


class VirtualClock:
    """The event loop's time from EPOCH on, and how far somebody set the clock."""

    def __init__(self) -> None:
        self.set_by = timedelta()

    def now(self) -> datetime:
        return EPOCH + self.set_by + timedelta(seconds=asyncio.get_running_loop().time())


def at(seconds: float) -> datetime:
    """So many seconds after EPOCH."""
    return EPOCH + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one run is to end with, in place of SUCCESS."""

    outcome: RefreshOutcome
    reason: RefreshReason | None = None
    message: str | None = None


LOCK_HELD = Told(outcome=RefreshOutcome.SKIPPED_LOCK_HELD, reason=RefreshReason.LOCK_HELD)
COVERED = Told(outcome=RefreshOutcome.SKIPPED_COVERED, reason=RefreshReason.COVERED)
UNKNOWN = Told(outcome=RefreshOutcome.UNKNOWN, reason=RefreshReason.COMMIT_UNKNOWN)
FAILED = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.VIEW_QUERY_FAILED, message="division by zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One call of the executor."""

    at: datetime
    run: Run
    target: ConnectionTarget


@dataclass(slots=True)
class MemoryExecutor:
    """Runs take `seconds` of virtual time, or until the timeout on a hung host, and end as scripted."""

    clock: VirtualClock
    seconds: float = 0.1
    script: dict[str, list[Told | Exception]] = field(default_factory=lambda: defaultdict(list))
    """By view: how its next runs end, in order; then SUCCESS."""
    held_until: dict[str, datetime] = field(default_factory=dict)
    """By view: until when a rival holds its lock."""
    hung_hosts: set[str] = field(default_factory=set)
    commits_when_cancelled: bool = False
    calls: list[Started] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    """By host."""
    most_at_once: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)

    @property
    def views(self) -> list[str]:
        """The views of all calls, in order."""
        return [str(call.run.view) for call in self.calls]

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        started_at, view = self.clock.now(), str(run.view)
        self.calls.append(Started(at=started_at, run=run, target=target))
        self.running[target.host] += 1
        for place in (target.host, "all"):
            busy = self.running.total() if place == "all" else self.running[place]
            self.most_at_once[place] = max(self.most_at_once[place], busy)
        try:
            if self.held_until.get(view, EPOCH) > started_at:
                return self._result(run, started_at, LOCK_HELD)
            await asyncio.sleep(run.timeout_seconds if target.host in self.hung_hosts else self.seconds)
        except asyncio.CancelledError:
            self.cancelled.append(view)
            stopped = Told(outcome=RefreshOutcome.INTERRUPTED, reason=RefreshReason.SHUTDOWN)
            told = None if self.commits_when_cancelled else stopped
            raise asyncio.CancelledError(self._result(run, started_at, told)) from None
        finally:
            self.running[target.host] -= 1
        if target.host in self.hung_hosts:
            return self._result(run, started_at, Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.TIMEOUT))
        scripted = self.script[view].pop(0) if self.script[view] else None
        if isinstance(scripted, Exception):
            raise scripted
        return self._result(run, started_at, scripted)

    def _result(self, run: Run, started_at: datetime, told: Told | None) -> RefreshResult:
        said = told or Told(outcome=RefreshOutcome.SUCCESS)
        plain = run.result(
            said.outcome, started_at=started_at, ended_at=self.clock.now(), reason=said.reason, message=said.message
        )
        if said.outcome is RefreshOutcome.SUCCESS:
            found = {"mode": RefreshMode.CONCURRENT, "data_as_of": started_at, "rows_inserted": 1, "rows_deleted": 0}
        elif said is COVERED:
            found = {"data_as_of": run.due_at}
        else:
            return plain
        return plain.model_copy(update=found | {"verified_at": found["data_as_of"]})


@dataclass(slots=True)
class MemoryInspector:
    """Finds every view well, but for the ones whose answers or servers were scripted."""

    seconds: float = 0.05
    answers: dict[str, ModeChoice | Problem] = field(default_factory=dict)
    """By view."""
    down: dict[str, Problem | Exception] = field(default_factory=dict)
    """By host."""
    calls: Counter[str] = field(default_factory=Counter)
    """By host."""

    async def inspect(
        self, *, target: ConnectionTarget, checks: Iterable[ViewCheck], allow_superuser: bool
    ) -> Inspection:
        self.calls[target.host] += 1
        asked = list(checks)
        await asyncio.sleep(self.seconds)
        if target.host in self.down:
            raise self.down[target.host]
        facts = ServerFacts(
            version="18.4",
            version_num=180004,
            database=target.database,
            role=target.user,
            superuser=allow_superuser,
            in_recovery=False,
            bookkeeping=Bookkeeping.INSTALLED,
            system_identifier="7",
        )
        well = ModeChoice(RefreshMode.CONCURRENT)
        return Inspection(server=facts, answers={check: self.answers.get(str(check.view), well) for check in asked})


@dataclass(slots=True)
class MemorySecrets:
    """Every Secret there is; another one is a Problem."""

    data: dict[Key, Mapping[str, str]] = field(default_factory=dict)
    reads: Counter[Key] = field(default_factory=Counter)

    async def read(self, *, namespace: str, name: str) -> Mapping[str, str]:
        await asyncio.sleep(0)
        key = Key(namespace, name)
        self.reads[key] += 1
        if key not in self.data:
            raise Problem(RefreshReason.SECRET_NOT_FOUND, f"There is no Secret {name}.")
        return self.data[key]


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
            raise StatusConflict(resource_version=stored["metadata"]["resourceVersion"], stored=deepcopy(stored))
        if ref.key in self.refused:
            raise StatusRefused("422 Invalid")
        body = deepcopy(stored)
        # A merge patch: null removes, lists are replaced.
        merged = body.get("status", {}) | status_document(status)
        body["status"] = {name: value for name, value in merged.items() if value is not None}
        self.writes.append((self.clock.now(), ref, status))
        return str(self._store(ref.kind, ref.key, body)["metadata"]["resourceVersion"])

    def _store(self, kind: str, key: Key, body: Body) -> Body:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[kind, key] = body
        self.tell("MODIFIED", deepcopy(body))
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


@dataclass(slots=True)
class MemoryMetrics:
    """What the engine counts."""

    runs: Counter[tuple[Key, str]] = field(default_factory=Counter)
    missed: Counter[Key] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    gone: list[Key] = field(default_factory=list)

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        self.runs[key, result.outcome.value] += 1

    def slot_started(self, *, lag_seconds: float) -> None:
        self.lags.append(lag_seconds)

    def slots_missed(self, key: Key, count: int) -> None:
        self.missed[key] += count

    def policy_gone(self, key: Key) -> None:
        self.gone.append(key)
