"""Ctrl-C and SIGTERM of a command: the server's work is stopped too, and what was done is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

from matview_operator.domain.errors import MatviewError
from matview_operator.domain.result import RefreshResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What came before the end, and what ended it early."""

    results: list[RefreshResult]
    signal: signal.Signals | None = None
    error: MatviewError | None = None


async def collect(results: AsyncIterator[RefreshResult]) -> Collected:
    """Collect results until they end, a signal comes, or there can be no more."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []
    collected: list[RefreshResult] = []

    def stop(number: signal.Signals) -> None:
        # The first one only: a second would cut off the orderly end, which takes seconds at most.
        if not received:
            received.append(number)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell's background job ignores Ctrl-C, which is meant for the command in the foreground.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        async for result in results:
            collected.append(result)  # noqa: PERF401 - what came before an end must not get lost with it
    except asyncio.CancelledError as cancelled:
        if not received:
            raise
        # How the interrupted run ended, which may have been a success.
        collected += [result for result in cancelled.args if isinstance(result, RefreshResult)]
    except MatviewError as error:
        return Collected(results=collected, error=error)
    return Collected(results=collected, signal=received[0] if received else None)
