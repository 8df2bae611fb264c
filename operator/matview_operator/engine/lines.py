"""The line of each view: the slots for which it is due or under way, who waits for them, and how the last one went."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from matview_operator.domain.precedence import Precedence
from matview_operator.domain.slot import Slot
from matview_operator.domain.view import ViewName
from matview_operator.engine.ports import Key

Step = tuple[ViewName, ...]
"""Views that are refreshed as one: a group's, or a single one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """The refresh that failed, because of which others are not worth while."""

    view: ViewName
    policy: str
    """Its policy's name; the namespace is the same."""


@dataclass(slots=True, eq=False, kw_only=True)
class Due:
    """One slot or request of one policy, as far as a line knows it."""

    slot: Slot
    stirred: asyncio.Event = field(init=False)
    """Set when something that it waits for has ended; there when it begins."""
    asked_at: datetime | None = None
    """When it found out what it waits for."""


@dataclass(slots=True, eq=False)
class Part:
    """One view of one slot."""

    asked: Precedence[Key] | None = None
    """By which order it was found out what it waits for."""
    waits: bool = True
    """Whether it may still wait for another view."""
    fault: Blame | None = None
    """Whom to blame while a refresh that failed, its own or one that it waits for, is only to be tried again."""
    gatherings: list[Gathering] = field(default_factory=list)

    def found(self, due: Due, fault: Blame | None) -> None:
        """Have those look who wait for it, if that is news of it. It is `due`'s part."""
        if self.fault != fault:
            self.fault = fault
            for gathering in self.gatherings:
                gathering.found(due, fault)


@dataclass(slots=True, eq=False)
class Gathering:
    """Refreshes of one view that all have to end. Those who wait for the same ones share it."""

    line: Line
    pending: set[Due]
    """Whose have not ended yet."""
    faults: dict[Due, Blame]
    """Whose are only to be tried again, or wait for such, and whom to blame."""
    is_due_with_us: bool
    """Whether one of them waits itself for all that we would have to wait for."""
    waiting: list[Due] = field(default_factory=list)

    @property
    def rests(self) -> bool:
        """Whether none is at work, or will be at once: all that are left are only to be tried again."""
        return len(self.faults) == len(self.pending)

    def holds(self, due: Due) -> bool:
        """Whether it has to be waited for."""
        return not self.rests or self.fault(due) is not None

    def fault(self, due: Due) -> Blame | None:
        """Whom to blame if what has to be waited for are next attempts and no more.

        Requests wait for those of no other one, because a person waits for it; and their own concern no slot.
        """
        if not self.rests or self.line.is_fresh_for(due):
            return None
        if due.slot.request is not None:
            return self.faults.get(due)
        return next((fault for other, fault in self.faults.items() if other.slot.request is None), None)

    def found(self, due: Due, fault: Blame | None) -> None:
        """Have those look who wait for this one's refresh."""
        if fault is None:
            self.faults.pop(due, None)
        else:
            self.faults[due] = fault
        self._stir()

    def ended(self, due: Due) -> None:
        """Wake who waits, when it was the last, or the last that was not to be tried again."""
        self.pending.discard(due)
        self.faults.pop(due, None)
        if self.rests:
            self._stir()
        if not self.pending:
            self.waiting.clear()

    def _stir(self) -> None:
        for due in self.waiting:
            due.stirred.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a view's refresh for a schedule's slot failed."""

    due_at: datetime
    ended_at: datetime
    blame: Blame


@dataclass(slots=True)
class Line:
    """What is due or under way for one view of one database, and how it went last."""

    parts: dict[Due, Part] = field(default_factory=dict)
    arrivals: int = 0
    newest: tuple[tuple[int, datetime, Precedence[Key]], Gathering] | None = None
    """The gathering that was made last for a schedule's slot: after how many arrivals, due when, by which order."""
    failure: Failure | None = None
    fresh: datetime | None = None
    """The newest instant as of which it was refreshed."""

    def gather(self, due: Due, order: Precedence[Key]) -> Gathering | None:
        """What is due or under way now and to be waited for; None if nothing is."""
        slot, of_a_schedule = due.slot, due.slot.request is None
        alike = (self.arrivals, slot.due_at, order)
        if of_a_schedule and self.newest is not None and self.newest[0] == alike and self.newest[1].pending:
            return self.newest[1]
        parts = {
            other: part
            for other, part in self.parts.items()
            if other is due
            or not part.waits
            or (
                of_a_schedule
                and other.slot.request is None
                and other.slot.due_at <= slot.due_at
                # What waits by another order than ours may wait for us.
                and part.asked in (None, order)
            )
        }
        if not parts:
            return None
        gathering = Gathering(
            line=self,
            pending=set(parts),
            faults={other: part.fault for other, part in parts.items() if part.fault is not None},
            is_due_with_us=any(
                other is due or (other.slot.request is None and other.slot.due_at >= slot.due_at) for other in parts
            ),
        )
        for part in parts.values():
            part.gatherings.append(gathering)
        if of_a_schedule:
            self.newest = alike, gathering
        return gathering

    def is_fresh_for(self, due: Due) -> bool:
        """Whether the view was refreshed for this slot's instant, and so what it reads was before."""
        return self.fresh is not None and self.fresh >= due.slot.due_at

    def failed_with(self, due: Due) -> Blame | None:
        """Whom to blame if the view failed for this slot's instant or later, or while this slot waited."""
        failure = self.failure
        if failure is None or due.asked_at is None:
            return None
        together = failure.due_at >= due.slot.due_at or failure.ended_at >= due.asked_at
        return failure.blame if together else None

    def refreshed(self, due_at: datetime) -> None:
        """The view is known to be fresh as of this instant."""
        self.fresh = due_at if self.fresh is None else max(self.fresh, due_at)
        if self.failure is not None and self.failure.due_at <= due_at:
            self.failure = None

    def failed(self, failure: Failure) -> None:
        """The view's refresh failed; what others did for the same instant or later counts for more."""
        known = (self.fresh, None if self.failure is None else self.failure.due_at)
        if all(at is None or at < failure.due_at for at in known):
            self.failure = failure


class Walk:
    """From views to those that they read, each once, as far as somebody goes on."""

    def __init__(self, order: Precedence[Key], step: Step) -> None:
        self._reads = order.reads
        self._seen = set(step)
        self._next: list[ViewName] = []
        for view in step:
            self.go_on(view)

    def go_on(self, view: ViewName) -> None:
        """Have those looked at that this one reads."""
        self._next += self._reads.get(view, ())

    def __iter__(self) -> Iterator[ViewName]:
        while self._next:
            view = self._next.pop()
            if view not in self._seen:
                self._seen.add(view)
                yield view
