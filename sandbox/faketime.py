"""A process's clock that a test sets, by Debian's libfaketime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sandbox.errors import MissingPart

_LIBRARIES = "*-linux-gnu*/faketime/libfaketimeMT.so.1"


@dataclass(frozen=True, slots=True)
class FakeTime:
    """The clock of every process that is started with `environment`. The time that they wait by stays the real one."""

    file: Path
    environment: dict[str, str]

    @staticmethod
    def find() -> Path:
        """Find the library. Raises MissingPart if the package is not installed."""
        for library in sorted(Path("/usr/lib").glob(_LIBRARIES)):
            return library
        raise MissingPart(part="libfaketime", package="faketime")

    @classmethod
    def make(cls, directory: Path) -> Self:
        """A clock that is right at first. Raises MissingPart."""
        library = cls.find()
        file = directory / "faketime"
        made = cls(
            file=file,
            environment={
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_CACHE_DURATION": "1",  # seconds until the file is read again
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        made.set(hours=0)
        return made

    def set(self, *, hours: int) -> None:
        """Set the clock so far ahead of the real time, or behind it."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{hours:+d}h\n")
        new.replace(self.file)  # at once: a clock that is read meanwhile is the old one or the new one
