"""Workers: processes that run the executor for a test, to be killed at any instant, as a pod's process would be."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.domain.connection import parse_url
from matview_operator.domain.result import RefreshResult

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from matview_operator.domain.run import Run

# One process imports all this once; workers are forked from it, within milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


class WorkerDied(Exception):
    """The process is gone, and with it what it knew."""


class Worker:
    """One process, one run at a time."""

    def __init__(self) -> None:
        self._pipe, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        # Else its end would stay open when it dies.
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    async def refresh(self, url: str, run: Run) -> RefreshResult:
        """Have it do a run. Raises WorkerDied."""
        try:
            self._pipe.send((url, run))
            result = await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError):
            raise WorkerDied from None
        assert isinstance(result, RefreshResult)
        return result

    def kill(self) -> None:
        """End it by SIGKILL; it is gone when this returns. Nothing happens the second time."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()


def _serve(pipe: Connection) -> None:
    asyncio.run(_work(pipe))


async def _work(pipe: Connection) -> None:
    async with Pool() as pool:
        refresher = Refresher(pool)
        with suppress(EOFError):
            while True:
                url, run = await asyncio.to_thread(pipe.recv)
                pipe.send(await refresher.refresh(target=parse_url(url), run=run))
