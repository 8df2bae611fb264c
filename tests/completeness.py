"""A plugin of pytest: with CI=true, a test that is not run is a failure.

A skipped test looks like a passed one to whoever reads the last line only, and on a machine where a server is missing
all of them would be.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_WANTED = os.environ.get("CI") == "true"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that skips itself."""
    report = yield
    if _WANTED and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"Not run, and CI=true wants every test to run: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped, or expected to fail, whether it does or not."""
    report = yield
    expected = getattr(report, "wasxfail", None)
    if _WANTED and (report.skipped or expected is not None):
        report.outcome = "failed"
        report.longrepr = f"Not run, and CI=true wants every test to run: {expected or report.longrepr}"
        if expected is not None:
            del report.wasxfail
    return report


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Refuse a selection that leaves tests out."""
    if _WANTED and items:
        raise pytest.UsageError(f"CI=true wants every test to run, but {len(items)} were deselected.")
