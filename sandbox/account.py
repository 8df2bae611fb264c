"""Who a server runs as and where its files lie: PostgreSQL and PgBouncer refuse to run as root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED_FOLDER = Path("/var/tmp")  # noqa: S108 - every folder in it is made by mkdtemp
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

    Owned by whoever created it, who calls `remove`; what a SIGKILL left behind goes with the next `create`.
    """

    path: Path
    account: Account | None

    @classmethod
    def create(cls, *, name: str, directory: Path) -> ServerHome:
        """Make an empty home; `directory` is where it lies unless root has to look elsewhere."""
        account = server_account()
        if account is None:
            directory.mkdir(parents=True, exist_ok=True)
            return cls(path=Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory)), account=None)
        _sweep_abandoned()
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{name}-", dir=SHARED_FOLDER))
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
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep_abandoned() -> None:
    """Remove homes whose owner died without a chance to do it (the name holds its process id)."""
    for folder in SHARED_FOLDER.glob(f"{_PREFIX}*"):
        match = re.match(rf"{_PREFIX}(\d+)-", folder.name)
        with suppress(OSError):
            if match and folder.lstat().st_uid == 0 and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)
