"""One heap for every policy's next due time. A policy has one entry at most."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from matview_operator.engine.ports import Clock, Key

LONGEST_SLEEP_SECONDS = 1.0
"""The wall clock is looked at this often, so that one that is set forward delays nothing for long."""
LEAD_SECONDS = 0.75
"""Enough to connect; and not a whole second, for then what is due at the one before begins."""
_STALE_ENTRIES = 1000
_NOTHING = timedelta()
_SECOND = timedelta(seconds=1)
_STEP_BACK = timedelta(seconds=1)
"""Less is a clock that is being kept right."""


class _Entry(NamedTuple):
    fires_at: datetime
    """Less than a second after it is due."""
    due: datetime


class Timers:
    """Calls `fire(key, due)` when an entry is to fire, in order of time. `fire` must not block."""

    def __init__(
        self,
        *,
        clock: Clock,
        fire: Callable[[Key, datetime], None],
        soon: Callable[[Iterable[Key]], None] = lambda _: None,
        set_back: Callable[[], None] = lambda: None,
    ) -> None:
        """`soon` is told what will be due at an instant, LEAD_SECONDS before it fires or as soon as it is next;
        `set_back`, of a clock that was set back: entries of the time before may be years ahead now.
        """
        self._clock = clock
        self._fire = fire
        self._soon = soon
        self._told: datetime | None = None
        """The instant that `soon` was told of last."""
        self._set_back = set_back
        self._due: dict[Key, _Entry] = {}
        # Entries that were replaced or cancelled stay in the heap until they surface, and are then told by _due.
        self._heap: list[tuple[_Entry, Key]] = []
        self._changed = asyncio.Event()
        self._caught_up = asyncio.Event()
        self.last_beat: datetime | None = None
        """When the loop last went round; a liveness probe looks at it."""

    def set(self, key: Key, due: datetime, *, begins_after: timedelta = _NOTHING) -> None:
        """Set or move the policy's one entry; it fires so long after it is due, less than a second."""
        entry = _Entry(due + begins_after, due)
        if self._due.get(key) == entry:
            return
        self._due[key] = entry
        if len(self._heap) > 2 * len(self._due) + _STALE_ENTRIES:
            # Policies that are changed over and over leave entries that would not surface for months.
            self._heap = [(each, of) for of, each in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (entry, key))
        if self._heap[0] == (entry, key):
            self._changed.set()

    def cancel(self, key: Key) -> None:
        """Take the policy's entry away, if it has one."""
        self._due.pop(key, None)

    def due(self, key: Key) -> datetime | None:
        """When the policy is due next."""
        entry = self._due.get(key)
        return None if entry is None else entry.due

    def late(self, instant: datetime) -> dict[Key, datetime]:
        """What is due by then and has not fired yet, and when it will."""
        return {key: entry.fires_at for entry, key in self._within(instant + _SECOND) if entry.due <= instant}

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
            self._tell_soon()
            alarm = asyncio.get_running_loop().call_later(self._pause(), self._changed.set)
            try:
                await self._changed.wait()
            finally:
                alarm.cancel()

    def _tell_soon(self) -> None:
        if self._heap and self._seconds_left() <= LEAD_SECONDS and self._heap[0][0].due != self._told:
            due = self._told = self._heap[0][0].due
            self._soon(key for entry, key in self._within(due + _SECOND) if entry.due == due)

    def _pause(self) -> float:
        """Seconds until something is to fire, or to be told of."""
        if not self._heap:
            return LONGEST_SLEEP_SECONDS
        seconds = self._seconds_left()
        return min(LONGEST_SLEEP_SECONDS, max(0.0, seconds - LEAD_SECONDS if seconds > LEAD_SECONDS else seconds))

    def _seconds_left(self) -> float:
        return (self._heap[0][0].fires_at - self._clock.now()).total_seconds()

    def _within(self, instant: datetime) -> Iterator[tuple[_Entry, Key]]:
        """What fires until then, in no order: in a heap, nothing below an entry fires before it."""
        below = [0]
        while below:
            index = below.pop()
            if index < len(self._heap) and self._heap[index][0].fires_at <= instant:
                entry, key = self._heap[index]
                if self._due.get(key) == entry:
                    yield entry, key
                below += (2 * index + 1, 2 * index + 2)

    def _is_behind(self) -> bool:
        return bool(self._heap) and self._heap[0][0].fires_at <= self._clock.now()

    def _fire_next(self, now: datetime) -> None:
        while self._heap and self._heap[0][0].fires_at <= now:
            entry, key = heapq.heappop(self._heap)
            if self._due.get(key) == entry:
                del self._due[key]
                self._fire(key, entry.due)
                break
