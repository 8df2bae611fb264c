"""How many refreshes may run at once: per database, and in all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from matview_operator.domain.errors import MatviewError
from matview_operator.engine.ports import Key


class NoPlace(MatviewError):
    """No place became free in time, or none is given any more because the process ends."""


class Budget:
    """First come, first served per database. A hung server holds its own database's places, and half of all at most."""

    def __init__(self, *, limit_of: Callable[[Key], int], limit_in_all: int) -> None:
        self._limit_of = limit_of
        self._share = (limit_in_all + 1) // 2
        self._in_all = _Gate(lambda: limit_in_all)
        self._gates: dict[Key, _Gate] = {}
        self.closed = False

    @property
    def waiting(self) -> int:
        """How many runs wait for a place."""
        return sum(gate.waiting for gate in (*self._gates.values(), self._in_all))

    @asynccontextmanager
    async def place(self, database: Key, *, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a place on this database; wait for it so long at most. A free one is given however little time is left.

        Raises NoPlace.
        """
        if self.closed:
            raise NoPlace
        gate = self._gates.setdefault(database, _Gate(lambda: min(self._limit_of(database), self._share)))
        try:
            async with AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(seconds):
                        await held.enter_async_context(gate.place())
                        await held.enter_async_context(self._in_all.place())
                except TimeoutError:
                    raise NoPlace from None
                yield
        finally:
            if gate.is_empty and self._gates.get(database) is gate:
                del self._gates[database]

    def limit_changed(self, database: Key) -> None:
        """Let in at once whom a raised limit has room for."""
        if database in self._gates:
            self._gates[database].admit()

    def close(self) -> None:
        """Give no more places; who waits for one gets NoPlace."""
        self.closed = True
        for gate in (*self._gates.values(), self._in_all):
            gate.refuse()


class _Gate:
    """A number of places, and a queue for them. Nothing here waits while it hands places on: no wake-up gets lost."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        """Asked anew each time: it changes."""
        self._taken = 0
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def is_empty(self) -> bool:
        return not self._taken and not self._queue

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        if self._queue or self._taken >= self._limit():
            await self._turn()
        else:
            self._taken += 1
        try:
            yield
        finally:
            self._leave()

    def admit(self) -> None:
        while self._queue and self._taken < self._limit():
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():  # else cancelled a moment ago
                self._taken += 1
                turn.set_result(None)

    def refuse(self) -> None:
        for turn in self._queue:
            if not turn.done():
                turn.set_exception(NoPlace())
        self._queue.clear()

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._queue.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()  # the place was given in the moment of the cancellation
            raise

    def _leave(self) -> None:
        self._taken -= 1
        self.admit()
