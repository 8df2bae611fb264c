"""Where one demo or sandbox keeps its files: a folder below .sandbox that no other process uses."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Self

from sandbox.errors import SandboxError

CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = CHECKOUT / ".sandbox"

_MOST = 100


class Workspace:
    """An empty folder that is this process's until `release`, or until it dies, however it dies."""

    def __init__(self, *, path: Path, descriptor: int) -> None:
        """Hold a folder that is locked already; `claim` is the way to one."""
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def claim(cls, name: str, *, root: Path = ROOT) -> Self:
        """Take the first of the folders `name-1`, `name-2`, … that nobody uses; what a dead process left is removed.

        So paths are the same each time, unless two run at once. Raises SandboxError when 100 are in use.
        """
        for number in itertools.islice(itertools.count(1), _MOST):
            claimed = cls._try(root / f"{name}-{number}")
            if claimed is not None:
                return claimed
        raise SandboxError(f"{_MOST} folders {root / name}-… are in use.")

    @classmethod
    def claim_only(cls, name: str, *, root: Path = ROOT) -> Self:
        """Take the folder `name`; raises SandboxError if another process uses it."""
        claimed = cls._try(root / name)
        if claimed is None:
            raise SandboxError(f"Another process uses {root / name}: stop that one first.")
        return claimed

    def release(self, *, keep_logs: bool = False) -> None:
        """Remove the folder, but for its *.log files if they may be read until the next process takes it over."""
        if keep_logs:
            for folder, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    if not name.endswith(".log"):
                        Path(folder, name).unlink()
                with suppress(OSError):  # there are logs in it
                    Path(folder).rmdir()
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)

    @classmethod
    def _try(cls, path: Path) -> Self | None:
        # Secrets will lie in it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former user may have removed it after our mkdir: then we hold a folder that has no name.
            taken = os.fstat(descriptor).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            taken = False
        if not taken:
            os.close(descriptor)
            return None
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return cls(path=path, descriptor=descriptor)
