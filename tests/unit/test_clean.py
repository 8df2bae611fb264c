"""`make clean` and `make clean-cache`: what goes, what stays, and what they say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sandbox import clean
from sandbox.cache import FOLDER_VARIABLE, locked
from sandbox.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 3_000_000


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(clean, "CHECKOUT", tmp_path)
    for name in (".venv/lib/big", ".sandbox/demo-1/log", "sandbox/__pycache__/x.pyc", "sandbox/code.py", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
    return tmp_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    for name in ("controlplane/abc/etcd", "controlplane/abc.lock", "postgresql/18-abc/PG_VERSION", "photographs/cat"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
    return folder


def test_clean_frees_what_was_made_and_says_how_much(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean.clean_checkout() == 0
    left = sorted(str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file())
    assert left == ["README.md", "sandbox/code.py"]
    said = capsys.readouterr().out
    assert re.search(rf"3\.\d MB  {checkout / '.venv'}\n", said)
    assert re.search(r" 9\.\d MB in all\.", said)
    assert clean.clean_checkout() == 0


def test_clean_spares_a_running_demo(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Workspace.claim("demo", root=checkout / ".sandbox")
    assert clean.clean_checkout() == 1
    assert f"running in {running.path}" in capsys.readouterr().err.replace("/\n", "\n")
    assert (checkout / ".venv").exists()
    running.release()


def test_clean_cache_frees_what_is_ours_alone(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean.clean_cache() == 0
    assert [str(path.relative_to(cache)) for path in cache.rglob("*")] == ["photographs", "photographs/cat"]
    assert re.search(r" 9\.\d MB in all\.", capsys.readouterr().out)
    (cache / "photographs" / "cat").unlink()
    (cache / "photographs").rmdir()
    assert clean.clean_cache() == 0
    assert not cache.exists()


def test_clean_cache_waits_for_no_build_but_tells_of_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(cache / "controlplane" / "abc.lock"):
        assert clean.clean_cache() == 1
    assert "Another process is building" in capsys.readouterr().err
    assert (cache / "controlplane" / "abc" / "etcd").exists()
