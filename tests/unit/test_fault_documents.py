"""docs/faults.md: every fault has its promise and a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBERS = [
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "11",
    "12",
    "13",
    "14",
    "15",
    "17",
    "18",
    "21",
    "22",
    "23",
    "24",
]


def test_every_fault_has_a_promise_and_tests_that_exist() -> None:
    lines = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert [number for number, _ in lines] == NUMBERS
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for number, line in lines:
        fault, promise, shown_by = line.split(" | ")
        assert fault, number
        assert promise, number
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named, number
        assert [name for name in named if f"def {name}(" not in code] == [], number
