"""Migrations of a database, each in a process of its own, as a user would run them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sandbox.errors import SandboxError

_SECONDS = 120


async def run_migration(*command: str | Path, database_url: str, what: str) -> None:
    """Run a command on a database; raise SandboxError with its output if it fails or takes 120 s."""
    process = await asyncio.create_subprocess_exec(
        *command,
        # In the environment, because everybody can read a command line.
        env={**os.environ, "DATABASE_URL": database_url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        raise SandboxError(f"{what} did not end within {_SECONDS} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise SandboxError(f"{what} failed:\n{output.decode(errors='replace')}")
