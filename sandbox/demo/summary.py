"""The end of the demo: slots due, refreshed, covered, failed, missed, and how promptly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from sandbox.demo.tally import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.demo.tally import Line


def summary_table(lines: Sequence[Line]) -> Table:
    """Return the accounts as a table that fits 80 columns."""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 1, 0, 0),
        caption="LATE: from slot to start. TOOK: what was refreshed. Median/95th percentile.",
        caption_justify="left",
    )
    table.add_column("POLICY", no_wrap=True, overflow="ellipsis", max_width=25)
    for header in ("DUE", "REFRESHED", "COVERED", "FAILED", "MISSED", "LATE ms", "TOOK ms"):
        table.add_column(header, no_wrap=True, justify="right")
    for line in lines:
        table.add_row(
            f"{line.policy.namespace}/{line.policy.name}",
            *(str(count) for count in (line.due, line.refreshed, line.covered, line.failed, line.missed)),
            _durations(line.lags),
            _durations(line.durations),
            style="" if line.good else "bold red",
        )
    return table


def verdict(lines: Sequence[Line]) -> str:
    """Say in one sentence what the table amounts to."""
    bad = [f"{line.policy.namespace}/{line.policy.name}" for line in lines if not line.good]
    due = sum(line.due for line in lines)
    if bad:
        return f"Not every slot that became due was refreshed or covered: see {', '.join(bad)}."
    return f"All {due} slots that became due were refreshed, or covered by another policy's run."


def totals(lines: Sequence[Line]) -> str:
    """Say in one sentence what was done, without judging slots that are still running."""
    refreshed, covered, failed = (
        sum(getattr(line, name) for line in lines) for name in ("refreshed", "covered", "failed")
    )
    return f"Slots: {refreshed} refreshed, {covered} covered by another policy's run, {failed} failed."


def _durations(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return "/".join(f"{percentile(values, percent):.0f}" for percent in (50, 95))
