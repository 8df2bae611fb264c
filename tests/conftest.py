"""What all suites need: an environment without the caller's servers, and the servers' logs beside a failure."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytest_plugins = ["tests.canaries", "tests.completeness"]

_SHOWN_LINES = 150


@dataclass(slots=True)
class ServerLogs:
    """The logs of the servers that one test uses."""

    _seen: dict[Path, tuple[str, int]] = field(default_factory=dict)

    def show(self, name: str, log: Path) -> None:
        """Have the report of a failure show what this log gains from now on."""
        self._seen.setdefault(log, (name, log.stat().st_size if log.exists() else 0))

    def sections(self) -> list[tuple[str, str]]:
        """Return a title and a text for each log."""
        return [(f"Log of {name}", _end_of(log, offset=offset)) for log, (name, offset) in self._seen.items()]


_LOGS = pytest.StashKey[ServerLogs]()

# A deadline per example measures the machine's other work; pytest-timeout bounds each test.
hypothesis.settings.register_profile("without-deadline", deadline=None)
hypothesis.settings.load_profile("without-deadline")


def pytest_configure() -> None:
    """Forget variables that asyncpg and our own commands read: a test means the servers that it started."""
    for name in [*os.environ]:
        if (name.startswith(("PG", "MATVIEW_")) and name != "MATVIEW_SANDBOX_CACHE") or name == "DATABASE_URL":
            del os.environ[name]
    # looptime asks for the current loop at synchronous tests too; before 3.14, asking makes one that nobody closes.
    asyncio.set_event_loop(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the servers' logs to a failed test's report."""
    report = yield
    logs = item.stash.get(_LOGS, None)
    if report.failed and logs is not None:
        report.sections.extend(logs.sections())
    return report


@pytest.fixture
def server_logs(request: pytest.FixtureRequest) -> ServerLogs:
    """Where a fixture names the logs of the servers that it hands out."""
    node: pytest.Item = request.node
    return node.stash.setdefault(_LOGS, ServerLogs())


def _end_of(log: Path, *, offset: int) -> str:
    if not log.exists():
        return "(no log)"
    lines = log.read_bytes()[offset:].decode(errors="replace").splitlines()
    left_out = [f"({len(lines) - _SHOWN_LINES} lines before these)"] if len(lines) > _SHOWN_LINES else []
    return "\n".join([*left_out, *lines[-_SHOWN_LINES:]])
