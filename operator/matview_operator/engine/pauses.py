"""Who waits for another attempt, and what ends the waiting before its time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from matview_operator.engine.ports import Key


@dataclass(slots=True, eq=False)
class _Pause:
    """One slot's waiting."""

    stirred: asyncio.Event
    woken: bool = False


class Pauses:
    """Who waits for another attempt; whoever knows better ends the waiting. Each then looks itself at what changed."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[_Pause]] = defaultdict(set)
        self.closed = False

    async def sleep(self, policy: Key, *, seconds: float | None, stirred: asyncio.Event) -> bool:
        """Wait so long, or until it is stirred; returns whether the policy was woken before."""
        stirred.clear()
        pause = _Pause(stirred)
        self._waiting[policy].add(pause)
        alarm = None if seconds is None else asyncio.get_running_loop().call_later(seconds, stirred.set)
        try:
            await stirred.wait()
        finally:
            if alarm is not None:
                alarm.cancel()
            self._waiting[policy].discard(pause)
            if not self._waiting[policy]:
                del self._waiting[policy]
        return pause.woken

    def wake(self, policy: Key) -> None:
        """End the policy's waiting: something changed that it may wait for, or newer work of it is due."""
        for pause in self._waiting.get(policy, ()):
            pause.woken = True
            pause.stirred.set()

    def close(self) -> None:
        """End all waiting: the process ends."""
        self.closed = True
        for policy in self._waiting:
            self.wake(policy)
