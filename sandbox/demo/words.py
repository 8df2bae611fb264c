"""How the demo writes ages, numbers and outcomes."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.demo.policies import Entry, Policy
    from sandbox.demo.scene import Ended

STYLES = {
    "SUCCESS": "green",
    "SKIPPED_COVERED": "cyan",
    "SKIPPED_UNCHANGED": "cyan",
    "SKIPPED_LOCK_HELD": "yellow",
    "INTERRUPTED": "yellow",
}
FAILED_STYLE = "bold red"

_BARS = "▁▂▃▄▅▆▇█"
_SECONDS_SHOWN = 600


def duration(milliseconds: float) -> str:
    """Write a duration: `12 ms`, `1.2 s`."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"  # noqa: PLR2004 - a second


def age(moment: datetime | None, *, now: datetime) -> str:
    """Write how long ago a moment was: `4 s`, `12 min`; a dash for none."""
    if moment is None:
        return "-"
    seconds = max(0, round((now - moment).total_seconds()))
    return f"{seconds} s" if seconds < _SECONDS_SHOWN else f"{seconds // 60} min"


def until(policy: Policy, *, now: datetime) -> str:
    """Write when a policy is due next: `in 3 s`."""
    if policy.suspended:
        return "suspended"
    if policy.next_slot is None:
        return "-"
    seconds = (policy.next_slot - now).total_seconds()
    # The status is written when a slot has ended: until then it still names the slot that runs.
    return f"in {seconds:.0f} s" if seconds > 0 else "now"


def number(value: Decimal, unit: str) -> str:
    """Write a number: money, which has a unit, with two places, counts with none."""
    return f"{value:,.2f}" if unit else f"{value:,.0f}"


def rows(policy: Policy) -> str:
    """Write the rows that the newest runs of a policy's views added and removed."""
    return f"+{policy.rows_inserted} -{policy.rows_deleted}"


def told(ended: Ended) -> str:
    """Tell what ended in one line, without the policy's name and the outcome."""
    entry = ended.entry
    if entry.outcome == "SKIPPED_COVERED":
        return "by another policy's run"
    changed = f"{rows(ended.policy)} rows " if entry.outcome == "SUCCESS" else ""
    return f"{changed}in {duration(entry.duration_ms)}, {_occasion(entry)}" + (
        f": {entry.message}" if entry.message else ""
    )


def sparkline(values: Sequence[Decimal], *, width: int) -> str:
    """Draw the newest `width` values, one character each; the highest of them fills its character."""
    shown = list(values)[-width:]
    highest = max(shown, default=Decimal(0))
    if highest <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[round(float(max(value, Decimal(0)) / highest) * (len(_BARS) - 1))] for value in shown)


def _occasion(entry: Entry) -> str:
    if entry.slot_time is None:
        return "as requested"
    lag = (entry.started_at - entry.slot_time).total_seconds() * 1000
    return f"{duration(max(0.0, lag))} late"
