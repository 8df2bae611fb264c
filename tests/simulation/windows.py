"""The windows that are drawn, by an arithmetic that is not the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from matview_operator.api.window import Window, WindowKind

OPENING = "*/10 * * * *"


def is_closed(windows: Sequence[Window], now: datetime) -> bool:
    """Whether these let nothing begin now. All of them open at each tenth minute."""
    opened = now.replace(minute=now.minute // 10 * 10, second=0, microsecond=0)
    seconds = (now - opened).total_seconds()
    return any((seconds < each.duration_seconds) is (each.kind is WindowKind.DENY) for each in windows)
