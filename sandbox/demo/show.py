"""The show: looks at policies and views every half second, keeps the books, and tells what it sees."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
from rich.live import Live

from sandbox.demo.board import Board
from sandbox.demo.lines import before_and_after, outcome_line, reading_line
from sandbox.demo.policies import PolicyReader
from sandbox.demo.readings import Readings
from sandbox.demo.scene import Scene
from sandbox.demo.tally import Line, Tally
from sandbox.demo.writer import Writer
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.demo.policies import Policy
    from sandbox.operator_process import OperatorProcess
    from sandbox.stack import Stack
    from sandbox.terminal import Terminal

_LOOK_SECONDS = 0.5
_FRAMES_PER_SECOND = 4
_READINGS_EVERY_SECONDS = 5
_HINTS_AFTER_SECONDS = 60
_SETTLE_SECONDS = 15
"""What was due at the end has so long to end."""
_API_SILENCE_SECONDS = 15


class Show:
    """One performance on a running stack whose policies are applied."""

    def __init__(self, *, stack: Stack, operator: OperatorProcess, terminal: Terminal, hints: str) -> None:
        self._stack = stack
        self._operator = operator
        self._terminal = terminal
        self._hints = hints
        self._readings = Readings(stack.analytics)
        self._writer = Writer(stack.analytics)
        self._tally = Tally()
        self._answered_at = time.monotonic()
        self._scene = Scene(
            tenants={str(tenant.tenant_id): tenant.name for tenant in stack.analytics.tenants},
            readings=self._readings.all,
        )

    async def run(self, seconds: float | None) -> tuple[Line, ...]:
        """Perform for so long, or until cancelled; return each policy's account.

        Raises SandboxError when the operator or PostgreSQL ends, or the API server does not answer for 15 s.
        """
        self._scene.seconds_in_all = seconds
        async with AsyncExitStack() as exits:
            reader = await exits.enter_async_context(PolicyReader(self._stack.control_plane.kubeconfig))
            await exits.enter_async_context(self._readings)
            if self._terminal.is_live:
                exits.enter_context(
                    Live(Board(self._scene), console=self._terminal, refresh_per_second=_FRAMES_PER_SECOND)
                )
            writing = asyncio.create_task(self._writer.run())
            exits.callback(writing.cancel)
            try:
                await self._perform(reader, seconds=seconds, writing=writing)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
                raise SandboxError(f"PostgreSQL has failed the application: {error}") from error
            self._scene.help = "The end: waiting for what is still running."
            await self._settle(reader)
        return self.accounts()

    def say_goodbye(self) -> None:
        """Let the board say that the end is near."""
        self._scene.help = "Stopping and cleaning up: a few seconds."

    def accounts(self) -> tuple[Line, ...]:
        """Return each policy's account up to now."""
        return self._tally.lines()

    async def _perform(self, reader: PolicyReader, *, seconds: float | None, writing: asyncio.Task[None]) -> None:
        began = time.monotonic()
        told_readings, told_hints = began, False
        while seconds is None or time.monotonic() - began < seconds:
            if writing.done():
                writing.result()
            self._tally.observe(await self._look(reader), now=datetime.now(UTC))
            await self._read()
            now = time.monotonic()
            self._scene.seconds = now - began
            if not self._terminal.is_live and now - told_readings >= _READINGS_EVERY_SECONDS:
                told_readings = now
                for reading in self._readings.all:
                    self._terminal.say(reading_line(reading))
            if not told_hints and now - began >= _HINTS_AFTER_SECONDS:
                told_hints = True
                self._terminal.say(self._hints)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _settle(self, reader: PolicyReader) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            if self._tally.settle(await self._look(reader)):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, reader: PolicyReader) -> tuple[Policy, ...]:
        if not self._operator.alive:
            raise SandboxError(f"The operator has ended. The end of its log:\n{self._operator.log_text()[-2000:]}")
        try:
            policies = await reader.policies()
        except (aiohttp.ClientError, TimeoutError) as error:
            if time.monotonic() - self._answered_at > _API_SILENCE_SECONDS:
                raise SandboxError(f"The API server does not answer: {error}") from error
            return self._scene.policies
        self._answered_at = time.monotonic()
        for ended in self._scene.update(policies):
            if not self._terminal.is_live:
                self._terminal.say(outcome_line(ended))
        return policies

    async def _read(self) -> None:
        self._scene.rows_written = self._writer.rows
        for reading in await self._readings.sample():
            if not self._terminal.is_live:
                self._terminal.say(before_and_after(reading))
