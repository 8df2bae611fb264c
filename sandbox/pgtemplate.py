"""Empty database clusters: made by initdb once per version, kept in the cache, copied for each server."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from sandbox.account import Account, ServerHome
from sandbox.cache import cache_folder, locked, require_disk
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandbox.pgbinaries import PostgresBinaries

SUPERUSER = "postgres"

# Nobody may log in until a server has its own password and pg_hba.conf.
_OPTIONS = ("--auth=reject", f"--username={SUPERUSER}", "--encoding=UTF8", "--no-locale", "--no-sync")
_NEEDED_BYTES = 150_000_000


def copy_template(binaries: PostgresBinaries, *, to: Path) -> None:
    """Make `to` an empty cluster of this version, ours alone; runs initdb only if the cache has none yet."""
    # The exact build is part of the key: a data folder fits no other major version or machine.
    key = "\0".join((binaries.full_version(), platform.machine(), *_OPTIONS))
    name = f"{binaries.version}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    kept = cache_folder() / "postgresql" / name
    if not kept.exists():
        with locked(kept.with_name(f"{name}.lock")):
            if not kept.exists():
                _initdb(binaries, kept=kept)
    shutil.copytree(kept, to)


def run_as(account: Account | None, argv: Sequence[str | Path], *, what: str, stdin: str = "") -> None:
    """Run one of PostgreSQL's programs to its end; raise SandboxError with its output if it fails."""
    result = subprocess.run(
        argv,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment(),
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        start_new_session=True,
    )
    if result.returncode != 0:
        raise SandboxError(f"{what} failed with exit code {result.returncode}:\n{result.stdout}")


def environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: none of our PG* variables, which they would read."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _initdb(binaries: PostgresBinaries, *, kept: Path) -> None:
    """Make the template; it appears under its name only when it is whole."""
    require_disk(path=kept.parent, needed_bytes=_NEEDED_BYTES, what=f"A PostgreSQL {binaries.version} cluster")
    staging = kept.with_name(f"{kept.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    home = ServerHome.create(name="initdb", directory=kept.parent)
    try:
        data = home.path / "data"
        runnable = binaries.runnable_in(home)
        data.mkdir(mode=0o700)
        home.give(data)
        run_as(
            home.account,
            [runnable.bin / "initdb", *_OPTIONS, "--no-instructions", f"--pgdata={data}"],
            what=f"initdb of PostgreSQL {binaries.version}",
        )
        shutil.copytree(data, staging)
        staging.rename(kept)
    finally:
        home.remove()
        with suppress(FileNotFoundError):
            shutil.rmtree(staging)
