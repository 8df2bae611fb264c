"""One operator process: the engine unchanged, between simulated ports, from start to SIGTERM or SIGKILL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tests.simulation.cluster import KINDS, Cluster, Stream
from tests.simulation.ground import Ground
from tests.simulation.loop import Life, context_of
from tests.simulation.server import Server
from tests.simulation.sessions import Call, Sessions
from tests.unit.memory_api import Body, MemoryEvents
from tests.unit.ports import MemoryPruner

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import Problem
from matview_operator.domain.lease import LeaseTiming
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.shard import Shard
from matview_operator.engine.fence import FencedExecutor, FencedWriter
from matview_operator.engine.intake import Intake
from matview_operator.engine.leadership import Leadership, LeaseStore
from matview_operator.engine.ports import ApiUnavailable, Key
from matview_operator.engine.supervisor import Supervisor

_TIMING = LeaseTiming(duration_seconds=30, deadline_seconds=21, renew_seconds=8, retry_seconds=5, request_seconds=3)
"""Four times as slow as in earnest: else half of all that happens would be renewals."""
_LIST_PAUSE_SECONDS = 2.0
_PRUNE_SECONDS = 120.0


class Observer(Protocol):
    """Is told what a process does; see the judge."""

    def loaded(self, process: Process) -> None:
        """It has listed what exists, and begins to watch."""
        ...

    def call_begun(self, process: Process, call: Call) -> None:
        """It asks the executor for a refresh."""
        ...

    def call_ended(self, process: Process, call: Call, results: Sequence[RefreshResult]) -> None:
        """The executor answered it."""
        ...


@dataclass(slots=True)
class Counts:
    """The process's metrics, of which missed slots and attempts are looked at."""

    process: Process
    missed: Counter[str] = field(default_factory=Counter)
    """By UID."""
    retried_at: dict[str, float] = field(default_factory=dict)
    """By UID: when something was last tried again."""

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        """Count one run of one view."""

    def slot_started(self, *, lag_seconds: float) -> None:
        assert lag_seconds >= 0

    def slots_missed(self, key: Key, count: int) -> None:
        self.process.ground.tell(f"{self.process} counts {count} missed of {key}")
        self.missed[self.process.supervisor.registry.policies[key].ref.uid] += count

    def retried(self, key: Key, reason: RefreshReason) -> None:
        self.process.ground.tell(f"{self.process} will try {key} again after {reason}")
        self.retried_at[self.process.supervisor.registry.policies[key].ref.uid] = self.process.ground.now

    def policy_gone(self, key: Key) -> None:
        """Its series end."""


class Process:
    """What a pod runs. All of its tasks and callbacks live in one context, and die with it."""

    def __init__(
        self,
        number: int,
        *,
        ground: Ground,
        cluster: Cluster,
        servers: Mapping[str, Server],
        observer: Observer,
        places: int,
        lease: LeaseStore | None,
        shard: Shard,
        lost: Callable[[], None],
    ) -> None:
        """`lease`: None for one that stands alone. `lost` is told when it ends because another may lead."""
        self.ground = ground
        self.cluster = cluster
        self.life = Life(number)
        self.context = context_of(self.life)
        self.observer = observer
        self.places = places
        self.shard = shard
        self.counts = Counts(self)
        self.started_at = ground.now
        self.loaded_at: float | None = None
        self.disturbed_at = -1e9
        """When it was last paused or cut off from the API server."""
        self.is_stopping = False
        self.unread_at: dict[str, float] = {}
        """By namespace: when a Secret could not be read."""
        self.heard_until = ground.clock.now()
        """The latest that the clock has shown when something new was heard or begun."""
        self.missed_before: dict[str, int] = {}
        """By policy UID: what the stored status counted besides this process, when it first had the policy."""
        self.news_at: dict[tuple[str, Key], float] = {}
        """By kind and key: when something new was heard of an object."""
        self._heard_of: dict[tuple[str, Key], tuple[str, int]] = {}
        self.sessions = Sessions(ground, servers, self)
        self._lost = lost
        self.leadership: Leadership | None = None
        if lease is not None:
            self.leadership = Leadership(
                store=lease,
                me=str(self),
                clock=ground.clock,
                random=Random(ground.random.random()),  # noqa: S311 - jitter
                seconds=ground.loop.time,
                timing=_TIMING,
            )
        self.supervisor = Supervisor(
            executor=FencedExecutor(self.sessions, holds=self.leads, clock=ground.clock),
            inspector=self.sessions,
            pruner=MemoryPruner(),
            secrets=self,
            destinations=Destinations(),
            writer=FencedWriter(cluster, holds=self.leads),
            events=MemoryEvents(ground.clock),
            metrics=self.counts,
            clock=ground.clock,
            max_concurrent_refreshes=places,
            ledger_keep_days=30,
            random=Random(ground.random.random()),  # noqa: S311 - jitter
        )
        self.intake = Intake(supervisor=self.supervisor, clock=ground.clock, shard=shard)

    def __str__(self) -> str:
        return f"process {self.life.number}"

    @property
    def alive(self) -> bool:
        """Whether it was neither killed nor stopped."""
        return not self.life.dead

    def leads(self) -> bool:
        """Whether no other process may work now."""
        return self.leadership is None or self.leadership.holds()

    def owns(self, body: Body) -> bool:
        """Whether this object is its shard's."""
        meta = body["metadata"]
        is_policy = body["kind"] == "MatviewRefreshPolicy"
        database = body["spec"]["databaseRef"]["name"] if is_policy else meta["name"]
        return self.shard.owns(namespace=meta["namespace"], database=database)

    def start(self) -> None:
        """Exec."""
        self.ground.tell(f"{self} starts")
        self.ground.loop.create_task(self._run(), context=self.context)

    def kill(self) -> None:
        """SIGKILL: no step more is made. What was sent arrives; its sessions end as their servers notice."""
        if self.alive:
            self.ground.tell(f"{self} is killed")
            self._end()
            self.sessions.die()

    def terminate(self, *, grace_seconds: float) -> None:
        """SIGTERM."""
        if self.alive:
            self.ground.tell(f"{self} is told to stop")
            self.is_stopping = True
            self.ground.loop.create_task(self._stop(grace_seconds), context=self.context)

    async def read(self, *, namespace: str, name: str, field: str) -> Mapping[str, bytes]:
        """Read a Secret."""
        try:
            return await self.cluster.read(namespace=namespace, name=name, field=field)
        except Problem:
            self.unread_at[namespace] = self.ground.now
            raise

    def call_begun(self, call: Call) -> None:
        """Of the sessions."""
        self.heard_until = max(self.heard_until, self.ground.clock.now())
        self.observer.call_begun(self, call)

    def call_ended(self, call: Call, results: Sequence[RefreshResult]) -> None:
        """Of the sessions."""
        self.observer.call_ended(self, call, results)

    async def _run(self) -> None:
        if self.leadership is not None:
            await self.leadership.acquire()
            self.ground.tell(f"{self} leads")
            self.ground.changes += 1
            self._keeping = asyncio.create_task(self._keep(self.leadership))
        self.supervisor.start()
        bodies = {kind: await self._listed(kind) for kind in KINDS}
        for kind in KINDS:
            for body in bodies[kind]:
                self._seen(body)
        self.loaded_at = self.ground.now
        self.observer.loaded(self)
        streams = [Stream(self.cluster, kind, seen=self._seen, gone=self._gone, context=self.context) for kind in KINDS]
        self.cluster.streams += streams
        for stream in streams:
            stream.relist()
        while True:
            await asyncio.sleep(_PRUNE_SECONDS)
            known = self.intake.known_uids()
            try:
                listed = {body["metadata"]["uid"] for kind in KINDS for body in await self.cluster.list(kind)}
            except ApiUnavailable:
                continue
            self.intake.prune(known_before=known, listed=listed)

    async def _listed(self, kind: str) -> list[Body]:
        while True:
            try:
                return await self.cluster.list(kind)
            except ApiUnavailable:
                await asyncio.sleep(_LIST_PAUSE_SECONDS)

    async def _keep(self, leadership: Leadership) -> None:
        if await leadership.keep():
            self.ground.tell(f"{self} leads no more")
            is_told, self.is_stopping = self.is_stopping, True
            if self.supervisor.started:
                await self.supervisor.stop(grace_seconds=0, flush_seconds=0)
            if not is_told:
                self._end()
                self._lost()

    async def _stop(self, grace_seconds: float) -> None:
        if self.supervisor.started:
            await self.supervisor.stop(grace_seconds=grace_seconds)
        if self.leadership is not None:
            await self.leadership.release()
        self.ground.tell(f"{self} has stopped")
        if self.sessions.calls:
            self.ground.violate(f"{self} left {len(self.sessions.calls)} runs on their servers")
        self._end()

    def _end(self) -> None:
        self.life.dead = True
        self.ground.changes += 1
        self.cluster.streams = [stream for stream in self.cluster.streams if stream.context is not self.context]

    def _seen(self, body: Body) -> None:
        self._heard(body, gone=False)
        if body["kind"] == "MatviewRefreshPolicy":
            self.intake.policy_seen(body)
        else:
            self.intake.database_seen(body)

    def _gone(self, body: Body) -> None:
        self._heard(body, gone=True)
        if body["kind"] == "MatviewRefreshPolicy":
            self.intake.policy_gone(body)
        else:
            self.intake.database_gone(body)

    def _heard(self, body: Body, *, gone: bool) -> None:
        """Note when something new was heard: a rule may be broken for the moment that it takes to be acted on."""
        meta = body["metadata"]
        place = body["kind"], Key(meta["namespace"], meta["name"])
        known = (meta["uid"], -1 if gone else meta["generation"])
        if place[0] == "MatviewRefreshPolicy" and not gone:
            self._note_missed(body)
        if self._heard_of.get(place) != known:
            self._heard_of[place] = known
            self.news_at[place] = self.ground.now
            self.heard_until = max(self.heard_until, self.ground.clock.now())

    def _note_missed(self, body: Body) -> None:
        uid = body["metadata"]["uid"]
        if not self.owns(body):
            self.missed_before.pop(uid, None)  # another shard counts from now on
        elif uid not in self.missed_before:
            self.missed_before[uid] = (body.get("status", {}).get("missedSlots") or 0) - self.counts.missed[uid]
