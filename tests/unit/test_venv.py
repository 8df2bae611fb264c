"""`make venv`: what it says before it begins, when something is missing, and when there is nothing to do."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from sandbox import venv

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with locks, without .venv, where pip is a list of calls in `pip.log`."""
    folder = tmp_path / "with blanks"
    (folder / "requirements").mkdir(parents=True)
    (folder / "requirements" / "dev.txt").write_text("one==1\ntwo==2\n")
    (folder / "pyproject.toml").touch()
    for name, path in {
        "CHECKOUT": folder,
        "FOLDER": folder / ".venv",
        "READY": folder / ".venv" / "ready",
        "LOG": folder / ".venv" / "install.log",
        "LOCK": folder / "requirements" / "dev.txt",
        "INPUTS": (folder / "requirements" / "dev.txt", folder / "pyproject.toml"),
    }.items():
        monkeypatch.setattr(venv, name, path)
    monkeypatch.setattr(sys, "argv", ["venv.py"])

    def create(path: Path, *, with_pip: bool, clear: bool) -> None:
        assert with_pip
        assert clear
        python = path / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder / 'pip.log'}'\necho Collecting one==1\n")
        python.chmod(0o755)
        (path / "pyvenv.cfg").write_text(f"home = somewhere\nversion = {venv.version()}\n")

    monkeypatch.setattr("sandbox.venv.venv.create", create)
    return folder


def installs(checkout: Path) -> int:
    log = checkout / "pip.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def age_stamp() -> None:
    """Let the lock be newer than the environment, whatever the file system's resolution."""
    os.utime(venv.READY, (time.time() - 60,) * 2)


def test_it_says_what_it_costs_installs_by_hash_and_does_nothing_the_second_time(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert venv.main() == 0
    said = capsys.readouterr().out
    assert "about a minute" in said.split("\n")[0]
    assert "MB to download" in said.split("\n")[0]
    locked, editable = (checkout / "pip.log").read_text().splitlines()
    assert locked.endswith(f"install --require-hashes -r {checkout / 'requirements' / 'dev.txt'}")
    assert editable.endswith(f"install --no-deps --no-build-isolation -e {checkout}")
    assert venv.main() == 0
    assert installs(checkout) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["requirements/dev.txt", "pyproject.toml"])
def test_a_changed_lock_or_project_installs_again(checkout: Path, name: str) -> None:
    venv.main()
    age_stamp()
    os.utime(checkout / name)
    assert venv.main() == 0
    assert installs(checkout) == 4


def test_what_was_interrupted_or_moved_is_made_anew(checkout: Path) -> None:
    venv.main()
    venv.READY.unlink()
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert venv.main() == 0
    assert venv.READY.exists()
    venv.READY.write_text("/where/it/was/before")
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert venv.main() == 0
    assert installs(checkout) == 6


def test_a_failed_install_shows_pips_words_and_is_not_taken_for_complete(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    venv.main()
    age_stamp()
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho no such package\nexit 1\n")
    assert venv.main() == 1
    assert "no such package" in capsys.readouterr().out
    assert not venv.is_whole()


def test_another_python_counts_only_if_it_was_asked_for(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.main()
    (checkout / ".venv" / "pyvenv.cfg").write_text("version = 3.99.1\n")
    assert venv.main() == 0
    assert installs(checkout) == 2
    monkeypatch.setattr(sys, "argv", ["venv.py", "--this-python"])
    assert venv.main() == 0
    assert installs(checkout) == 4


def test_an_old_python_is_told_with_what_to_do(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(venv, "OLDEST", (3, 99))
    assert venv.main() == 1
    assert "Python 3.99 or newer is needed" in capsys.readouterr().err
    monkeypatch.setattr(venv, "OLDEST", (3, 11))
    monkeypatch.setattr("sandbox.venv.shutil.which", lambda name: name if name == "python3.12" else None)
    assert "make PYTHON=python3.12" in venv.advice_on_python()
    monkeypatch.setattr("sandbox.venv.shutil.which", lambda _: None)
    assert "apt-get install python3.11 python3.11-venv" in venv.advice_on_python()
    assert not (checkout / ".venv").exists()


def test_a_missing_venv_package_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sandbox.venv.importlib.util.find_spec", lambda _: None)
    assert venv.main() == 1
    assert f"apt-get install python3.{sys.version_info.minor}-venv (or python3-venv)" in capsys.readouterr().err
    assert not (checkout / ".venv").exists()


def test_a_full_disk_is_told_before_anything_is_written(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil's
    monkeypatch.setattr("sandbox.venv.shutil.disk_usage", lambda _: usage(10**9, 10**9, 5_000_000))
    assert venv.main() == 1
    assert "needs 700 MB of disk" in capsys.readouterr().err
    assert not (checkout / ".venv").exists()


def test_two_at_once_wait_for_each_other(checkout: Path) -> None:
    lock = (checkout / "requirements" / "dev.txt").open()
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = f"""
import sys
from pathlib import Path
from sandbox import venv
sys.argv = ["venv.py"]
venv.LOCK = Path({str(checkout / "requirements" / "dev.txt")!r})
venv.is_whole = lambda: True
venv.is_older_than_its_inputs = lambda: False
sys.exit(venv.main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "Another process is making .venv: waiting for it.\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        lock.close()
        assert second.wait(timeout=10) == 0


def test_a_signal_stops_pip_too(checkout: Path) -> None:
    (checkout / "sandbox").mkdir()
    shutil.copy(CHECKOUT / "sandbox" / "venv.py", checkout / "sandbox")
    venv.main()
    age_stamp()
    (checkout / "requirements" / "dev.txt").touch()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho Collecting one==1\necho $$ > '{checkout / 'pid'}'\nexec sleep 600\n")
    with subprocess.Popen(
        [sys.executable, "-I", checkout / "sandbox" / "venv.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        while "fetching" not in program.stdout.readline():
            pass
        while not (checkout / "pid").exists() or not (checkout / "pid").read_text():
            time.sleep(0.02)
        program.terminate()
        _, said = program.communicate(timeout=10)
    assert program.returncode == 1
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert not psutil.pid_exists(int((checkout / "pid").read_text()))


def test_python_runs_it_without_the_projects_packages() -> None:
    """As the Makefile does it, with nothing but a Python: its imports must not find modules beside it."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import runpy, sys; runpy.run_path(sys.argv[1])",
            CHECKOUT / "sandbox" / "venv.py",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
