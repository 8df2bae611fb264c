"""One heap for every policy's next due time. A policy has one entry at most."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from matview_operator.engine.ports import Clock, Key

LONGEST_SLEEP_SECONDS = 1.0
"""The wall clock is looked at this often, so that one that is set forward delays nothing for long."""
_STALE_ENTRIES = 1000
_STEP_BACK = timedelta(seconds=1)
"""Less is a clock that is being kept right."""


class Timers:
    """Calls `fire(key, due)` when an entry is due, in order of due time. `fire` must not block."""

    def __init__(
        self, *, clock: Clock, fire: Callable[[Key, datetime], None], set_back: Callable[[], None] = lambda: None
    ) -> None:
        """`set_back` is told of a clock that was set back: entries of the time before may be years ahead now."""
        self._clock = clock
        self._fire = fire
        self._set_back = set_back
        self._due: dict[Key, datetime] = {}
        # Entries that were replaced or cancelled stay in the heap until they surface, and are then told by _due.
        self._heap: list[tuple[datetime, Key]] = []
        self._changed = asyncio.Event()
        self._caught_up = asyncio.Event()
        self.last_beat: datetime | None = None
        """When the loop last went round; a liveness probe looks at it."""

    def set(self, key: Key, due: datetime) -> None:
        """Set or move the policy's one entry."""
        if self._due.get(key) == due:
            return
        self._due[key] = due
        if len(self._heap) > 2 * len(self._due) + _STALE_ENTRIES:
            # Policies that are changed over and over leave entries that would not surface for months.
            self._heap = [(each, of) for of, each in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (due, key))
        if self._heap[0] == (due, key):
            self._changed.set()

    def cancel(self, key: Key) -> None:
        """Take the policy's entry away, if it has one."""
        self._due.pop(key, None)

    def due(self, key: Key) -> datetime | None:
        """When the policy is due next."""
        return self._due.get(key)

    async def caught_up(self) -> None:
        """Wait until everything that is due has been fired; after a second it is not waited for any more."""
        if self._is_behind():
            self._caught_up.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_SLEEP_SECONDS):
                    await self._caught_up.wait()

    async def run(self) -> None:
        """Fire entries until cancelled."""
        while True:
            now, before = self._clock.now(), self.last_beat
            self.last_beat = now
            if before is not None and before - now > _STEP_BACK:
                self._set_back()
            self._fire_next(now)
            if self._is_behind():
                await asyncio.sleep(0)  # what was fired begins while thousands more are due
                continue
            self._caught_up.set()
            self._changed.clear()  # after firing, which sets it
            pause = LONGEST_SLEEP_SECONDS
            if self._heap:
                pause = min(pause, max(0.0, (self._heap[0][0] - self._clock.now()).total_seconds()))
            alarm = asyncio.get_running_loop().call_later(pause, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                alarm.cancel()

    def _is_behind(self) -> bool:
        return bool(self._heap) and self._heap[0][0] <= self._clock.now()

    def _fire_next(self, now: datetime) -> None:
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self._fire(key, due)
                break
