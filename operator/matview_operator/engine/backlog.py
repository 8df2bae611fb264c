"""Which objects have a status that is not written yet: the newest of each, whichever may wait behind the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from matview_operator.domain.conditions import Transition
from matview_operator.engine.ports import ObjectRef, Status

_MAY_WAIT_SECONDS = 5.0
_LOOKED_EVERY_SECONDS = 0.5
_UNTOLD = 20
"""Of so many transitions an object's events tell after an outage, the newest ones."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is to be written of one object."""

    status: Status
    since: float
    """When the first change came that is not written yet, on the loop's clock."""
    untold: tuple[Transition, ...]
    """What is told in events when a writer first turns to it: they cost as much as the document."""


class Backlog:
    """Bounded by the number of objects, through any outage. Whoever takes a document has to release its object.

    A status takes more of the operator's time than the run of a small view that it tells of. So when a thousand views
    are due at once, their runs come first.
    """

    def __init__(self, *, may_wait: Callable[[ObjectRef], bool]) -> None:
        """`may_wait` tells whether an object's status may come some seconds later."""
        self._may_wait = may_wait
        self._urgent: dict[ObjectRef, Document] = {}
        self._patient: dict[ObjectRef, Document] = {}
        """Whose may wait, as it seemed when they came."""
        self._taken: set[ObjectRef] = set()
        self._takers: list[asyncio.Future[None]] = []
        """Who has found nothing to take; one is woken for each document."""
        self._is_looking = False
        """Whether a taker looks, now and then, for what may not wait any more."""
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._patient)

    def is_written(self, ref: ObjectRef) -> bool:
        """Whether nothing of the object is to be written, or is being written."""
        return not (ref in self._urgent or ref in self._patient or ref in self._taken)

    async def emptied(self) -> None:
        """Wait until all is written."""
        await self._empty.wait()

    def put(self, ref: ObjectRef, status: Status, changes: list[Transition]) -> None:
        """Make this what is to be written of the object; `changes` are to be told with it."""
        former = self._urgent.get(ref) or self._patient.get(ref)
        since, untold = (asyncio.get_running_loop().time(), ()) if former is None else (former.since, former.untold)
        self._put(ref, Document(status, since, (*untold, *changes)[-_UNTOLD:]))

    def put_back(self, ref: ObjectRef, document: Document) -> None:
        """Have a document that was taken written later, unless there is a newer one; its changes have been told."""
        if ref not in self._urgent and ref not in self._patient:
            self._put(ref, replace(document, untold=()))

    def forget(self, ref: ObjectRef) -> None:
        """Drop what waits for a deleted object."""
        self._urgent.pop(ref, None)
        self._patient.pop(ref, None)

    async def take(self) -> tuple[ObjectRef, Document]:
        """Wait for one that may not wait, of an object that nobody has taken; the oldest first."""
        while (ref := self._next()) is None:
            if not self and not self._taken:
                self._empty.set()
            await self._wait()
        document = self._urgent.pop(ref, None) or self._patient.pop(ref)
        self._taken.add(ref)
        self._wake()
        return ref, document

    def release(self, ref: ObjectRef) -> None:
        """Let the object's next document be taken."""
        self._taken.discard(ref)
        self._wake()

    def _put(self, ref: ObjectRef, document: Document) -> None:
        if self._may_wait(ref):
            self._urgent.pop(ref, None)
            self._patient[ref] = document
        else:
            self._patient.pop(ref, None)
            self._urgent[ref] = document
        self._empty.clear()
        self._wake()

    def _next(self) -> ObjectRef | None:
        for ref in self._urgent:
            if ref not in self._taken:
                return ref
        too_old = asyncio.get_running_loop().time() - _MAY_WAIT_SECONDS
        for ref, document in self._patient.items():
            if ref not in self._taken:
                # The oldest speaks for all: who looks at each of thousands, each time, does little else.
                return ref if document.since <= too_old or not self._may_wait(ref) else None
        return None

    def _wake(self) -> None:
        if self._urgent or (self._patient and not self._is_looking):
            while self._takers:
                taker = self._takers.pop()
                if not taker.done():
                    taker.set_result(None)
                    break

    async def _wait(self) -> None:
        if not self._patient or self._is_looking:
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
            return
        self._is_looking = True
        try:
            await asyncio.sleep(_LOOKED_EVERY_SECONDS)
        finally:
            self._is_looking = False
