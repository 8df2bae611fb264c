"""`python3 -B -m sandbox.clean checkout|cache`: remove what this project has made there, and say what that frees.

Needs no .venv, which is among what it removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

from sandbox.cache import cache_folder, size_of

CHECKOUT = Path(__file__).resolve().parents[1]

MADE = (
    *(".venv", ".sandbox", "build", "dist", "bench/results"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".import_linter_cache", ".hypothesis"),
)
CACHED = ("controlplane", "postgresql")
"""Only what we know: the folder may be one that the user named."""


def clean_checkout() -> int:
    """Remove what make targets have made in the checkout; return the exit code."""
    for folder in sorted((CHECKOUT / ".sandbox").glob("*/")):
        if _is_locked(folder):
            return _fail(f"A demo or sandbox is running in {folder}: stop it first.")
    freed = sum(_remove(CHECKOUT / name) for name in MADE)
    for sources in ("operator", "sandbox", "tests", "bench", "alembic"):
        for compiled in sorted((CHECKOUT / sources).rglob("__pycache__")):
            freed += _remove(compiled, tell=False)
    print(f"{_megabytes(freed)} in all. The next make target that needs .venv makes it again, in about a minute.")
    return 0


def clean_cache() -> int:
    """Remove the programs and templates in the cache; return the exit code."""
    cache = cache_folder()
    for lock in sorted(cache.glob("*/*.lock")):
        if _is_locked(lock):
            return _fail(f"Another process is building what {lock} stands for: stop it first, or wait.")
    freed = sum(_remove(cache / name) for name in CACHED)
    if not any(cache.iterdir()):
        cache.rmdir()
    print(f"{_megabytes(freed)} in all. The next demo or test builds the control plane again, which takes minutes.")
    return 0


def _remove(path: Path, *, tell: bool = True) -> int:
    """Remove a folder; return the bytes that this frees."""
    if not path.exists():
        return 0
    size = size_of(path)
    shutil.rmtree(path)
    if tell:
        print(f"{_megabytes(size)}  {path}")
    return size


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _megabytes(count: int) -> str:
    return f"{count / 1e6:8,.1f} MB"


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    work = {"checkout": clean_checkout, "cache": clean_cache}.get(" ".join(sys.argv[1:]))
    sys.exit(work() if work else _fail("usage: python3 -m sandbox.clean checkout|cache"))
