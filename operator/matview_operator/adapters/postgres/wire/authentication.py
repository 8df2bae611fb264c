"""A password is only proven, never sent, unless TLS has verified who asks; and no server says more than we can hold.

asyncpg answers a server's request for a clear-text or MD5 password whatever the connection. Between us and it stands
this protocol: it reads the authentication requests before asyncpg does and drops the connection on such a request.
What comes after the greeting it has checked by Frames.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

import asyncpg
from asyncpg import protocol as asyncpg_protocol

from matview_operator.adapters.postgres.wire.ahead import Ahead, Answers
from matview_operator.adapters.postgres.wire.exchange import Exchange
from matview_operator.adapters.postgres.wire.frames import HEADER_BYTES, Frames
from matview_operator.adapters.postgres.wire.tls import tls_problem, tls_unanswered
from matview_operator.domain.errors import Problem

_AUTHENTICATION = ord("R")
_READY = ord("Z")
_REQUEST_BYTES = 9
"""Of an authentication message up to the number that says what it asks for."""
_GREETING_BYTES = 65_536
"""No honest server says more than this before it is ready for a query."""

_KEEPALIVE_IDLE_SECONDS = 30
_KEEPALIVE_INTERVAL_SECONDS = 10
_KEEPALIVE_PROBES = 3

_Unguarded: Any = asyncpg_protocol.Protocol


class Row(asyncpg.Record):
    """Rows of our own connections; by this class the guard knows them from another library's in the same process."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class _Wire:
    """A transport, for asyncpg to write to."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.ahead = b""
        """What goes out with the next message."""

    def write(self, data: bytes) -> None:
        if self.ahead:
            data, self.ahead = self.ahead + bytes(data), b""
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _GuardedProtocol(_Unguarded):  # type: ignore[misc]
    """asyncpg's protocol with its authentication watched and TCP keepalive set, which asyncpg has no option for."""

    def __init__(self, addr: Any, connected: Any, params: Any, record_class: Any, loop: Any) -> None:
        super().__init__(addr, connected, params, record_class, loop)
        self._connected_future = connected
        self._greeting: bytearray | None = bytearray()
        self._greeted = 0
        self._exchange = Exchange()
        self._frames = Frames()
        self.answers = Answers()
        """To what was sent ahead."""
        self._refused: Exception | None = None
        self._wire: _Wire
        self._tls: ssl.SSLObject | None = None

    def connection_made(self, transport: Any) -> None:
        self._wire = _Wire(transport)
        # Now: a transport that was aborted cannot be asked any more.
        self._tls = transport.get_extra_info("ssl_object")
        _keep_alive(transport.get_extra_info("socket"))
        super().connection_made(self._wire)

    def data_received(self, data: bytes) -> None:
        if self._greeting is None:
            self._hand_on(data)
            return
        # Whole messages only are handed on, so that no request is answered before it has been read; and up to the first
        # ReadyForQuery, because asyncpg would answer another request even after the one that says we are in.
        self._greeting += data
        self._greeted += len(data)
        while self._greeting is not None and len(self._greeting) >= HEADER_BYTES:
            length = 1 + int.from_bytes(self._greeting[1:HEADER_BYTES], "big")
            if length < HEADER_BYTES or max(length, self._greeted) > _GREETING_BYTES:
                self._refuse(asyncpg.InterfaceError("the greeting is none of PostgreSQL's"))
                return
            if len(self._greeting) < length:
                return
            message = bytes(self._greeting[:length])
            del self._greeting[:length]
            refusal = self._refusal(message) if message[0] == _AUTHENTICATION else None
            if refusal is not None:
                self._refuse(refusal)
                return
            super().data_received(message)
            if message[0] == _READY:
                rest, self._greeting = bytes(self._greeting), None
                self._hand_on(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tls is not None and not self._greeted and self._refused is None:
            # With TLS 1.3 a client's certificate is judged when the handshake is over for the client.
            self._refused = tls_problem(exc) if isinstance(exc, ssl.SSLError) else tls_unanswered()
            if not self._connected_future.done():
                self._connected_future.set_exception(self._refused)
        super().connection_lost(self._refused or exc)

    def send_ahead(self, statements: Sequence[Ahead]) -> None:
        """Send these together with the next statement; until that, nothing may be awaited.

        asyncpg does not see them. The error of one is to it the error of the next. What else the server says to them
        than it should ends the connection.
        """
        self._wire.ahead = b"".join(statement.request for statement in statements)
        self.answers.expect(statements)

    def _hand_on(self, data: bytes) -> None:
        try:
            admitted = self.answers.take(self._frames.admit(data))
        except (Problem, asyncpg.InterfaceError) as refusal:
            self._refuse(refusal)
        else:
            if admitted:
                super().data_received(admitted)

    def _refusal(self, message: bytes) -> Exception | None:
        if len(message) < _REQUEST_BYTES:
            return asyncpg.InterfaceError("the greeting is none of PostgreSQL's")
        verified = self._tls is not None and self._tls.context.verify_mode is ssl.CERT_REQUIRED
        return self._exchange.refusal(message[HEADER_BYTES:], verified=verified)

    def _refuse(self, why: Exception) -> None:
        self._greeting = bytearray()
        self._refused = why
        if not self._connected_future.done():
            self._connected_future.set_exception(why)
        self._wire.abort()


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _choose_protocol(addr: Any, connected: Any, params: Any, record_class: Any, loop: Any) -> Any:
    kind = _GuardedProtocol if issubclass(record_class, Row) else _Unguarded
    return kind(addr, connected, params, record_class, loop)


def install() -> None:
    """Put the guard in front of asyncpg's protocol, for connections whose record class is Row only."""
    setattr(asyncpg_protocol, "Protocol", _choose_protocol)  # noqa: B010 - a type checker rightly refuses the plain form
