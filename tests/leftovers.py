"""What runs may leave in our own process: nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from tests.refreshes import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that the runs within left no task, no open file, no thread and no connection object."""
    before = traces()
    yield

    async def left() -> dict[str, int]:
        gc.collect()
        return {name: max(0, count - before[name]) for name, count in traces().items()}

    await settled(left, dict.fromkeys(before, 0), seconds=5)


def traces() -> dict[str, int]:
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": sum(1 for _ in Path("/dev/fd").iterdir()),
        "threads": threading.active_count(),
        "connections": sum(isinstance(found, asyncpg.Connection) for found in gc.get_objects()),
    }
