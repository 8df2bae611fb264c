"""What Python code of this thread opens, as the interpreter itself sees it."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_watched: list[tuple[int, list[str]]] = []
_hooked: list[bool] = []


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Lend a list that the names of files opened meanwhile by this thread are put into, whether they exist or not.

    An audit hook stays for the life of the process; it does next to nothing while nobody watches.
    """
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    names: list[str] = []
    watcher = (threading.get_ident(), names)
    _watched.append(watcher)
    try:
        yield names
    finally:
        _watched.remove(watcher)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event == "open" and not isinstance(arguments[0], int):
        for thread, names in _watched:
            if thread == threading.get_ident():
                names.append(str(arguments[0]))
