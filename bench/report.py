"""Where figures go: a table for people, JSON for comparison, both with the machine that they are of."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


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


def save(name: str, *, about: dict[str, Any], figures: list[dict[str, Any]]) -> Path:
    """Write the figures of one benchmark; return the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"measured_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "machine": about, "figures": figures}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
