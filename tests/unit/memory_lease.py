"""A Lease in memory: compare-and-swap as the API server does it, slow, unreachable, or losing its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from tests.unit.ports import VirtualClock

from matview_operator.domain.lease import Lease
from matview_operator.engine.leadership import Leadership, LeaseChanged
from matview_operator.engine.ports import ApiUnavailable


@dataclass(slots=True)
class MemoryLease:
    """What is stored, and every version that was."""

    stored: Lease | None = None
    versions: list[Lease] = field(default_factory=list)
    _version: int = 0

    def put(self, lease: Lease) -> Lease:
        """Store it, whatever was there."""
        self._version += 1
        self.stored = replace(lease, version=str(self._version))
        self.versions.append(self.stored)
        return self.stored


@dataclass(slots=True)
class Line:
    """One process's way to the Lease; fits the engine's port."""

    lease: MemoryLease
    there: Callable[[], float] = lambda: 0.01
    """Seconds until a request arrives."""
    back: Callable[[], float] = lambda: 0.01
    """Seconds until its answer does."""
    cut: bool = False
    writes: int = 0
    _under_way: set[asyncio.Task[Lease]] = field(default_factory=set)

    async def read(self) -> Lease | None:
        await self._pass(self.there)
        found = self.lease.stored
        await self._pass(self.back)
        return found

    async def write(self, lease: Lease) -> Lease:
        self.writes += 1
        # What was sent arrives, though its sender may not wait for it any more.
        task = asyncio.create_task(self._arrive(lease))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _arrive(self, lease: Lease) -> Lease:
        await self._pass(self.there)
        stored = self.lease.stored
        if (None if stored is None else stored.version) != lease.version:
            raise LeaseChanged
        written = self.lease.put(lease)
        await self._pass(self.back)
        return written

    async def _pass(self, seconds: Callable[[], float]) -> None:
        await asyncio.sleep(seconds())
        if self.cut:
            raise ApiUnavailable("the API server is out of reach")


@dataclass(slots=True)
class Process:
    """One process that wants to lead. While it is paused, its clock goes on and it does nothing."""

    name: str
    line: Line
    leadership: Leadership
    task: asyncio.Task[None] | None = None
    lost: bool = False

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        """End as by SIGKILL."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _run(self) -> None:
        await self.leadership.acquire()
        self.lost = await self.leadership.keep()


def process(name: str, lease: MemoryLease, *, skew: float = 0, rate: float = 1, seed: int = 7) -> Process:
    """A process whose own clock is ahead by `skew` seconds, and runs `rate` times as fast."""
    line = Line(lease)
    leadership = Leadership(
        store=line,
        me=name,
        clock=VirtualClock(),
        random=Random(seed),  # noqa: S311 - jitter
        seconds=lambda: skew + rate * asyncio.get_running_loop().time(),
    )
    return Process(name, line, leadership)
