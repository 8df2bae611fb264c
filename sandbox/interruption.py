"""Ctrl-C and SIGTERM for programs that own servers: stop once, clean up to the end."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_Result = TypeVar("_Result")


class Interrupted(BaseException):
    """A signal ended the work; everything is cleaned up."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + self.signal


def interrupt_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise Interrupted wherever the main thread is, until `until_signalled` begins."""
    for number in _SIGNALS:
        signal.signal(number, _raise)


async def until_signalled(
    work: Coroutine[None, None, _Result], *, on_signal: Callable[[], None], on_impatience: Callable[[], None]
) -> _Result:
    """Run `work` to its end; the first signal cancels it.

    Further signals call `on_impatience` and nothing else: a clean-up that is cut short would leave servers behind.
    Raises Interrupted when a signal did end it.
    """
    task = asyncio.ensure_future(work)
    seen: list[int] = []

    def receive(number: int) -> None:
        seen.append(number)
        if len(seen) == 1:
            # First of all: the terminal may be gone, and with it whoever could be told.
            task.cancel()
            on_signal()
        else:
            on_impatience()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, receive, number)
    try:
        return await task
    except (asyncio.CancelledError, Exception) as error:
        # Ctrl-C on a terminal reaches our commands too, and one that it ended may have failed before we were told.
        if seen:
            raise Interrupted(seen[0]) from error
        raise


async def to_the_end(call: Callable[[], _Result]) -> _Result:
    """Run a blocking call in a thread. A cancellation waits for its end: what it starts must not be lost."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Its own failure matters no longer, but has to be looked at.
        with suppress(Exception):
            running.result()
        raise cancelled
    return running.result()


def _raise(number: int, frame: object) -> NoReturn:
    del frame
    raise Interrupted(number)
