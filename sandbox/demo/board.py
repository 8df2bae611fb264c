"""The live board: policies, what SQL sees, what happened last. Fits 80 columns and gains from more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sandbox.demo.words import (
    FAILED_STYLE,
    STYLES,
    age,
    duration,
    number,
    rows,
    sparkline,
    told,
    until,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sandbox.demo.policies import Policy
    from sandbox.demo.readings import Reading
    from sandbox.demo.scene import Ended, Scene

_WIDE = 110
_WIDEST = 138
_READINGS_WIDE = 104
_READINGS_NARROW = 66
"""Columns that everything but the bars needs."""
_FIXED_LINES = 9
"""Lines beside the policies, the readings and the news: titles, rules, the help."""


class Board:
    """Draws a scene anew each time that rich asks for it, in the terminal's size of that moment."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scene, now = self._scene, datetime.now(UTC)
        room = console.height - len(scene.policies) - len(scene.readings) - _FIXED_LINES
        news = [*scene.ended][-max(1, room) :]
        yield Group(
            _title(scene),
            _policies(scene, now=now, width=options.max_width),
            Rule("a view before its last refresh and now, and the truth in its tables: by SQL", style="dim"),
            _readings(scene, width=options.max_width),
            Rule("what ended last", style="dim"),
            *(_news(ended) for ended in reversed(news)),
            Text(scene.help, style="dim", no_wrap=True, overflow="ellipsis"),
        )


def _title(scene: Scene) -> Text:
    end = "" if scene.seconds_in_all is None else f" of {scene.seconds_in_all:.0f}"
    facts = f"   {scene.seconds:.0f}{end} s   {scene.rows_written:,} rows written by the application since it began"
    return Text.assemble(("matview-operator", "bold"), (facts, "dim"), no_wrap=True, overflow="ellipsis")


def _policies(scene: Scene, *, now: datetime, width: int) -> Table:
    wide, widest = width >= _WIDE, width >= _WIDEST
    table = _table(wide=wide)
    headers = ("POLICY", "TENANT", *(["SCHEDULE"] if widest else []), "LAST OUTCOME")
    for header in headers:
        table.add_column(header, no_wrap=True, overflow="ellipsis")
    for header in ("DATA AGE" if wide else "AGE", "NEXT", "TOOK", "ROWS"):
        table.add_column(header, no_wrap=True, justify="right")
    for policy in scene.policies:
        entry = policy.history[0] if policy.history else None
        table.add_row(
            Text(f"{policy.namespace}/{policy.name}" if wide else policy.name, style="bold"),
            scene.tenant(policy) if wide else policy.namespace,
            *([policy.schedule] if widest else []),
            _outcome(policy),
            age(policy.data_as_of, now=now),
            until(policy, now=now),
            duration(entry.duration_ms) if entry else "-",
            rows(policy) if entry else "-",
        )
    return table


def _outcome(policy: Policy) -> Text:
    if policy.ready is False:
        return Text(policy.reason, style=FAILED_STYLE)
    if not policy.history:
        return Text("not yet run" if policy.ready else "-", style="dim")
    outcome = policy.history[0].outcome
    return Text(outcome, style=STYLES.get(outcome, FAILED_STYLE))


def _readings(scene: Scene, *, width: int) -> Table:
    wide = width >= _WIDE
    table = _table(wide=wide)
    table.add_column("NUMBER IN VIEW AND TABLES" if wide else "NUMBER", no_wrap=True, overflow="ellipsis")
    for header in ("BEFORE", "IN VIEW", "IN TABLES", "BEHIND"):
        table.add_column(header, no_wrap=True, justify="right")
    bars = width - (_READINGS_WIDE if wide else _READINGS_NARROW)
    table.add_column("", no_wrap=True)
    for reading in scene.readings:
        table.add_row(_subject(reading, wide=wide), *_numbers(reading, bars=bars))
    return table


def _subject(reading: Reading, *, wide: bool) -> str:
    what = f"{reading.what}, {reading.unit}" if reading.unit else reading.what
    return f"{reading.view}: {what}" if wide else what


def _numbers(reading: Reading, *, bars: int) -> list[Text]:
    if reading.problem:
        return [*[Text("-")] * 4, Text(reading.problem, style=FAILED_STYLE)]
    behind = reading.behind[-1] if reading.behind else 0
    style = "yellow" if behind else "green"
    return [
        Text("-" if reading.before is None else number(reading.before, reading.unit), style="dim"),
        Text(number(reading.in_view, reading.unit), style="bold"),
        Text(number(reading.in_tables, reading.unit)),
        Text(number(reading.in_tables - reading.in_view, reading.unit), style=style),
        Text(sparkline(reading.behind, width=bars), style=style),
    ]


def _table(*, wide: bool) -> Table:
    return Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2 if wide else 1, 0, 0))


def _news(ended: Ended) -> Text:
    entry = ended.entry
    return Text.assemble(
        (f"{entry.started_at.astimezone():%H:%M:%S} ", "dim"),
        f"{ended.policy.namespace}/{ended.policy.name} ",
        (f"{entry.outcome} ", STYLES.get(entry.outcome, FAILED_STYLE)),
        (told(ended), "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
