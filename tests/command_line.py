"""The command line as tests run it: a process with nothing of our own environment."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.canaries import looked_at

COMMAND = Path(sys.executable).with_name("matview-operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def results(self) -> list[dict[str, Any]]:
        found = json.loads(self.out)
        assert isinstance(found, list)
        return found

    def outcomes(self) -> dict[str, str]:
        return {result["view_name"]: result["outcome"] for result in self.results()}


async def start(*arguments: str, url: str | None = None, **environment: str) -> asyncio.subprocess.Process:
    """Start a command with nothing of our own environment."""
    if url is not None:
        environment["DATABASE_URL"] = url
    return await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env={"PATH": os.defpath, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    looked_at(out + err, place=f"output of {process.pid}")
    return Ended(code=process.returncode, out=out.decode(), err=err.decode())


async def run(*arguments: str, url: str | None = None, **environment: str) -> Ended:
    return await end(await start(*arguments, url=url, **environment))
