"""Status documents on their way to the API server: the newest per object, written until the server has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from matview_operator.api.database import MatviewDatabaseStatus
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import Transition, transitions
from matview_operator.domain.reading import read_policy_status
from matview_operator.engine.ports import (
    ApiUnavailable,
    Events,
    ObjectGone,
    ObjectRef,
    Status,
    StatusConflict,
    StatusRefused,
    StatusWriter,
)
from matview_operator.engine.registry import Database, Policy, Registry

log = logging.getLogger(__name__)

WRITERS = 4
_MAY_WAIT_SECONDS = 5.0
_LOOKED_EVERY_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_UNTOLD = 20
"""Of so many transitions an object's events tell after an outage, the newest ones."""


@dataclass(frozen=True, slots=True)
class _Document:
    """What is to be written of one object."""

    status: Status
    since: float
    """When the first change came that is not written yet, on the loop's clock."""
    untold: tuple[Transition, ...]
    """What is told in events when a writer first turns to it: they cost as much as the document."""


class Reporter:
    """Keeps the newest unwritten document of each object: bounded memory through any outage."""

    def __init__(
        self,
        *,
        registry: Registry,
        writer: StatusWriter,
        events: Events,
        random: Random,
        gone: Callable[[ObjectRef], None],
        may_wait: Callable[[ObjectRef], bool],
    ) -> None:
        """`gone` is told of an object that the API server has not any more. `may_wait` tells whether an object's status
        may come some seconds later, because there is something more urgent to do.
        """
        self._gone = gone
        self._may_wait = may_wait
        self._registry = registry
        self._writer = writer
        self._events = events
        self._random = random
        self._pending: dict[ObjectRef, _Document] = {}
        self._writing: set[ObjectRef] = set()
        self._changed = asyncio.Event()
        self._is_looking = False
        """Whether a writer looks, now and then, for what may not wait any more."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pending(self) -> int:
        """How many documents wait to be written."""
        return len(self._pending)

    def policy(self, policy: Policy, status: MatviewRefreshPolicyStatus) -> None:
        """Make this the policy's status; nothing happens if it says nothing new."""
        if status == policy.status:
            return
        changes = transitions(policy.status.conditions, status.conditions)
        policy.status = status
        self._enqueue(policy.ref, status, changes)

    def database(self, database: Database, status: MatviewDatabaseStatus) -> None:
        """Make this the database's status; nothing happens if it says nothing new."""
        if status == database.status:
            return
        changes = transitions(database.status.conditions, status.conditions)
        database.status = status
        self._enqueue(database.ref, status, changes)

    def forget(self, ref: ObjectRef) -> None:
        """Drop what waits for a deleted object."""
        self._pending.pop(ref, None)

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as writers:
            for _ in range(WRITERS):
                writers.create_task(self._write_forever())

    async def flush(self, *, seconds: float) -> None:
        """Wait until all is written, for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d statuses were not written", self.pending, extra={"action": "status_flush"})

    def _enqueue(self, ref: ObjectRef, status: Status, changes: list[Transition]) -> None:
        former = self._pending.get(ref) or _Document(status, asyncio.get_running_loop().time(), ())
        self._pending[ref] = _Document(status, former.since, (*former.untold, *changes)[-_UNTOLD:])
        self._idle.clear()
        self._changed.set()

    async def _write_forever(self) -> None:
        failures = 0
        while True:
            ref = self._next()
            if ref is None:
                await self._wait()
                continue
            document = self._pending.pop(ref)
            for transition in document.untold:
                self._events.record(ref, transition)
            document = replace(document, untold=())  # whether it can be written or not
            self._writing.add(ref)
            try:
                await self._write(ref, document)
                failures = 0
            except ApiUnavailable as error:
                failures += 1
                self._pending.setdefault(ref, document)
                pause = error.retry_after or min(_LONGEST_PAUSE_SECONDS, 0.5 * 2 ** min(failures, 6))
                log.warning("status not written: %s", error, extra={"action": "status_write", "object": str(ref.key)})
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.0) if error.retry_after is None else pause)
            except Exception:  # The writers are everybody's: one document's surprise must not stop them.
                log.exception("status not written", extra={"action": "status_write", "object": str(ref.key)})
            finally:
                self._writing.discard(ref)
                # Another writer may have gone to sleep because only this object was left.
                self._changed.set()

    def _next(self) -> ObjectRef | None:
        """The oldest that nobody is writing and that may not wait.

        A status takes more of the operator's time than the run of a small view that it tells of. So when a thousand
        views are due at once, their runs come first.
        """
        too_old = asyncio.get_running_loop().time() - _MAY_WAIT_SECONDS
        for ref, document in self._pending.items():
            if ref not in self._writing and (document.since <= too_old or not self._may_wait(ref)):
                return ref
        return None

    async def _wait(self) -> None:
        """Until something changes, or something that may wait may not any more."""
        if not self._pending and not self._writing:
            self._idle.set()
        self._changed.clear()
        if self._is_looking or not self._pending.keys() - self._writing:
            await self._changed.wait()
            return
        self._is_looking = True  # one is enough to look at thousands that may wait
        try:
            await asyncio.sleep(_LOOKED_EVERY_SECONDS)
        finally:
            self._is_looking = False
            self._changed.set()

    async def _write(self, ref: ObjectRef, document: _Document) -> None:
        status = document.status
        versions = self._registry.resource_versions
        version = versions.get(ref.uid)
        if version is None:
            return  # forgotten meanwhile
        try:
            written = await self._writer.write(ref, status, resource_version=version)
        except ObjectGone:
            # The watch says so too, unless it lost the news.
            self._gone(ref)
        except StatusRefused as error:
            log.error(  # noqa: TRY400 - the error is the API server's; our trace says nothing
                "the API server refuses this status: %s",
                error,
                extra={"action": "status_write", "object": str(ref.key)},
            )
        except StatusConflict as conflict:
            if ref.uid not in versions:
                return
            versions[ref.uid] = conflict.resource_version
            if _is_newer(conflict.stored, status):
                return
            self._pending.setdefault(ref, document)
        else:
            if ref.uid in versions:
                versions[ref.uid] = written


def _is_newer(stored: object, ours: Status) -> bool:
    """Whether the stored status knows of a later slot than ours: then another process has gone on without us."""
    if not isinstance(ours, MatviewRefreshPolicyStatus):
        return False
    theirs = read_policy_status(stored)
    if theirs.last_slot_time is not None and (
        ours.last_slot_time is None or theirs.last_slot_time > ours.last_slot_time
    ):
        return True
    latest = [status.history[0].started_at for status in (theirs, ours) if status.history]
    return len(latest) == 2 and latest[0] > latest[1]  # noqa: PLR2004 - one of each
