"""The demo where there is no terminal: a line for each outcome, and the numbers every few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.demo.words import number, told

if TYPE_CHECKING:
    from sandbox.demo.readings import Reading
    from sandbox.demo.scene import Ended


def outcome_line(ended: Ended) -> str:
    """Write a slot or request that ended."""
    policy, entry = ended.policy, ended.entry
    moment = f"{entry.started_at.astimezone():%H:%M:%S}"
    return f"{moment} {policy.namespace}/{policy.name} {entry.outcome} {told(ended)}"


def before_and_after(reading: Reading) -> str:
    """Write how a refresh has changed a view's number, beside the tables' true one."""
    assert reading.before is not None
    old, new, true = (number(value, reading.unit) for value in (reading.before, reading.in_view, reading.in_tables))
    return f"  {_subject(reading)}: was {old}, refreshed to {new}, tables {true}"


def reading_line(reading: Reading) -> str:
    """Write a view's number beside the tables'."""
    if reading.problem:
        return f"  {_subject(reading)}: {reading.problem}"
    in_view, in_tables, behind = (
        number(value, reading.unit)
        for value in (reading.in_view, reading.in_tables, reading.in_tables - reading.in_view)
    )
    return f"  {_subject(reading)}: view {in_view}, tables {in_tables}, behind {behind}"


def _subject(reading: Reading) -> str:
    return f"{reading.view}, {reading.what} of {reading.tenant.name}" + (f" in {reading.unit}" if reading.unit else "")
