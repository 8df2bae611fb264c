"""How many refreshes may run at once: per database, and in all. Whoever waits for a place waits fairly."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from matview_operator.engine.ports import Key
from matview_operator.engine.queue import NoPlace, Queue, State, Turn
from matview_operator.engine.rounds import NamespaceRounds

LONG_SECONDS = 10.0
"""Who holds his place for longer than this, hung or not, keeps no database from its first one."""


class Budget:
    """Gives places: in turns to namespaces, to a namespace's databases, to a database's tenants; to each in order.

    A database holds as many as it is allowed, and half of all at most. When all are taken, one that runs nothing gets
    a place nevertheless as soon as not all of them were taken within LONG_SECONDS. So whatever number of databases
    hangs, in each LONG_SECONDS as many others as there are places get one, and never are more taken than there are and
    one for each database. Nothing here waits while it hands places on: no wake-up gets lost.
    """

    def __init__(self, *, limit_of: Callable[[Key], int], limit_in_all: int) -> None:
        """`limit_of` is asked anew each time: it changes."""
        self._limit_of = limit_of
        self._limit_in_all = limit_in_all
        self._queues: dict[Key, Queue] = {}
        """By database: those that have anything running or waiting."""
        self._ready = NamespaceRounds()
        """Where somebody waits and one more is allowed."""
        self._idle = NamespaceRounds()
        """Where somebody waits and nothing runs."""
        self._taken = 0
        self._recent: OrderedDict[Turn, float] = OrderedDict()
        """When, on the loop's clock, the places were taken that may not have been held for long yet, oldest first."""
        self._alarm: asyncio.TimerHandle | None = None
        self.closed = False

    @property
    def waiting(self) -> int:
        """How many runs wait for a place."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def is_short(self) -> bool:
        """Whether anybody waits for a place."""
        return any(self._queues.values())

    def queue(self, database: Key, *, tenant: str | None = None) -> Turn:
        """Stand in the line, until it is released. Raises NoPlace when none is given any more.

        `tenant`: whose turn among the database's it takes; None is one of its own.
        """
        if self.closed:
            raise NoPlace
        turn = Turn(database, tenant)
        self._queues.setdefault(database, Queue()).put(turn)
        self._line_up(database)
        self._admit()
        return turn

    @asynccontextmanager
    async def place(self, turn: Turn, *, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a place; wait for it so long at most. In the end the turn is released. Raises NoPlace."""
        try:
            await turn.come(seconds=seconds)
            yield
        finally:
            self.release(turn)

    def release(self, turn: Turn) -> None:
        """Leave the line, or give the place back; nothing happens if that was done."""
        was, turn.state = turn.state, State.OVER
        match was:
            case State.WAITS:
                self._queues[turn.database].remove(turn)
            case State.HAS_A_PLACE:
                self._taken -= 1
                self._recent.pop(turn, None)
                self._queues[turn.database].taken -= 1
            case _:
                return
        self._line_up(turn.database)
        self._admit()

    def limit_changed(self, database: Key) -> None:
        """Let in at once whom a raised limit has room for."""
        if database in self._queues:
            self._line_up(database)
            self._admit()

    def close(self) -> None:
        """Give no more places; who waits for one gets NoPlace."""
        self.closed = True
        for database, queue in [*self._queues.items()]:
            queue.refuse()
            self._line_up(database)
        self._admit()

    def _line_up(self, database: Key) -> None:
        """Have the database stand in the lines where it belongs now, and forget it where there is nothing to know."""
        queue = self._queues[database]
        for line, belongs in (
            (self._ready, queue.taken < self.allowed(database)),
            (self._idle, not queue.taken),
        ):
            if queue and belongs:
                line.add(database)
            else:
                line.discard(database)
        if not queue.taken and not queue:
            del self._queues[database]
        if not self._queues:
            self._ready, self._idle = NamespaceRounds(), NamespaceRounds()  # with nothing to do nobody is ahead

    def _admit(self) -> None:
        while (database := self._next()) is not None:
            queue = self._queues[database]
            turn = queue.take()
            queue.taken += 1
            self._taken += 1
            self._recent[turn] = asyncio.get_running_loop().time()
            turn.reach(State.HAS_A_PLACE)
            self._line_up(database)
        if self._alarm is not None and not self._idle:
            self._alarm.cancel()
            self._alarm = None
        elif self._alarm is None and self._idle:
            # Here as many places as there are were taken lately. A loop may ring a moment early: hence a moment later.
            oldest = next(iter(self._recent.values()))
            self._alarm = asyncio.get_running_loop().call_at(oldest + LONG_SECONDS + 0.001, self._ring)

    def _next(self) -> Key | None:
        """Whose turn it is to have a place, if there is one to be had."""
        while self._ready and self._taken < self._limit_in_all:
            database = self._ready.turn()
            if self._queues[database].taken < self.allowed(database):
                return database
            self._ready.discard(database)  # its limit was lowered
        if not self._idle:
            return None
        now = asyncio.get_running_loop().time()
        while self._recent and next(iter(self._recent.values())) + LONG_SECONDS <= now:
            self._recent.popitem(last=False)
        return self._idle.turn() if len(self._recent) < self._limit_in_all else None

    def _ring(self) -> None:
        self._alarm = None
        self._admit()

    def allowed(self, database: Key) -> int:
        """How many refreshes of a database may run at once: half of all at most."""
        return min(self._limit_of(database), (self._limit_in_all + 1) // 2)
