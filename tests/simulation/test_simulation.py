"""Thousands of random histories, in virtual time, break no promise; a seed tells the same history each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HISTORIES = int(os.environ.get("SIMULATED_HISTORIES", "10000"))


def simulated(*arguments: int) -> tuple[int, str]:
    """Exit status and output of `python -m tests.simulation`."""
    command = [sys.executable, "-m", "tests.simulation", *map(str, arguments)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_thousands_of_histories_break_no_promise() -> None:
    status, output = simulated(1, HISTORIES)
    assert status == 0, output


def test_a_seed_tells_the_same_history_each_time() -> None:
    first, again, other = simulated(4), simulated(4), simulated(5)
    assert first == again
    assert first != other
    assert "VIOLATION" not in first[1]
