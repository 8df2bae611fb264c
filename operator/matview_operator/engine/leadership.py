"""Who of several processes works: the holder of a Lease, as long as it can be sure of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Protocol

from matview_operator.domain.errors import MatviewError
from matview_operator.domain.lease import Lease, LeaseTiming, Sighting, claimed, is_free, sighted
from matview_operator.engine.ports import ApiUnavailable, Clock

log = logging.getLogger(__name__)


class LeaseChanged(MatviewError):
    """The Lease is not the one any more that a write is about."""


class LeadershipLost(MatviewError):
    """Another process may work now."""


class LeaseStore(Protocol):
    """One Lease, by its name."""

    async def read(self) -> Lease | None:
        """Return it as the API server has it now; raises ApiUnavailable."""
        ...

    async def write(self, lease: Lease) -> Lease:
        """Create it if it has no version, else replace that version; raises LeaseChanged or ApiUnavailable."""
        ...


def since_boot() -> float:
    """Seconds that nobody sets, and that go on while the machine sleeps, where the system counts so."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leadership:
    """One process's part. Once lost it never comes back: the process ends, and another one begins anew."""

    def __init__(
        self,
        *,
        store: LeaseStore,
        me: str,
        clock: Clock,
        random: Random,
        seconds: Callable[[], float] = since_boot,
        timing: LeaseTiming | None = None,
    ) -> None:
        """`me` is no other process's name, of the past neither. `seconds` decides, `clock` is for people."""
        self._store = store
        self._me = me
        self._clock = clock
        self._random = random
        self._seconds = seconds
        self._timing = timing or LeaseTiming()
        self._sighting: Sighting | None = None
        self._is_newest = False
        """Whether the sighting is what we wrote ourselves, by a request that was answered."""
        self._is_unanswered = False
        """Whether the newest write may have been done though nobody said so."""
        self._until: float | None = None
        self._turn = asyncio.Lock()
        self._told: str | None = None

    def holds(self) -> bool:
        """Whether no other process may hold the Lease now. To be asked at each use: one may have slept meanwhile."""
        return self._until is not None and self._seconds() < self._until

    async def acquire(self) -> None:
        """Stand by until the Lease is ours."""
        log.info("standing by", extra={"action": "leader_standby", "identity": self._me})
        while True:
            if await self._attempt(seconds=self._timing.request_seconds):
                break
            # Not all at the same time.
            await asyncio.sleep(self._timing.retry_seconds * self._random.uniform(0.8, 1.0))
        log.info("leading from now on", extra={"action": "leader_acquired", "identity": self._me})

    async def keep(self) -> bool:
        """Renew the Lease as long as it is ours; return whether it was lost, and not released."""
        pause = self._timing.renew_seconds
        while self.holds():
            await asyncio.sleep(min(pause, self._remaining()))
            renewed = self.holds() and await self._attempt(seconds=min(self._timing.request_seconds, self._remaining()))
            pause = self._timing.renew_seconds if renewed else self._timing.retry_seconds
        lost = self._until is not None
        self._until = None
        if lost:
            log.error("no longer leading; nothing is started any more", extra={"action": "leader_lost"})
        return lost

    async def release(self) -> None:
        """Let another take the Lease at once, if it is ours; nothing may run any more. Best effort."""
        async with self._turn:
            held, self._until = self.holds(), None
            try:
                async with asyncio.timeout(self._timing.request_seconds):
                    lease = await self._ours() if held or self._is_unanswered else None
                    if lease is None:
                        return
                    await self._store.write(replace(lease, holder=None, renewed_at=self._clock.now()))
            except (ApiUnavailable, LeaseChanged, TimeoutError) as error:
                log.warning("the Lease was not released: %s", error, extra={"action": "leader_release"})
            else:
                log.info("the Lease is free", extra={"action": "leader_released"})

    async def _ours(self) -> Lease | None:
        """The newest version of the Lease, if we have it."""
        if self._is_newest and self._sighting is not None:
            return self._sighting.lease
        # Whoever ended us in the middle of a write did not wait for its answer.
        lease = await self._store.read()
        return lease if lease is not None and lease.holder == self._me else None

    def _remaining(self) -> float:
        return 0.0 if self._until is None else max(0.0, self._until - self._seconds())

    async def _attempt(self, *, seconds: float) -> bool:
        """Take or renew the Lease if it may be; whether that was done and answered."""
        async with self._turn:
            try:
                async with asyncio.timeout(seconds):
                    return await self._take()
            except (ApiUnavailable, LeaseChanged, TimeoutError) as error:
                # The write may have been done nevertheless: the next attempt reads first.
                self._is_newest = False
                self._tell(logging.WARNING, str(error) or "the API server does not answer")
            except Exception:  # Whatever a Lease holds that somebody wrote, it ends no leadership but by its time.
                self._is_newest = False
                log.exception("no Lease", extra={"action": "leader_renew", "leader": self.holds()})
            return False

    async def _take(self) -> bool:
        if not self._is_newest:
            lease = await self._store.read()
            self._sighting = sighted(self._sighting, lease, now=self._seconds())
            if not is_free(self._sighting, me=self._me, now=self._seconds(), timing=self._timing):
                assert self._sighting is not None  # else it were free
                if self.holds():
                    self._until = self._seconds()  # another one has it
                self._tell(logging.INFO, f"{self._sighting.lease.holder} leads")
                return False
        former = None if self._sighting is None else self._sighting.lease
        sent = self._seconds()
        self._is_newest, self._is_unanswered = False, True
        written = await self._store.write(claimed(former, me=self._me, at=self._clock.now(), timing=self._timing))
        self._sighting = Sighting(lease=written, since=sent)
        self._is_newest, self._is_unanswered = True, False
        # From before the request: no other process can have seen it earlier.
        self._until = sent + self._timing.deadline_seconds
        self._told = None
        return True

    def _tell(self, level: int, why: str) -> None:
        """Log why the Lease is not ours, or not renewed: once, not every second."""
        if why != self._told:
            self._told = why
            log.log(level, "no Lease: %s", why, extra={"action": "leader_renew", "leader": self.holds()})
