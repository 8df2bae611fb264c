"""Who a server runs as and where its files lie: PostgreSQL and PgBouncer refuse to run as root."""

from __future__ import annotations

import atexit
import os
import pwd
import re
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Every folder in these two is made by mkdtemp.
DISK = Path("/var/tmp")  # noqa: S108 - see above
MEMORY = Path("/dev/shm")  # noqa: S108 - see above
_MEMORY_BYTES = 2_000_000_000
_REMOVE_SECONDS = 5.0
_PREFIX = "matview-sandbox-"


@dataclass(frozen=True, slots=True)
class Account:
    """An account of this machine that has a passwd entry; initdb fails under a uid without one."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """Return the account for servers that refuse root: nobody's if we are root, else None (our own)."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


@dataclass(frozen=True, slots=True)
class ServerHome:
    """A folder that a server's account can reach: in the given folder, or for root under /var/tmp.

    Owned by whoever created it, who calls `remove`. What a SIGKILL left behind goes with the next `create`.
    """

    path: Path
    account: Account | None

    @classmethod
    def create(cls, *, name: str, directory: Path, in_memory: bool = False) -> ServerHome:
        """Make an empty home; `directory` is where it lies unless root has to look elsewhere.

        `in_memory` wishes for a file system in memory, and is granted where there is one with enough room.
        """
        account = server_account()
        if in_memory and _memory_is_usable():
            parent = MEMORY
        elif account is not None:
            parent = DISK
        else:
            parent = directory
            parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(parent)
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{name}-", dir=parent))
        # For a Ctrl-C that comes before our caller has written down what we return.
        atexit.register(_remove, path)
        if account is not None:
            # Others may pass through it; what is in it is the server's alone.
            path.chmod(0o755)
        return cls(path=path, account=account)

    def give(self, path: Path) -> None:
        """Make the server's account the owner of a file, or of a folder with all that is in it."""
        if self.account is None:
            return
        os.chown(path, self.account.uid, self.account.gid)
        for folder, folders, files in os.walk(path):
            for entry in (*folders, *files):
                os.chown(Path(folder, entry), self.account.uid, self.account.gid, follow_symlinks=False)

    def remove(self) -> None:
        """Delete the folder; nothing happens if it is gone."""
        _remove(self.path)


def reachable(path: Path) -> bool:
    """Tell whether every account can read and enter (or run) `path`, which nobody can in a closed home."""
    everyone = stat.S_IROTH | stat.S_IXOTH
    may_enter = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)
    return may_enter and path.stat().st_mode & everyone == everyone


def _remove(folder: Path) -> None:
    # A server that got its death signal a moment ago may add a file to a folder that is being emptied.
    deadline = time.monotonic() + _REMOVE_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


def _memory_is_usable() -> bool:
    # Containers often mount it without the right to run programs in it, or with 64 MB.
    return (
        MEMORY.is_dir()
        and os.access(MEMORY, os.W_OK)
        and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(MEMORY).free >= _MEMORY_BYTES
    )


def _sweep_abandoned(parent: Path) -> None:
    """Remove our homes whose owner died without a chance to do it (the name holds its process id)."""
    for folder in parent.glob(f"{_PREFIX}*"):
        match = re.match(rf"{_PREFIX}(\d+)-", folder.name)
        with suppress(OSError):
            ours = folder.lstat().st_uid == os.geteuid()
            if match and ours and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)
