"""`python -m sandbox.parts`: name what the tests need of this machine and do not find."""

from __future__ import annotations

import sys

from sandbox.errors import MissingPart
from sandbox.faketime import FakeTime
from sandbox.pgbinaries import VERSIONS, PostgresBinaries
from sandbox.pgbouncer import PgBouncer


def missing_parts() -> list[MissingPart]:
    """Return what is not installed, with its package."""
    missing = []
    for version in VERSIONS:
        try:
            PostgresBinaries.find(version)
        except MissingPart as part:
            missing.append(part)
    for find in (PgBouncer.find, FakeTime.find):
        try:
            find()
        except MissingPart as part:
            missing.append(part)
    return missing


def main() -> int:
    """Name what is missing; return the exit code."""
    missing = missing_parts()
    for part in missing:
        print(part, file=sys.stderr)
    if missing:
        print(
            "\nThe tests need these; `make demo`, `make test-unit` and `make test-simulation` do not.",
            file=sys.stderr,
        )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
