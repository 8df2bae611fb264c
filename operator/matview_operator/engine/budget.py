"""How many refreshes may run at once: per database, and in all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from matview_operator.engine.ports import Key


class Budget:
    """First come, first served per database. A hung server holds its own database's places only, and few of all."""

    def __init__(self, *, limit_of: Callable[[Key], int], limit_in_all: int) -> None:
        self._limit_of = limit_of
        self._in_all = asyncio.Semaphore(limit_in_all)
        self._running: dict[Key, int] = {}
        self._waiting: dict[Key, int] = {}
        self._freed: dict[Key, asyncio.Condition] = {}

    @property
    def waiting(self) -> int:
        """How many runs wait for a place."""
        return sum(self._waiting.values())

    @asynccontextmanager
    async def place(self, database: Key) -> AsyncIterator[None]:
        """Hold a place on this database. The limit is asked anew each time, so that a change takes effect at once."""
        freed = self._freed.setdefault(database, asyncio.Condition())
        self._waiting[database] = self._waiting.get(database, 0) + 1
        try:
            async with freed:
                await freed.wait_for(lambda: self._running.get(database, 0) < self._limit_of(database))
                self._running[database] = self._running.get(database, 0) + 1
        finally:
            self._waiting[database] -= 1
        try:
            async with self._in_all:
                yield
        finally:
            self._running[database] -= 1
            async with freed:
                freed.notify()
            if not self._running[database] and not self._waiting[database]:
                for table in (self._running, self._waiting, self._freed):
                    table.pop(database, None)
