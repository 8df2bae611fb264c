"""An event loop on virtual time: whose callbacks run, and in which order, a seed decides. Nothing ever waits."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any


class Life:
    """One process's being alive: what belongs to it stops between two steps when it is killed or paused."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.dead = False
        self.paused = False
        self.parked: list[asyncio.Handle] = []
        """What would have run while it was paused."""


_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)

WORLD = Context()
"""What belongs to no process: users, the API server, databases."""


def context_of(life: Life) -> Context:
    """A context whose tasks and callbacks, and all that they start, belong to this process."""
    context = copy_context()
    context.run(_LIFE.set, life)
    return context


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address: a history is to be the same each time."""

    count = 0

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        NumberedTask.count += 1
        self.number = NumberedTask.count
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


_ROUNDS_AT_ONCE = 20_000
_AT_ONCE_SECONDS = 0.001
"""So often callbacks may call back in such a time; then somebody goes round in circles."""


class Busy(Exception):
    """Something never waits: on a real machine it would take all of a core."""


class VirtualLoop(base_events.BaseEventLoop):
    """Jumps to the next timer when nothing is ready. Timers of one instant fire in an order that `random` draws."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """A heap. By number those of one instant are told apart, which is quicker than to compare handles."""
        self._timed = 0
        self._rounds = 0
        self._round_began = 0.0
        self._random = random
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.faults: list[str] = []
        """Exceptions that nobody caught."""
        self._is_over = False
        NumberedTask.count = 0
        self.set_task_factory(self._task)
        self.set_exception_handler(self._unhandled)

    def time(self) -> float:
        """Seconds since the history began."""
        return self._now

    # As in asyncio, without its checks: half of a history's time would go there.
    def call_soon(  # type: ignore[override]  # with less to say of the arguments
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Have it called in the next round."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Have it called at that time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timed += 1
        heapq.heappush(self._timers, (when, self._timed, timer))
        return timer

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Call back later as the world, which no death of a process stops."""
        self.call_at(self._now + seconds, callback, *args, context=WORLD)

    def resume(self, life: Life) -> None:
        """Let a paused process go on with what it missed."""
        life.paused = False
        self._ready.extend(life.parked)
        life.parked = []

    def close_tasks(self) -> None:
        """End what never ended, dead processes' tasks too; called within the loop's last step, or after it."""
        if self._is_over:
            return  # it was the history itself that was closed
        self._is_over = True
        for task in [*self._tasks]:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            for _ in range(2):  # a task group wants to wait for its tasks first
                with suppress(RuntimeError):
                    if coroutine is not None and task is not asyncio.current_task(self):
                        coroutine.close()
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()

    def _task(self, loop: Any, coro: Any, **options: Any) -> Any:
        task = NumberedTask(coro, loop=loop, **options)
        self._tasks[task] = None
        task.add_done_callback(self._forget, context=WORLD)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Coroutines that are closed one inside the other complain of each other.
        if not (self._is_over and isinstance(context.get("exception"), RuntimeError)):
            self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _write_to_self(self) -> None:
        """There are no other threads."""

    def _process_events(self, event_list: object) -> None:
        """There are no sockets."""

    def _run_once(self) -> None:
        ready = self._ready
        if not ready or (self._timers and self._timers[0][0] <= self._now):
            ready.extend(self._due())
        if self._now > self._round_began + _AT_ONCE_SECONDS:
            self._round_began, self._rounds = self._now, 0
        self._rounds += 1
        if self._rounds > _ROUNDS_AT_ONCE:
            raise Busy(f"no time passes, but there is always more to do: {ready}")
        for _ in range(len(ready)):
            if not ready:
                break  # this was the last step
            handle = ready.popleft()
            if handle._cancelled:
                continue
            life = handle._context.get(_LIFE)  # type: ignore[attr-defined]
            if life is None or not (life.dead or life.paused):
                handle._run()
            elif not life.dead:
                life.parked.append(handle)

    def _due(self) -> list[asyncio.Handle]:
        """The timers whose time has come; if there is nothing else to do, it comes now."""
        timers, pop = self._timers, heapq.heappop
        while timers and timers[0][2]._cancelled:
            pop(timers)
        if not self._ready and not self._stopping:
            assert timers, "everybody waits for nothing"
            # Time never stands still: who asks to wait for less than a float can tell waits all the same.
            self._now = max(self._now + 1e-9, timers[0][0])
        due: list[asyncio.Handle] = []
        while timers and timers[0][0] <= self._now:
            due.append(pop(timers)[2])
        if len(due) > 1:
            self._random.shuffle(due)
        return due
