"""Status documents on their way to the API server: the newest per object, written until the server has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from matview_operator.api.database import MatviewDatabaseStatus
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import transitions
from matview_operator.domain.reading import read_policy_status
from matview_operator.engine.backlog import Backlog, Document
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
_LONGEST_PAUSE_SECONDS = 30.0


class Reporter:
    """Makes events of the changes of statuses, and has a few writers write the newest of each object."""

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
        self._registry = registry
        self._writer = writer
        self._events = events
        self._random = random
        self._backlog = Backlog(may_wait=may_wait)

    @property
    def pending(self) -> int:
        """How many documents wait to be written."""
        return len(self._backlog)

    def has_written(self, ref: ObjectRef) -> bool:
        """Whether the object's newest status is not waiting, and not being written."""
        return self._backlog.is_written(ref)

    def policy(self, policy: Policy, status: MatviewRefreshPolicyStatus) -> None:
        """Make this the policy's status; nothing happens if it says nothing new."""
        if status == policy.status:
            return
        changes = transitions(policy.status.conditions, status.conditions)
        policy.status = status
        self._backlog.put(policy.ref, status, changes)

    def database(self, database: Database, status: MatviewDatabaseStatus) -> None:
        """Make this the database's status; nothing happens if it says nothing new."""
        if status == database.status:
            return
        changes = transitions(database.status.conditions, status.conditions)
        database.status = status
        self._backlog.put(database.ref, status, changes)

    def forget(self, ref: ObjectRef) -> None:
        """Drop what waits for a deleted object."""
        self._backlog.forget(ref)

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as writers:
            for _ in range(WRITERS):
                writers.create_task(self._write_forever())

    async def flush(self, *, seconds: float) -> None:
        """Wait until all is written, for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._backlog.emptied()
        except TimeoutError:
            log.warning("%d statuses were not written", self.pending, extra={"action": "status_flush"})

    async def _write_forever(self) -> None:
        failures = 0
        while True:
            ref, document = await self._backlog.take()
            for transition in document.untold:  # whether it can be written or not
                self._events.record(ref, transition)
            try:
                await self._write(ref, document)
                failures = 0
            except ApiUnavailable as error:
                failures += 1
                self._backlog.put_back(ref, document)
                pause = error.retry_after or min(_LONGEST_PAUSE_SECONDS, 0.5 * 2 ** min(failures, 6))
                log.warning("status not written: %s", error, extra={"action": "status_write", "object": str(ref.key)})
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.0) if error.retry_after is None else pause)
            except Exception:  # The writers are everybody's: one document's surprise must not stop them.
                log.exception("status not written", extra={"action": "status_write", "object": str(ref.key)})
            finally:
                self._backlog.release(ref)

    async def _write(self, ref: ObjectRef, document: Document) -> None:
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
            if _is_newer(conflict.stored, status):
                return  # what we have to say next is compared with it as well, until its news have come
            versions[ref.uid] = conflict.resource_version
            self._backlog.put_back(ref, document)
        else:
            if ref.uid in versions:
                versions[ref.uid] = written


def _is_newer(stored: object, ours: Status) -> bool:
    """Whether the stored status knows of something later than ours: then another process has gone on without us."""
    if not isinstance(ours, MatviewRefreshPolicyStatus):
        return False
    theirs = read_policy_status(stored)
    if (theirs.observed_generation or 0) > (ours.observed_generation or 0):
        return True  # it may be another shard's by a change that we have not heard of yet
    if theirs.last_slot_time is not None and (
        ours.last_slot_time is None or theirs.last_slot_time > ours.last_slot_time
    ):
        return True
    if not (theirs.history and ours.history):
        return False
    newest = theirs.history[0]
    former = [entry.correlation_id for entry in ours.history[1:]]
    if newest.correlation_id is not None and newest.correlation_id in former:
        return False  # ours goes on from there, whatever a clock said that was set back since
    return newest.started_at > ours.history[0].started_at
