"""How many refreshes may run at once: per database, and in all. Whoever waits for a place waits fairly."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from matview_operator.domain.errors import MatviewError
from matview_operator.engine.ports import Key
from matview_operator.engine.rounds import NamespaceRounds, Rounds

LONG_SECONDS = 10.0
"""Who holds his place for longer than this, hung or not, keeps no database from its first one."""

Turn: TypeAlias = asyncio.Future[None]
"""A place in the queue, and with a result a place to run in."""


class NoPlace(MatviewError):
    """No place became free in time, or none is given any more because the process ends."""


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
        self._queues: dict[Key, _Queue] = {}
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
        return sum(queue.length for queue in self._queues.values())

    @property
    def is_short(self) -> bool:
        """Whether anybody waits for a place."""
        return any(self._queues.values())

    @asynccontextmanager
    async def place(
        self, database: Key, *, tenant: str | None = None, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Hold a place on this database; wait for it so long at most. A free one is given however little time is left.

        `tenant`: whose turn among the database's it takes; None is one of its own. Raises NoPlace.
        """
        if self.closed:
            raise NoPlace
        turn: Turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(database, _Queue()).put(tenant, turn)
        self._line_up(database)
        self._admit()
        if not turn.done():
            try:
                async with asyncio.timeout(seconds):
                    await self._wait(database, tenant, turn)
            except TimeoutError:
                raise NoPlace from None
        try:
            yield
        finally:
            self._leave(database, turn)

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

    async def _wait(self, database: Key, tenant: str | None, turn: Turn) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(database, turn)  # the place was given in the moment of the cancellation
            elif database in self._queues:
                self._queues[database].remove(tenant, turn)
                self._line_up(database)
                self._admit()
            raise

    def _leave(self, database: Key, turn: Turn) -> None:
        self._taken -= 1
        self._recent.pop(turn, None)
        self._queues[database].taken -= 1
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
            if turn is not None:
                queue.taken += 1
                self._taken += 1
                self._recent[turn] = asyncio.get_running_loop().time()
                turn.set_result(None)
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


class _Queue:
    """Who waits for a place on one database: tenants in turns, and first come first served for each."""

    def __init__(self) -> None:
        self.taken = 0
        self._rounds: Rounds[str | None] = Rounds()
        self._turns: dict[str | None, OrderedDict[Turn, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._rounds)

    @property
    def length(self) -> int:
        return sum(len(turns) for turns in self._turns.values())

    def put(self, tenant: str | None, turn: Turn) -> None:
        self._turns.setdefault(tenant, OrderedDict())[turn] = None
        self._rounds.add(tenant)

    def take(self) -> Turn | None:
        """The next one who still waits."""
        while self._rounds:
            tenant = self._rounds.turn()
            turn, _ = self._turns[tenant].popitem(last=False)
            self.remove(tenant, turn)
            if not turn.done():  # else cancelled a moment ago
                return turn
        return None

    def remove(self, tenant: str | None, turn: Turn) -> None:
        turns = self._turns.get(tenant)
        if turns is not None:
            turns.pop(turn, None)
            if not turns:
                del self._turns[tenant]
                self._rounds.discard(tenant)

    def refuse(self) -> None:
        for tenant, turns in [*self._turns.items()]:
            for turn in [*turns]:
                self.remove(tenant, turn)
                if not turn.done():
                    turn.set_exception(NoPlace())
