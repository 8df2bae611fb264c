"""The cache folder: what is slow to make and is kept between runs."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER_VARIABLE = "MATVIEW_SANDBOX_CACHE"


def cache_folder() -> Path:
    """Return the folder that outlives a run; it exists afterwards and belongs to the user alone.

    `MATVIEW_SANDBOX_CACHE` if set, else `matview-operator` in the user's cache folder.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        folder = Path(given).expanduser().absolute()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(base).expanduser().absolute() / "matview-operator"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def size_of(path: Path) -> int:
    """Return the bytes that a file or folder occupies; 0 if it does not exist, or vanishes meanwhile."""
    total = 0
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    for entry in paths:
        try:
            # Blocks and not st_size: write-ahead logs and databases are sparse in places.
            total += entry.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def require_disk(*, path: Path, needed_bytes: int, what: str) -> None:
    """Raise SandboxError with what to do unless the file system of `path` has room for `needed_bytes`."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise SandboxError(
            f"{what} needs {_megabytes(needed_bytes)} of disk in {path}, where {_megabytes(free)} are free: "
            f"free some space, or name another folder in {FOLDER_VARIABLE}."
        )


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the file lock `path` within the block, so that only one process prepares a thing.

    `waiting` is called once when another process holds it. The kernel frees it with its process, however that
    dies; the file stays, because removing it would let two processes hold two files of one name.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
