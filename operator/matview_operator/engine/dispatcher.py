"""Hands slots to the runner: one of a policy in flight, the newest waiting one kept, requests before slots."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from matview_operator.domain.slot import Slot
from matview_operator.engine.ports import Clock, Key

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lane:
    """What one policy has in flight and waiting."""

    task: asyncio.Task[None] | None = None
    current: Slot | None = None
    """What the task works on."""
    begun: bool = False
    """Whether the task has something to stop."""
    slot: Slot | None = None
    request: Slot | None = None


class Dispatcher:
    """Owns the tasks that work on slots. Memory is bounded by the number of policies."""

    def __init__(
        self,
        *,
        clock: Clock,
        work: Callable[[Key, Slot], Coroutine[Any, Any, None]],
        superseded: Callable[[Key, Slot], None],
        late: Callable[[Key, Slot], None],
        taken: Callable[[Key, Slot], None],
        over: Callable[[Key, Slot], None],
        holds: Callable[[Key, Slot], bool],
    ) -> None:
        """`work` runs a slot and reports it. `holds` says whether it has to wait; then `look` is called in time.
        `superseded` and `late` are told of slots that will not run: a newer one became due while one before still ran,
        or startingDeadlineSeconds have passed. `taken` is told of each slot that was taken up, and `over` of each of
        those once, when it has ended or will not run.
        """
        self._clock = clock
        self._work = work
        self._superseded = superseded
        self._late = late
        self._taken = taken
        self._over = over
        self._holds = holds
        self._lanes: dict[Key, _Lane] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        """Runs of deleted policies that their servers have not let go of yet."""
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many slots and requests wait behind one of their own policy."""
        return sum((lane.slot is not None) + (lane.request is not None) for lane in self._lanes.values())

    def has_newer(self, key: Key) -> bool:
        """Whether a slot or request of the policy waits behind the one in flight."""
        lane = self._lanes.get(key)
        return lane is not None and (lane.slot or lane.request) is not None

    def submit(self, key: Key, slot: Slot) -> None:
        """Take a slot or request up, at once or after the one in flight."""
        if self._closed:
            return
        lane = self._lanes.setdefault(key, _Lane())
        self._taken(key, slot)
        if slot.request is not None:
            self._drop(key, lane.request)
            lane.request = slot
        elif lane.slot is not None and lane.slot.due_at > slot.due_at:
            # One that was begun in vain comes back: it is the newer one that waits.
            self._superseded(key, slot)
            self._drop(key, slot)
        else:
            if lane.slot is not None:
                self._superseded(key, lane.slot)
            self._drop(key, lane.slot)
            lane.slot = slot
        self._pump(key, lane)

    def is_busy(self, key: Key) -> bool:
        """Whether the policy has something in flight or waiting."""
        return key in self._lanes

    def works_on_a_slot(self, key: Key) -> bool:
        """Whether a slot of the policy is in flight."""
        lane = self._lanes.get(key)
        return lane is not None and lane.current is not None and lane.current.request is None

    def forget_slot(self, key: Key) -> None:
        """Drop the waiting slot: its schedule is no longer the policy's."""
        if key in self._lanes:
            self._drop(key, self._lanes[key].slot)
            self._lanes[key].slot = None
            self.look(key)

    def look(self, key: Key) -> None:
        """Begin what waited and need not wait any more."""
        lane = self._lanes.get(key)
        if lane is not None and not self._closed:
            self._pump(key, lane)

    def begins(self, key: Key) -> None:
        """To be told by the work when it can be stopped from now on, and will say what was interrupted."""
        if key in self._lanes:
            self._lanes[key].begun = True

    def stop(self, key: Key) -> None:
        """Cancel the run in flight, on the server too; its report says what was interrupted.

        One that has not begun finds out by itself that it may not, and answers its request.
        """
        lane = self._lanes.get(key)
        if lane is not None and lane.task is not None and lane.begun:
            lane.task.cancel()

    def forget(self, key: Key) -> None:
        """Drop everything of a deleted policy; a run in flight is cancelled, on the server too."""
        lane = self._lanes.pop(key, None)
        for slot in () if lane is None else (lane.current, lane.slot, lane.request):
            self._drop(key, slot)
        if lane is not None and lane.task is not None:
            self._stopping.add(lane.task)
            lane.task.add_done_callback(self._stopping.discard)
            lane.task.cancel()

    async def drain(self, *, seconds: float) -> None:
        """Take nothing more, let runs end for so long, then cancel them and wait until the server has let go."""
        self._closed = True
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            self._stopping |= late
        if self._stopping:
            await asyncio.wait(self._stopping)

    def _pump(self, key: Key, lane: _Lane) -> None:
        if lane.task is None and (slot := self._next(key, lane)) is not None:
            lane.begun, lane.current = False, slot
            lane.task = asyncio.create_task(self._work(key, slot), name=f"slot {key} {slot.id}")
            lane.task.add_done_callback(lambda task: self._ended(key, lane, task))
        if lane.task is None and lane.request is None and lane.slot is None:
            self._lanes.pop(key, None)

    def _next(self, key: Key, lane: _Lane) -> Slot | None:
        """Take what may begin now out of the lane, if there is anything."""
        request, slot = lane.request, lane.slot
        if request is not None and not self._holds(key, request):
            lane.request = None
            return request
        if slot is None:
            return None
        is_late = self._clock.now() > slot.deadline
        if not is_late and self._holds(key, slot):
            return None
        lane.slot = None
        if is_late:
            self._late(key, slot)
            self._drop(key, slot)
            return None
        return slot

    def _ended(self, key: Key, lane: _Lane, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # One policy's bug stops nobody else; its next slot tries again.
            log.error(
                "slot failed unexpectedly", exc_info=task.exception(), extra={"action": "slot", "policy": str(key)}
            )
        ended, lane.task, lane.current = lane.current, None, None
        if self._lanes.get(key) is lane:
            self._drop(key, ended)
            if not self._closed:
                self._pump(key, lane)

    def _drop(self, key: Key, slot: Slot | None) -> None:
        if slot is not None:
            self._over(key, slot)
