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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from matview_operator.domain.result import RefreshResult
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

    async def refresh(self, url: str, *runs: Run, grouped: bool = False) -> tuple[RefreshResult, ...]:
        """Have it do one run, or several as a group whose deadline is the first one's. Raises WorkerDied."""
        assert grouped or len(runs) == 1
        try:
            self._pipe.send((url, runs, grouped))
            results = await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError):
            raise WorkerDied from None
        assert isinstance(results, tuple)
        assert [result.view_name for result in results] == [str(run.view) for run in runs]
        return results

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
                url, runs, grouped = await asyncio.to_thread(pipe.recv)
                pipe.send(await run_all(refresher, url, runs, grouped=grouped))


async def run_all(refresher: Refresher, url: str, runs: Sequence[Run], *, grouped: bool) -> tuple[RefreshResult, ...]:
    """Do one run by itself, or the runs of a group."""
    target = parse_url(url)
    if grouped:
        return await refresher.refresh_group(target=target, runs=runs, timeout_seconds=runs[0].timeout_seconds)
    (run,) = runs
    return (await refresher.refresh(target=target, run=run),)
