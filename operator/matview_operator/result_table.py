"""Results as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.result import FAILURES, RefreshResult

_PIPE_WIDTH = 160


def print_table(results: Iterable[RefreshResult]) -> None:
    """Print one row per result, and below them what there is to say."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("VIEW", "OUTCOME", "REASON", "MODE"):
        table.add_column(title, overflow="fold")
    for title in ("ADDED", "REMOVED", "ROWS", "SECONDS"):
        table.add_column(title, justify="right")
    table.add_column("DATA AS OF")
    messages: list[tuple[RefreshResult, str]] = []
    for result in results:
        table.add_row(
            _shown(result.view_name),
            Text(result.outcome.value, style=_style(result.outcome)),
            result.error_type.value if result.error_type else "",
            result.mode.value if result.mode else "",
            *(_count(number) for number in (result.rows_inserted, result.rows_deleted, result.estimated_rows)),
            f"{result.duration_ms / 1000:.3f}",
            f"{result.data_as_of:%Y-%m-%d %H:%M:%SZ}" if result.data_as_of else "",
        )
        if result.error_message:
            messages.append((result, result.error_message))
    console.print(table)
    for result, message in messages:
        console.print(_shown(f"{result.view_name}: {message}"))


def _style(outcome: RefreshOutcome) -> str:
    if outcome in FAILURES:
        return "red"
    return "green" if outcome is RefreshOutcome.SUCCESS else "yellow"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _shown(text: str) -> Text:
    """Names and the server's messages are data: neither markup of ours nor commands to a terminal."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))
