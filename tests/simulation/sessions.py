"""PostgreSQL's side of one operator process: its executor and its inspector, on servers that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.simulation.ground import Ground
from tests.simulation.server import Job, Server
from tests.unit.ports import MemoryInspector

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.view import ViewName


@dataclass(slots=True, eq=False)
class Call:
    """One call of the executor, as the process made it."""

    owner: str
    """The MatviewDatabase."""
    runs: Sequence[Run]
    at: float
    is_first: bool = False
    """Whether its slot was begun with it in the process; the judge says so."""


class Watcher(Protocol):
    """Is told of each call of the executor."""

    def call_begun(self, call: Call) -> None:
        """The executor was asked for a refresh."""
        ...

    def call_ended(self, call: Call, results: Sequence[RefreshResult]) -> None:
        """The executor answered."""
        ...


@dataclass(slots=True, eq=False)
class Sessions:
    """Fits Executor and Inspector."""

    ground: Ground
    servers: Mapping[str, Server]
    watcher: Watcher
    calls: dict[Call, Job] = field(default_factory=dict)
    """At work now."""
    _inspector: MemoryInspector = field(default_factory=lambda: MemoryInspector(seconds=0))

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        (result,) = await self._work(target, [run], run.timeout_seconds)
        return result

    async def refresh_group(
        self, *, target: ConnectionTarget, runs: Sequence[Run], timeout_seconds: float
    ) -> tuple[RefreshResult, ...]:
        return await self._work(target, runs, timeout_seconds)

    async def connect_ahead(self, *, target: ConnectionTarget, tenant_setting: str | None, count: int) -> None:  # noqa: ARG002 - of the port
        server = self.servers[target.host]
        await asyncio.sleep(10.0 if server.is_hung else self.ground.latency())
        if server.is_down or server.is_hung:
            raise Problem(RefreshReason.CONNECTION_FAILED, "The server does not answer.")

    async def inspect(
        self,
        *,
        target: ConnectionTarget,
        checks: Iterable[ViewCheck],
        allow_superuser: bool,
        managed: Collection[ViewName] = (),
    ) -> Inspection:
        server = self.servers[target.host]
        await asyncio.sleep(10.0 if server.is_hung else self.ground.latency() + self.ground.latency())
        if server.is_down or server.is_hung:
            raise Problem(RefreshReason.CONNECTION_FAILED, "The server does not answer.")
        found = await self._inspector.inspect(
            target=target, checks=checks, allow_superuser=allow_superuser, managed=managed
        )
        bookkeeping = Bookkeeping.INSTALLED if server.has_ledger else Bookkeeping.MISSING
        return replace(found, server=replace(found.server, bookkeeping=bookkeeping))

    def die(self) -> None:
        """The process was killed: its connections are closed by the kernel."""
        for job in self.calls.values():
            job.abandon()

    async def _work(self, target: ConnectionTarget, runs: Sequence[Run], seconds: float) -> tuple[RefreshResult, ...]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[RefreshResult, ...]] = loop.create_future()

        def answered(results: tuple[RefreshResult, ...]) -> None:
            if not answer.done():
                answer.set_result(results)

        job = Job(
            server=self.servers[target.host],
            runs=runs,
            timeout_seconds=seconds,
            started_at=self.ground.clock.now(),
            answer=answered,
        )
        call = Call(owner=target.owner or "", runs=runs, at=self.ground.now)
        self.watcher.call_begun(call)
        self.calls[call] = job
        job.begin()
        cancelled = False
        while True:
            try:
                results = await answer
                break
            except asyncio.CancelledError:
                # The server's answer is waited for nevertheless: COMMIT may have been done.
                cancelled = True
                answer = loop.create_future()
                job.cancel()
        del self.calls[call]
        self.watcher.call_ended(call, results)
        if cancelled:
            raise asyncio.CancelledError(*results)
        return results
