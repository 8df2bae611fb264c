"""What Python code of this process opens, as the interpreter itself sees it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_watched: list[list[str]] = []
_hooked: list[bool] = []


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Lend a list that the names of files opened meanwhile are put into, whoever opens them and whether they exist.

    An audit hook stays for the life of the process; it does next to nothing while nobody watches.
    """
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    names: list[str] = []
    _watched.append(names)
    try:
        yield names
    finally:
        _watched.remove(names)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event == "open" and not isinstance(arguments[0], int):
        for names in _watched:
            names.append(str(arguments[0]))
