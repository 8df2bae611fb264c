"""A server that lies: a real PostgreSQL whose answers are changed on their way, and whose clients are listened to."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.listener import stop_listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_HEADER_BYTES = 5
_PARSE, _BIND = b"P", b"B"
_COLUMNS, _ROW, _ERROR = b"T", b"D", b"E"
_COLUMN_TAIL_BYTES = 18
_NULL = -1


@dataclass(slots=True)
class Liar:
    """A way to the server at `server_port` of loopback. Lies may be changed between connections."""

    server_port: int
    lies: dict[str, bytes | None] = field(default_factory=dict)
    """By column: its value on the wire, in the binary format; None is null."""
    error: bytes | None = None
    """Fields of an error response in place of the server's own, without the closing zero."""
    asked: Counter[str] = field(default_factory=Counter)
    """Messages of clients by their kind: Q is the simple protocol's, P, B and E are the extended one's."""
    port: int = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Liar]:
        """Listen until the end of the block."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._carry(reader, writer)
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await stop_listening(listener)
            for task in [*tasks]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a URL of the server by way of the liar."""
        return f"postgresql://{quote(user)}:{quote(password)}@127.0.0.1:{self.port}/{quote(database)}"

    async def _carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
        # The client asks one thing at a time: what comes belongs to the text sent last, or bound by its name.
        texts = [b""]
        requests = asyncio.create_task(self._listen(client, to_server, texts))
        columns: dict[bytes, list[str]] = {}
        try:
            while True:
                header = await server.readexactly(_HEADER_BYTES)
                kind, body = header[:1], await server.readexactly(int.from_bytes(header[1:], "big") - 4)
                if kind == _COLUMNS:
                    columns[texts[-1]] = _names(body)
                elif kind == _ROW:
                    body = self._row(body, columns[texts[-1]])
                elif kind == _ERROR and self.error is not None:
                    body = self.error + b"\0"
                to_client.write(kind + (len(body) + 4).to_bytes(4, "big") + body)
                await to_client.drain()
        finally:
            requests.cancel()
            to_server.close()

    async def _listen(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, texts: list[bytes]) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            kept: dict[bytes, bytes] = {}
            startup = await client.readexactly(4)
            to_server.write(startup + await client.readexactly(int.from_bytes(startup, "big") - 4))
            while True:
                header = await client.readexactly(_HEADER_BYTES)
                self.asked[chr(header[0])] += 1
                body = await client.readexactly(int.from_bytes(header[1:], "big") - 4)
                if header[:1] == _PARSE:
                    name, text, _ = body.split(b"\0", maxsplit=2)
                    texts[:] = [text]
                    kept[name] = text
                elif header[:1] == _BIND:
                    texts[:] = [kept[body.split(b"\0", maxsplit=2)[1]]]
                to_server.write(header + body)
                await to_server.drain()
        to_server.close()

    def _row(self, body: bytes, columns: list[str]) -> bytes:
        told, position = body[:2], 2
        for name in columns:
            length = int.from_bytes(body[position : position + 4], "big", signed=True)
            end = position + 4 + max(0, length)
            if name in self.lies:
                lie = self.lies[name]
                told += (_NULL if lie is None else len(lie)).to_bytes(4, "big", signed=True) + (lie or b"")
            else:
                told += body[position:end]
            position = end
        return told


def _names(body: bytes) -> list[str]:
    names, position = [], 2
    while position < len(body):
        end = body.index(b"\0", position)
        names.append(body[position:end].decode())
        position = end + 1 + _COLUMN_TAIL_BYTES
    return names
