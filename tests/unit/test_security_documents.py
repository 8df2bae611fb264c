"""docs/security.md: every threat has its control and a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "docs" / "security.md").read_text().split("\n## Threats\n", 1)[1]


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in CHAPTER.splitlines() if "| T" in line]


def test_every_threat_has_a_control_and_tests_that_exist() -> None:
    assert [row[0] for row in rows()] == [f"T{number}" for number in range(1, 16)]
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for number, threat, control, shown_by in rows():
        assert threat, number
        assert control, number
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named, number
        assert [name for name in named if f"def {name}(" not in code] == [], number
