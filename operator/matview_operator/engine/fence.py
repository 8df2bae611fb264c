"""Ports that do nothing any more once another process may work: asked at each use, for this one may have slept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.conditions import Transition
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.engine.ports import (
    ApiUnavailable,
    Clock,
    Events,
    Executor,
    ObjectRef,
    Status,
    StatusWriter,
)


class FencedExecutor:
    """Begins no run without leadership. What was begun before is the locks' and the ledger's business."""

    def __init__(self, executor: Executor, *, holds: Callable[[], bool], clock: Clock) -> None:
        self._executor = executor
        self._holds = holds
        self._clock = clock

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        """As the executor; INTERRUPTED without leadership."""
        if not self._holds():
            return self._interrupted(run)
        return await self._executor.refresh(target=target, run=run)

    async def refresh_group(
        self, *, target: ConnectionTarget, runs: Sequence[Run], timeout_seconds: float
    ) -> tuple[RefreshResult, ...]:
        """As the executor; INTERRUPTED without leadership."""
        if not self._holds():
            return tuple(map(self._interrupted, runs))
        return await self._executor.refresh_group(target=target, runs=runs, timeout_seconds=timeout_seconds)

    async def connect_ahead(self, *, target: ConnectionTarget, tenant_setting: str | None, count: int) -> None:
        """As the executor; nothing without leadership."""
        if self._holds():
            await self._executor.connect_ahead(target=target, tenant_setting=tenant_setting, count=count)

    def _interrupted(self, run: Run) -> RefreshResult:
        now = self._clock.now()
        return run.result(
            RefreshOutcome.INTERRUPTED,
            started_at=now,
            ended_at=now,
            reason=RefreshReason.SHUTDOWN,
            message="Not begun: this process no longer leads. The slot stays due.",
        )


class FencedWriter:
    """Writes no status without leadership. What is under way then names a version that the next leader's replaces."""

    def __init__(self, writer: StatusWriter, *, holds: Callable[[], bool]) -> None:
        self._writer = writer
        self._holds = holds

    async def write(self, ref: ObjectRef, status: Status, *, resource_version: str) -> str:
        """As the writer; raises ApiUnavailable without leadership."""
        if not self._holds():
            raise ApiUnavailable("this process no longer leads")
        return await self._writer.write(ref, status, resource_version=resource_version)


class FencedEvents:
    """Tells nothing without leadership."""

    def __init__(self, events: Events, *, holds: Callable[[], bool]) -> None:
        self._events = events
        self._holds = holds

    def record(self, ref: ObjectRef, transition: Transition) -> None:
        """As the events; dropped without leadership."""
        if self._holds():
            self._events.record(ref, transition)
