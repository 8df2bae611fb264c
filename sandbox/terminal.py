"""Where demo and sandbox write to: a terminal, or a file or pipe that somebody reads, perhaps not to its end."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from sandbox.errors import SandboxError


class Terminal(Console):
    """The standard output."""

    def __init__(self) -> None:
        # Not every character set has the board's bars.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        super().__init__(highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether what was written can be written over; a colour forced upon a file makes it no terminal."""
        return self.file.isatty() and not self.is_dumb_terminal

    def say(self, text: str) -> None:
        """Print as it is, each line in one piece, so that it can be copied."""
        self.print(text, soft_wrap=True, markup=False)

    def on_broken_pipe(self) -> None:
        """Stop as for any other error, with all clean-up; rich's SystemExit would tear down the event loop."""
        self.quiet = True
        # Else the interpreter would fail once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SandboxError("Nobody reads the output any more: everything was stopped and cleaned up.")
