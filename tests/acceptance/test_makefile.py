"""The Makefile: what it offers, to whom, from a folder with any name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox.parts import missing_parts

CHECKOUT = Path(__file__).parents[2]
TARGETS = (
    "venv",
    "demo",
    "sandbox",
    "test",
    "torture",
    "check",
    "crds",
    "lock",
    "bench",
    "fuzz",
    "clean",
    "clean-cache",
)


def make(
    *arguments: str, folder: Path = CHECKOUT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_is_the_default_and_lists_each_target_in_a_line() -> None:
    listed = make().stdout.splitlines()
    assert make("help").stdout.splitlines() == listed
    for target in TARGETS:
        (line,) = (line for line in listed if line.startswith(f"make {target} "))
        assert len(line) <= 80, line
    assert all(re.match(r"make [a-z-]+ +\S", line) for line in listed)


def test_a_missing_python_is_told_with_its_package() -> None:
    done = make("venv", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "There is no python3.99 on PATH." in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_second_make_venv_does_nothing() -> None:
    stamp = CHECKOUT / ".venv" / "ready"
    make("venv")
    made = stamp.stat().st_mtime_ns
    done = make("venv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == made


@pytest.mark.parametrize("form", ["argument", "environment"])
def test_the_python_is_selectable_and_the_folder_may_have_blanks(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "a folder with blanks"
    (folder / "sandbox").mkdir(parents=True)
    shutil.copy(CHECKOUT / "Makefile", folder)
    (folder / "sandbox" / "venv.py").write_text("import sys; print(sys.executable, sys.argv[1:])")
    if form == "argument":
        done = make("venv", f"PYTHON={sys.executable}", folder=folder)
    else:
        done = make("venv", folder=folder, env={"PYTHON": sys.executable})
    assert done.stdout == f"{sys.executable} ['--this-python']\n", done.stderr


def test_parts_that_tests_need_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing_parts() == []
    monkeypatch.setattr("sandbox.pgbouncer.shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("sandbox.pgbinaries.Path", lambda _: tmp_path)
    monkeypatch.setattr("sandbox.faketime.Path", lambda _: tmp_path)
    assert [part.package for part in missing_parts()] == ["postgresql-15", "pgbouncer", "faketime"]
