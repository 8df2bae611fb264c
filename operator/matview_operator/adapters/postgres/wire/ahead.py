"""Statements that go out together with the one after them, and what the server answers to them before it answers that.

asyncpg has no pipeline: it would wait for each answer, and a round trip is a good part of what the run of a small view
costs. So it is told of the last statement only. The server skips that, and every other one in between, when one fails.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from matview_operator.adapters.postgres.wire.frames import HEADER_BYTES, frame

_PARSE, _BIND, _EXECUTE = b"PBE"
_PARSED, _BOUND, _ROW, _DONE, _ERROR = b"12DCE"
_COUNT = struct.Struct(">H")
_LENGTH = struct.Struct(">i")
_NULL = -1


@dataclass(frozen=True, slots=True)
class Ahead:
    """A statement, and how the server says that it was done."""

    request: bytes
    """Without Sync, which is the last statement's."""
    answers: tuple[tuple[int, bytes | None], ...]
    """Kind and content of each message; None is a row's, whatever it holds."""


def kept(name: str, tag: str, arguments: Sequence[str | int | float | None] | None = None) -> Ahead:
    """A statement that the server keeps under this name. `tag`: its command tag.

    Without arguments it is one that takes none and returns nothing; with them, one that returns a row.
    """
    values = b"".join(_value(argument) for argument in arguments or ())
    # No formats, here and after the values, are text's.
    bind = b"\0" + name.encode() + b"\0" + _COUNT.pack(0) + _COUNT.pack(len(arguments or ())) + values + _COUNT.pack(0)
    row = () if arguments is None else ((_ROW, None),)
    return Ahead(frame(_BIND, bind) + _executed(), ((_BOUND, b""), *row, (_DONE, tag.encode() + b"\0")))


def unnamed(text: str, tag: str) -> Ahead:
    """A statement whose text is of use once, without parameters and rows."""
    return Ahead(
        frame(_PARSE, b"\0" + text.encode() + b"\0" + _COUNT.pack(0)) + frame(_BIND, bytes(8)) + _executed(),
        ((_PARSED, b""), (_BOUND, b""), (_DONE, tag.encode() + b"\0")),
    )


class Answers:
    """What one connection's server still has to say to statements that were sent ahead."""

    def __init__(self) -> None:
        self._awaited: deque[tuple[int, bytes | None]] = deque()
        self._head = b""
        self._row: bytes | None = None
        self.is_refused = False
        """Whether it last was one of those statements that failed, and not the one that they were sent with."""

    def expect(self, statements: Sequence[Ahead]) -> None:
        """From now on."""
        self._awaited.extend(answer for statement in statements for answer in statement.answers)
        self.is_refused, self._row = False, None

    def take(self, data: bytes) -> bytes:
        """Take the answers out of what the server says; what is left is the last statement's.

        Raises InterfaceError for anything else than was to be said: the connection is not to be used any more.
        """
        if not self._awaited:
            return data
        data, at = self._head + data, 0
        while self._awaited and len(data) - at >= HEADER_BYTES:
            end = at + 1 + int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
            if len(data) < end:
                break
            kind, content = data[at], data[at + HEADER_BYTES : end]
            if kind == _ERROR:
                self.is_refused = True
                self._awaited.clear()
                break
            expected, said = self._awaited.popleft()
            if kind != expected or said not in (None, content):
                raise asyncpg.InterfaceError("the server did not do what it was asked to")
            if said is None:
                self._row = content
            at = end
        if self._awaited:
            self._head = data[at:]
            return b""
        self._head = b""
        return data[at:]

    def row(self, names: Sequence[str]) -> dict[str, str | None]:
        """The row that one of the statements returned. Raises InterfaceError if it makes no sense."""
        row = self._row
        assert row is not None  # the caller has sent one that returns a row, and heard the last one's answer
        values: list[str | None] = []
        at = _COUNT.size
        try:
            while at < len(row):
                (length,) = _LENGTH.unpack_from(row, at)
                at += _LENGTH.size
                values.append(None if length == _NULL else row[at : at + length].decode())
                at += max(0, length)
            return dict(zip(names, values, strict=True))
        except (struct.error, ValueError):
            raise asyncpg.InterfaceError("the server's row is none of PostgreSQL's") from None


def _value(argument: str | float | None) -> bytes:
    if argument is None:
        return _LENGTH.pack(_NULL)
    text = str(argument).encode()
    return _LENGTH.pack(len(text)) + text


def _executed() -> bytes:
    return frame(_EXECUTE, bytes(5))
