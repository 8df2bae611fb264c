"""A file system of a few megabytes, which a test fills to its last byte. Mounting one takes root."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.account import ServerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2
"""Linux's MNT_DETACH: gone from its folder at once, whoever still has a file open there."""
_BLOCK = b"\0" * 65536


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A tmpfs with a folder for a tablespace, and beside it a file that takes the room away."""

    mounted: Path

    @property
    def tablespace(self) -> Path:
        return self.mounted / "tablespace"

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.mounted)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leaving: int) -> None:
        """Write until there is no space left on the device, and give so many bytes back."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(file.tell() - leaving)

    def clear(self) -> None:
        """Give all the room back."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.mounted / "ballast"


@contextmanager
def small_disk(*, megabytes: int, directory: Path) -> Iterator[SmallDisk | None]:
    """Mount one for the time of the block, in a folder that servers reach; None where we may not mount."""
    home = ServerHome.create(name="small-disk", directory=directory)
    try:
        if not _mount(home.path, f"size={megabytes}m,mode=0755"):
            yield None
            return
        try:
            disk = SmallDisk(home.path)
            disk.tablespace.mkdir(mode=0o700)
            home.give(disk.tablespace)
            yield disk
        finally:
            if _LIBC.umount2(os.fsencode(home.path), _DETACH) != 0:
                raise _error()
    finally:
        home.remove()


def _mount(path: Path, options: str) -> bool:
    if _LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(0), options.encode()) == 0:
        return True
    error = _error()
    # For a user that is not root, and for root in most containers.
    if error.errno in (errno.EPERM, errno.EACCES):
        return False
    raise error


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
