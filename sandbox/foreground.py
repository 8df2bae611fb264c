"""What demo and sandbox begin with: the programs, the disk, and then work that a signal may end at any moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from sandbox.cache import require_disk
from sandbox.controlplane.binaries import Binaries
from sandbox.environment import forget_servers
from sandbox.interruption import until_signalled
from sandbox.stack import DISK_BYTES, MEMORY_BYTES, START_SECONDS
from sandbox.workspace import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sandbox.terminal import Terminal

_Result = TypeVar("_Result")


def in_foreground(
    work: Callable[[], Coroutine[None, None, _Result]], *, what: str, on_signal: Callable[[], None], terminal: Terminal
) -> _Result:
    """Run `work` to its end, or until a signal cancels it; `what` is it that starts, for the user.

    Says before anything slow how long it takes and what it needs. `on_signal` is called at the first signal.
    Call `interrupt_on_signals` before. Raises Interrupted when a signal ended it, SandboxError.
    """
    forget_servers()
    Binaries.obtain(console=terminal)
    require_disk(path=ROOT, needed_bytes=DISK_BYTES, what=what)
    terminal.print(
        f"{what} takes about {START_SECONDS} s to start, downloads nothing, and needs up to "
        f"{DISK_BYTES // 1_000_000} MB of disk and {MEMORY_BYTES // 1_000_000} MB of memory while it runs.\n",
    )

    def impatient() -> None:
        terminal.say("Still cleaning up: a few seconds more.")

    return asyncio.run(until_signalled(work(), on_signal=on_signal, on_impatience=impatient))
