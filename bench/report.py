"""Where figures go: a table for people, JSON for comparison, both with the machine that they are of."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
_WIDTH = 160
"""Of a table that goes into a file."""


def machine() -> dict[str, Any]:
    """Return what figures depend on besides the code."""
    load = os.getloadavg()[0]
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "asyncpg": version("asyncpg"),
        "load_before": round(load, 2),
    }


def publish(name: str, title: str, *, about: dict[str, Any], figures: Sequence[dict[str, Any]]) -> None:
    """Print the figures of one benchmark as a table, and write them to bench/results/<name>.json."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(title=f"{title} ({about['cpus']} CPUs, {about['processor']})", box=None)
    for column, value in figures[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right", no_wrap=True)
    for figure in figures:
        table.add_row(*(_shown(value) for value in figure.values()))
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"measured_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "machine": about, "figures": [*figures]}
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}\n")


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.2f}"
        case int():
            return f"{value:,}"
        case None:
            return ""
        case _:
            return str(value)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
