"""How far a long job is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

LINES = 20
"""Plain lines from beginning to end, when the total is known."""

STRIDE = 50
"""Steps from one plain line to the next, when it is not."""


class Advance:
    """The way of one job from 0 to `total` steps; total 0 when nobody can know it."""

    def __init__(self, *, what: str, unit: str, total: int, console: Console) -> None:
        self._what = what
        self._unit = unit
        self._total = total
        self._console = console
        self._stride = max(1, total // LINES) if total else STRIDE
        self._next_line = self._stride
        self._started = time.monotonic()
        # A colour forced upon a log file is no terminal: ask the file itself.
        self._bar = _bar(console) if console.file.isatty() and not console.is_dumb_terminal else None
        self._task = self._bar.add_task(what, total=total or None) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def reach(self, done: int, *, what: str | None = None) -> None:
        """Show that `done` steps are behind us, and from now on `what` is done, if given."""
        turned = what is not None and what != self._what
        self._what = what or self._what
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=self._what)
        elif done >= self._next_line or turned:
            self._next_line = done - done % self._stride + self._stride
            self._console.print(self._line(done), soft_wrap=True, highlight=False)

    def _line(self, done: int) -> str:
        share = f" of {self._total} {self._unit} ({100 * done // self._total} %)" if self._total else f" {self._unit}"
        return f"{self._what}: {done}{share}, {time.monotonic() - self._started:.0f} s"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )
