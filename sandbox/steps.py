"""What is being started, and how long it took: spinners on a terminal, elsewhere a line for each thing done."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from sandbox.terminal import Terminal


@dataclass(slots=True)
class Step:
    """One thing that is being done."""

    result: str
    """What is told when it is done."""


class Steps:
    """Shows steps, also several at once and from several threads."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._spinners = Progress(*columns, console=terminal, transient=True) if terminal.is_live else None

    def __enter__(self) -> Self:
        if self._spinners:
            self._spinners.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spinners:
            self._spinners.stop()

    @contextmanager
    def step(self, doing: str) -> Iterator[Step]:
        """Show that this is being done; when the block ends without an error, tell the step's result."""
        step = Step(doing)
        began = time.monotonic()
        task = self._spinners.add_task(doing, total=None) if self._spinners else None
        try:
            yield step
        finally:
            if self._spinners and task is not None:
                self._spinners.remove_task(task)
        seconds = f" ({time.monotonic() - began:.1f} s)"
        self._terminal.print(Text.assemble(("✓ ", "green"), step.result, (seconds, "dim")), soft_wrap=True)
