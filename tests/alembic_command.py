"""alembic's command line, as somebody at a terminal runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

INI = Path(__file__).parents[1] / "alembic.ini"
SECTIONS = ("alembic", "reference")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    output: str
    """Standard output and standard error, as they came."""


async def alembic(*arguments: str, section: str = "alembic", url: str | None, cwd: Path) -> Finished:
    """Run alembic in a working directory, with DATABASE_URL in its environment if there is a URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "alembic", "-c", str(INI), "-n", section, *arguments),
        env={**os.environ, "DATABASE_URL": url} if url is not None else None,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return Finished(code=process.returncode, output=output.decode())
