"""A TCP proxy between the operator and PostgreSQL that loses what a network can lose, at a chosen statement."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

from tests.listener import stop_listening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

Loss = Literal["request", "answer"]
"""What is lost first: the statement, so that the server never sees it, or only what the server says to it."""

_HEADER_BYTES = 5
_STARTUP_HEADER_BYTES = 4
_PARSE, _BIND, _DESCRIBE, _EXECUTE, _PASSWORD = b"P", b"B", b"D", b"E", b"p"
_SYNC, _FLUSH = b"S", b"H\0\0\0\4"
_FOLLOWED = frozenset({_PARSE, _BIND, _DESCRIBE})
"""By other messages of the same statement, at once."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """Happens when a connection executes a statement that starts with `statement`, in lower case; once, or always."""

    statement: str
    """`startup` is a connection's first message, `password` the first of its authentication; every statement starts
    with the empty one."""
    loses: Loss
    always: bool = False
    skips: int = 0
    """So many such statements pass before it happens."""
    until: asyncio.Event | None = None
    """The statement waits at the proxy until this is set; then all goes on, and nothing is lost."""
    held: bool = False
    """Both sides stay connected and hear nothing more, until one of them ends; then so does the other."""
    silent: bool = False
    """Silence: both sides stay connected and hear nothing more. Else the client's side is closed."""
    reset: bool = False
    """The client's side is reset, not closed."""
    says: Callable[[], Iterable[bytes]] | None = None
    """What the client hears in place of an answer, as fast as it reads; then silence."""
    slow: bool = False
    """The answer comes, one byte a second."""
    network_too: bool = False
    """From then on no new connection hears anything either."""
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server has done what it does with the statement, and nobody will hear of it."""


class Proxy:
    """A way to a server, to be used with `async with`. Understands just enough of the protocol to find statements."""

    def __init__(self, port: int, *faults: Fault) -> None:
        """`port` is the server's, on loopback."""
        self._server_port = port
        self._faults = [*faults]
        self.is_dead = False
        """Whether connections are accepted and then hear nothing."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        """How many were accepted."""
        self.statements: list[str] = []
        """What was executed, in lower case, the one that met a fault included."""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await stop_listening(self._listener)
        await self.cut()

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a URL of the server by way of this proxy."""
        return f"postgresql://{quote(user)}:{quote(password)}@127.0.0.1:{self.port}/{quote(database)}"

    def add(self, fault: Fault) -> None:
        """Have something happen from now on."""
        self._faults.append(fault)

    def lead_to(self, port: int) -> None:
        """Lead new connections to another server, as a service's name does after a failover."""
        self._server_port = port

    async def cut(self) -> None:
        """Close every connection, on both sides."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.is_dead:
                await asyncio.Event().wait()
            await self._carry(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(_pump(server, to_client))
        try:
            fault, statement = await self._forward_until_fault(client, to_server)
            if fault.slow:
                await _end(answers)
                to_server.write(statement)
                fault.happened.set()
                await _trickle(server, to_client)
            if fault.loses == "answer":
                # All earlier answers have been carried, or the client would not have sent this.
                await _end(answers)
                to_server.write(statement)
                await server.readexactly(1)
            self.is_dead = fault.network_too
            fault.happened.set()
            if fault.held:
                await _either(client.read(), answers if fault.loses == "request" else server.read())
            if fault.says is not None:
                await _end(answers)
                for words in fault.says():
                    to_client.write(words)
                    await to_client.drain()
            if fault.silent or fault.says is not None:
                await _end(answers)
                await asyncio.Event().wait()
            if fault.reset:
                await _end(answers)
                linger = struct.pack("ii", 1, 0)
                to_client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                to_client.transport.abort()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            await _end(answers)
            to_server.close()

    async def _forward_until_fault(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter
    ) -> tuple[Fault, bytes]:
        """Forward messages until one meets a fault; return that one too, with what belongs to an Execute.

        A statement's messages leave its client together, so they are forwarded or lost together.
        """
        message = await _read(client, header_bytes=_STARTUP_HEADER_BYTES)
        fault = self._fault_at("startup", unasked=True)
        texts: dict[bytes, str] = {}
        statement, unsent = "", b""
        while fault is None:
            unsent += message
            if message[:1] not in _FOLLOWED:
                to_server.write(unsent)
                unsent = b""
            message = await _read(client, header_bytes=_HEADER_BYTES)
            kind = message[:1]
            if kind == _PARSE:
                name, text, _ = message[_HEADER_BYTES:].split(b"\0", maxsplit=2)
                texts[name] = text.decode().strip().lower()
            elif kind == _BIND:
                statement = texts.get(message[_HEADER_BYTES:].split(b"\0", maxsplit=2)[1], "")
            elif kind == _PASSWORD:
                fault = self._fault_at("password", unasked=True)
            elif kind == _EXECUTE:
                self.statements.append(statement)
                fault = self._fault_at(statement)
                if fault is not None and fault.until is not None:
                    fault.happened.set()
                    await fault.until.wait()
                    fault = None
                elif fault is not None:
                    following = await _read(client, header_bytes=_HEADER_BYTES)
                    # A server that is sent more statements before it is to answer is asked to answer this one now.
                    message += following if following[:1] == _SYNC else _FLUSH
        return fault, unsent + message

    def _fault_at(self, statement: str, *, unasked: bool = False) -> Fault | None:
        for fault in self._faults:
            if statement.startswith(fault.statement) and (fault.statement or not unasked):
                if fault.skips:
                    fault.skips -= 1
                    continue
                if not fault.always:
                    self._faults.remove(fault)
                return fault
        return None


async def _read(client: asyncio.StreamReader, *, header_bytes: int) -> bytes:
    header = await client.readexactly(header_bytes)
    return header + await client.readexactly(int.from_bytes(header[-4:], "big") - 4)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await source.read(65_536):
            target.write(chunk)
            await target.drain()
    target.close()


async def _trickle(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while byte := await source.read(1):
        target.write(byte)
        await asyncio.sleep(1)


async def _either(*awaitables: Awaitable[object]) -> None:
    """Wait until the first of these has ended."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
