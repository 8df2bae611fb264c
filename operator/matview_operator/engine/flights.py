"""Runs of one view for many policies: one is at work, and whom it covers does not run.

It is the ledger's rule, for what this process knows by itself: a run that succeeded covers every slot of the same
database object, view and lock that was due when it began. Options like a guard or a timeout do not matter: the rows are
there, whoever asked for them and how.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Consistency, Isolation, MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.covering import Cover, cover_of
from matview_operator.domain.errors import MatviewError
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.slot import Slot
from matview_operator.domain.view import ViewName
from matview_operator.engine.budget import Budget
from matview_operator.engine.ports import Clock, Key
from matview_operator.engine.queue import Turn
from matview_operator.engine.registry import Database

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 30.0
"""For so long policies that were due with a run, but had other views to refresh first, need not ask the server."""
REMEMBERED_VIEWS = 10_000
_GRACE_SECONDS = 5.0
"""A run ends within its timeout and so long."""


class FollowedInVain(MatviewError):
    """Another policy's run does not cover this one, which has to ask for a place."""

    def __init__(self, *, alone: bool) -> None:
        """`alone`: the other one lasts too long; the server is to say who is at work there."""
        super().__init__("another policy's run does not cover this one")
        self.alone = alone


SharedView: TypeAlias = tuple[str, int, ViewName]
"""UID and generation of the MatviewDatabase, under which the name means one view, and the view's name."""


def shared_view(database: Database, spec: MatviewRefreshPolicySpec, view: ViewSpec) -> SharedView | None:
    """Under GLOBAL the view; None for a run that is its own whoever else refreshes it, such as a group's."""
    is_own = spec.isolation is Isolation.TENANT or spec.consistency is Consistency.GROUP
    return None if is_own else (database.ref.uid, database.generation, ViewName(view.schema_name, view.name))


@dataclass(slots=True, kw_only=True)
class Flight:
    """One run that has a place to run in."""

    began_at: datetime
    """The operator's clock, before the executor was asked: what it found on the server was there then or later."""
    landed: asyncio.Event = field(default_factory=asyncio.Event)
    lock_held: RefreshResult | None = None
    """Its result, if that was all it found."""


@dataclass(slots=True)
class Seat:
    """A run's turn: a place to run in, or, where there is no need of one, what is known without."""

    known: RefreshResult | None = None
    result: RefreshResult | None = None
    """What came of the run; to be set by who ran."""


class Flights:
    """Runs of shared views at work, and who waits for them. A run waits in the budget's queue or for one other run."""

    def __init__(self, *, budget: Budget, clock: Clock) -> None:
        self._budget = budget
        self._clock = clock
        self._flying: dict[SharedView, Flight] = {}
        self._queued: defaultdict[SharedView, set[asyncio.Timeout]] = defaultdict(set)
        """What wakes those who wait for a place for this view."""
        self._covers: OrderedDict[SharedView, tuple[float, Cover]] = OrderedDict()
        """What the newest runs showed, and when they ended on the loop's clock, oldest first."""
        self.following = 0
        """How many wait for another policy's run to end."""

    def concern(self, view: SharedView) -> bool:
        """Whether a run of the view is at work, or one is remembered: a slot may have no need of a place."""
        return view in self._flying or self._remembered(view) is not None

    @asynccontextmanager
    async def seat(
        self,
        database: Key,
        run: Run,
        slot: Slot,
        *,
        shared: SharedView | None,
        seconds: float | None,
        follows: Callable[[], None],
        turn: Turn | None = None,
    ) -> AsyncIterator[Seat]:
        """Wait for a place for this run, so many seconds at most, or for a run that may cover it: `follows` is told.

        `shared`: what shared_view says. `turn`: where it stands in the line for a place already. Raises NoPlace and
        FollowedInVain.
        """
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while True:
            known = None if shared is None else self._known(shared, run)
            flight = None if shared is None else self._flying.get(shared)
            if turn is not None and (known or flight) is not None:
                self._budget.release(turn)
            if known is None and shared is not None and flight is not None:
                follows()
                known = await self._followed(flight, run, slot, shared)
            if known is not None:
                yield Seat(known=known)
                return
            async with AsyncExitStack() as held:
                left = None if until is None else until - asyncio.get_running_loop().time()
                turn, mine = None, turn or self._budget.queue(database, tenant=run.tenant_id)
                if not await self._place(held, mine, shared, seconds=left):
                    continue
                async with self._flying_as(shared, run) as seat:
                    yield seat
                return

    async def _followed(self, flight: Flight, run: Run, slot: Slot, view: SharedView) -> RefreshResult:
        """What another run tells of this one when it has ended. Raises FollowedInVain."""
        if not await self._landing(flight, run, slot):
            raise FollowedInVain(alone=True)
        known = self._known(view, run)
        if known is None and flight.lock_held is not None and flight.began_at >= slot.due_at:
            known = _repeated(flight.lock_held, run)
        if known is None:
            raise FollowedInVain(alone=False)
        return known

    async def _landing(self, flight: Flight, run: Run, slot: Slot) -> bool:
        """Wait until a run has ended: as long as this one could take if that may cover it, else as long as it may wait.

        Whether it did.
        """
        seconds = max(0.0, (slot.deadline - self._clock.now()).total_seconds())
        if run.due_at is not None and flight.began_at >= run.due_at:
            seconds = run.timeout_seconds + _GRACE_SECONDS
        self.following += 1
        try:
            async with asyncio.timeout(seconds):
                await flight.landed.wait()
        except TimeoutError:
            return False
        finally:
            self.following -= 1
        return True

    async def _place(self, held: AsyncExitStack, turn: Turn, view: SharedView | None, *, seconds: float | None) -> bool:
        """Wait for a place; False if another run of the view begins before."""
        place = self._budget.place(turn, seconds=seconds)
        if view is None:
            await held.enter_async_context(place)
            return True
        waker = asyncio.timeout(None)
        self._queued[view].add(waker)
        try:
            async with waker:
                await held.enter_async_context(place)
        except TimeoutError:
            return False
        finally:
            self._queued[view].discard(waker)
            if not self._queued[view]:
                del self._queued[view]
        return view not in self._flying  # places may be given to two of them in one moment

    @asynccontextmanager
    async def _flying_as(self, view: SharedView | None, run: Run) -> AsyncIterator[Seat]:
        seat = Seat()
        if view is None:
            yield seat
            return
        flight = self._flying[view] = Flight(began_at=self._clock.now())
        now = asyncio.get_running_loop().time()
        for waker in self._queued.pop(view, ()):
            waker.reschedule(now)
        try:
            yield seat
        finally:
            # However it ended: nobody waits for a run that was deleted, cancelled or failed.
            del self._flying[view]
            if seat.result is not None:
                self._remember(view, cover_of(seat.result, began_at=flight.began_at, due_at=run.due_at))
                if seat.result.outcome is RefreshOutcome.SKIPPED_LOCK_HELD:
                    flight.lock_held = seat.result
            flight.landed.set()

    def _remember(self, view: SharedView, cover: Cover | None) -> None:
        now = asyncio.get_running_loop().time()
        if cover is not None:
            self._covers.pop(view, None)
            self._covers[view] = now, cover
        while self._covers:
            ended, _ = next(iter(self._covers.values()))
            if len(self._covers) <= REMEMBERED_VIEWS and now - ended <= REMEMBERED_SECONDS:
                break
            self._covers.popitem(last=False)

    def _remembered(self, view: SharedView) -> Cover | None:
        ended, cover = self._covers.get(view, (0.0, None))
        return cover if asyncio.get_running_loop().time() - ended <= REMEMBERED_SECONDS else None

    def _known(self, view: SharedView, run: Run) -> RefreshResult | None:
        cover = self._remembered(view)
        if (
            cover is None
            or run.due_at is None
            # Later than now: somebody set the clock back, and nothing is known of what came before what.
            or not run.due_at <= cover.up_to <= self._clock.now()
        ):
            return None
        result = cover.result_for(run)
        log.info("%s %s", result.outcome.value, result.view_name, extra=result.log_fields())
        return result


def _repeated(lock_held: RefreshResult, run: Run) -> RefreshResult:
    """What another policy's run was told is true of this one's as well: the lock is the same."""
    return lock_held.model_copy(update={"tenant_id": run.tenant_id, "correlation_id": run.correlation_id})
