"""The attempts of one slot that are under way: a task each, and none outlives the slot."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from matview_operator.engine.turns import StaysDue


class Strands:
    """Left, it waits until all has ended. What is under way is stopped, on the server too, by a cancellation, which may
    come while it waits, and if the slot stays due: then each attempt still tells what came of it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Nothing is under way yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is under way any more."""
        if isinstance(error, asyncio.CancelledError | StaysDue):
            self._cancel()
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError:
                self._cancel()

    def begin(self, attempt: Coroutine[Any, Any, None]) -> None:
        """Have an attempt go on by itself; it raises nothing."""
        task = asyncio.create_task(attempt)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
