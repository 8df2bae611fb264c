"""Sessions that a run has left clean, kept for seconds: connecting costs more than refreshing a small view.

Right only because nothing of a run is left in what the next one gets:

* REFRESH itself runs as a security-restricted operation: a view's query can change no role, make no temporary table,
  prepare nothing, keep no cursor, listen to nothing, and its settings end with the command. What it can leave behind
  are advisory locks of the session, sequences' last values, and where random() goes on. The claim tells whether there
  are locks (leftovers.py); if so, or if the view's query ran and no claim did, DISCARD ALL takes everything away at the
  run's end, so that none is held until the next one. That discards the sequences' values when it begins, and seeds
  random().
* What a guard reads is no such operation: code of the view's owner may run as our role there. After it DISCARD ALL
  takes everything away, and the statements that the server kept for us are not used any more.
* Behind a pooler in transaction mode there is no session that a connection could keep anything in: what a view's query
  leaves behind stays in the pooler's, whether connections are kept here or not.
* A run that failed, was cancelled or timed out closes its connection.
* A custom setting that was once made is '' afterwards and never null again, whatever is discarded. So runs under a
  tenant setting share sessions only with runs under the same setting.
* Two MatviewDatabases never share a session, though they name the same server, role and password.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.wire.connection import CONNECT_SECONDS
from matview_operator.domain.connection import ConnectionTarget

log = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
IDLE_PER_TARGET = 4
"""More gain little: REFRESH keeps a core of the server busy, and each idle backend costs it memory."""
IDLE_IN_ALL = 32
AGE_SECONDS = 60.0
"""What is known of a server, its role and its ledger is as old as the session; a DNS name is looked up that often."""
_RESET_SECONDS = 1.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Held:
    """A session of ours, at work or idle."""

    session: Session
    target: ConnectionTarget
    tenant_setting: str | None
    opened_at: float
    """On the loop's clock."""
    is_idle: bool = False
    is_outdated: bool = False
    """To be closed when its run ends: the Secret says something else now, or the server was lost."""
    expiry: asyncio.TimerHandle | None = None


class Pool:
    """Lends each session to one run at a time. Belongs to one event loop, and to whoever closes it."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS, idle_in_all: int = IDLE_IN_ALL) -> None:
        """Keep sessions for `idle_seconds`; 0 keeps none, so that each run has a connection of its own."""
        self._idle_seconds = idle_seconds
        self._idle_in_all = idle_in_all
        self._held: dict[Session, _Held] = {}
        """The one that became idle last is the last."""
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def lend(self, target: ConnectionTarget, *, tenant_setting: str | None, seconds: float) -> Session:
        """Return an idle session of this very target, or connect within so many seconds. Raises Problem.

        `tenant_setting` is the custom setting that the run will make, if any. What the session is first asked may have
        to be asked again of another one: see Session.lent.
        """
        for held in [*self._held.values()]:
            if held.target.owner == target.owner and held.target != target:
                self._outdate(held, "another target")
        while (fitting := self._fitting(target, tenant_setting)) is not None:
            if not fitting.session.closed and not self._is_old(fitting):
                self._wake(fitting)
                fitting.session.lent()
                return fitting.session
            self._dismiss(fitting)
        return (await self._open(target, tenant_setting=tenant_setting, seconds=seconds)).session

    async def fill(self, target: ConnectionTarget, *, tenant_setting: str | None, count: int) -> None:
        """Connect until so many sessions of this very target are idle or at work, or no more may be idle.

        For runs that will come within seconds. One after another, so that nobody's run waits long for a core. Raises
        Problem.
        """
        for _ in range(min(count, IDLE_PER_TARGET) - self._ready(target, tenant_setting)):
            idle = sum(held.is_idle for held in self._held.values())
            if self._closed or self._idle_seconds <= 0 or idle >= self._idle_in_all:
                return
            held = await self._open(target, tenant_setting=tenant_setting, seconds=CONNECT_SECONDS)
            await self.take_back(held.session, is_clean=True)

    def _ready(self, target: ConnectionTarget, tenant_setting: str | None) -> int:
        return sum(
            held.target == target
            and held.tenant_setting == tenant_setting
            and not (held.is_outdated or held.session.closed or self._is_old(held, in_seconds=IDLE_SECONDS))
            for held in self._held.values()
        )

    async def _open(self, target: ConnectionTarget, *, tenant_setting: str | None, seconds: float) -> _Held:
        session = await Session.open(target, seconds=seconds)
        for held in [*self._held.values()]:
            if held.target.server == target.server and held.session.server_started_at != session.server_started_at:
                self._outdate(held, "another server")
        held = self._held[session] = _Held(
            session=session, target=target, tenant_setting=tenant_setting, opened_at=asyncio.get_running_loop().time()
        )
        return held

    async def take_back(self, session: Session, *, is_clean: bool) -> None:
        """End a run's use of its session: keep it if it may be kept, else close it. Never raises but CancelledError.

        `is_clean`: the run ended as it should. Cancelled, it goes on in the background.
        """
        held = self._held[session]
        if is_clean and not session.needs_reset and self._may_keep(held):
            self._keep(held)
            return
        task = asyncio.create_task(self._take_back(held, is_clean=is_clean))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await asyncio.shield(task)

    def forget_server(self, target: ConnectionTarget) -> None:
        """Close every idle session with this server at once, and those at work when their run ends.

        For when a connection was lost or the server is not the primary any more.
        """
        for held in [*self._held.values()]:
            if held.target.server == target.server:
                self._outdate(held, "server lost")

    async def close(self) -> None:
        """Close what is idle, and from now on everything that is taken back; wait for it all, within seconds."""
        self._closed = True
        for held in [*self._held.values()]:
            self._outdate(held, "shutdown")
        if self._closing:
            await asyncio.wait(self._closing)

    def _fitting(self, target: ConnectionTarget, tenant_setting: str | None) -> _Held | None:
        # The one used last: its server's caches are the warmest, and the others come to their end.
        return next(
            (
                held
                for held in reversed(self._held.values())
                if held.is_idle and held.target == target and held.tenant_setting == tenant_setting
            ),
            None,
        )

    async def _take_back(self, held: _Held, *, is_clean: bool) -> None:
        if is_clean and self._may_keep(held):
            try:
                async with asyncio.timeout(_RESET_SECONDS):
                    await held.session.reset()
            except (TimeoutError, OSError, *queries.DRIVER_ERRORS) as error:
                log.debug("not kept: %s", type(error).__name__, extra={"action": "connection_reset"})
            else:
                # Asked again: meanwhile the Secret may have changed, or the pool may have been closed.
                if self._may_keep(held):
                    self._keep(held)
                    return
        del self._held[held.session]
        await held.session.close()

    def _may_keep(self, held: _Held) -> bool:
        return not (
            self._closed
            or self._idle_seconds <= 0
            or held.is_outdated
            or held.session.closed
            or held.session.in_transaction
            or self._is_old(held)
        )

    def _keep(self, held: _Held) -> None:
        held.is_idle = True
        self._held[held.session] = self._held.pop(held.session)
        held.expiry = asyncio.get_running_loop().call_later(self._idle_seconds, self._dismiss, held)
        idle = [each for each in self._held.values() if each.is_idle]
        of_target = [each for each in idle if each.target == held.target]
        if len(of_target) > IDLE_PER_TARGET:
            self._dismiss(of_target[0])
        elif len(idle) > self._idle_in_all:
            self._dismiss(idle[0])

    def _is_old(self, held: _Held, *, in_seconds: float = 0.0) -> bool:
        return asyncio.get_running_loop().time() + in_seconds - held.opened_at > AGE_SECONDS

    def _wake(self, held: _Held) -> None:
        held.is_idle = False
        if held.expiry is not None:
            held.expiry.cancel()
            held.expiry = None

    def _outdate(self, held: _Held, why: str) -> None:
        held.is_outdated = True
        if held.is_idle:
            log.debug("idle connection dropped: %s", why, extra={"action": "connection_dropped"})
            self._dismiss(held)

    def _dismiss(self, held: _Held) -> None:
        """Close one that nobody uses, without waiting for it."""
        self._wake(held)
        del self._held[held.session]
        task = asyncio.get_running_loop().create_task(held.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
