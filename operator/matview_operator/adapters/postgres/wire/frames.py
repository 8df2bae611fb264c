"""The frames of a server's answers, read before asyncpg reads them, so that no server can fill our memory.

asyncpg holds each message whole, and a statement's rows all together, however large they are. A function in a view's
query can raise an error of a gigabyte, and a hostile server can say anything at all.
"""

from __future__ import annotations

from struct import Struct

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

_HEADER = Struct(">BI")
HEADER_BYTES = _HEADER.size
FRAME_BYTES = 1 << 20
"""Of one frame. The largest of ours is a row of a few names and numbers."""
ANSWER_BYTES = 16 << 20
"""Of the answer to one statement: ten thousand rows of more than a kilobyte."""
_FRAME_COST = 100
"""What a frame counts besides its bytes: the empty row of seven bytes is an object of a hundred."""
_ERROR_BYTES = 65_536
"""Of an error that is handed on as it is."""
_SHORT_ERROR_BYTES = 8_192
"""What is handed on of a larger one: severity, SQLSTATE and the beginning of the message come first."""
_SETTING_BYTES = 1_024
_LENGTH_BYTES = 4

_ERROR, _READY, _SETTING = b"EZS"
_UNHEARD = frozenset(b"NA")
"""Notices and notifications: we ask for none and read none."""
_ENCODING = b"client_encoding\0"
"""The one reported setting that reading depends on. Others would be kept for ever, whatever they are called."""


class Frames:
    """Of one connection, after its greeting. Holds at most one shortened error."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._held: bytearray | None = None
        self._kind = 0
        self._hold_bytes = 0
        self._answer = 0

    def admit(self, data: bytes) -> bytes:
        """Return what may be handed on of the next bytes. Raises Problem: the connection is not to be used any more."""
        if self._head:
            data, self._head = self._head + data, b""
        admitted: list[bytes] = []
        start = at = 0
        size = len(data)
        while at < size:
            if not self._left:
                if size - at < HEADER_BYTES:
                    break
                self._begin(*_HEADER.unpack_from(data, at))
                if self._held is not None:
                    admitted.append(data[start:at])
                    start = at + HEADER_BYTES
                at += HEADER_BYTES
            step = min(size - at, self._left)
            self._left -= step
            if self._held is not None:
                self._held += data[at : at + min(step, self._hold_bytes - len(self._held))]
                start = at + step
                if not self._left:
                    admitted.append(self._released())
            at += step
        if start == 0 and at == size:
            return data
        self._head = data[at:]
        admitted.append(data[start:at])
        return b"".join(admitted)

    def _begin(self, kind: int, length: int) -> None:
        counted = min(length, _ERROR_BYTES) if kind == _ERROR else length
        if length < _LENGTH_BYTES or counted > FRAME_BYTES:
            raise _lost(f"sent a message of {length} bytes. Is it PostgreSQL?")
        self._answer = 0 if kind == _READY else self._answer + counted + _FRAME_COST
        if self._answer > ANSWER_BYTES:
            raise _lost(
                f"answered one statement with more than {ANSWER_BYTES >> 20} MiB, notices included. Is it PostgreSQL? "
                "Does a function in the view's query raise notices?"
            )
        self._left = length - _LENGTH_BYTES
        self._kind = kind
        if not self._left:
            return
        if kind in _UNHEARD:
            self._held, self._hold_bytes = bytearray(), 0
        elif kind == _SETTING:
            self._held, self._hold_bytes = bytearray(), _SETTING_BYTES
        elif kind == _ERROR and length > _ERROR_BYTES:
            self._held, self._hold_bytes = bytearray(), _SHORT_ERROR_BYTES

    def _released(self) -> bytes:
        held = self._held
        assert held is not None  # the caller's condition
        self._held = None
        if self._kind == _ERROR:
            # What is cut off ends the field that it cuts; then come the ends of that field and of all fields.
            text = bytes(held).decode(errors="ignore").encode()
            return frame(_ERROR, text + b"\0\0")
        if self._kind == _SETTING and held.startswith(_ENCODING):
            return frame(_SETTING, bytes(held))
        return b""


def frame(kind: int, payload: bytes) -> bytes:
    """One message, of ours or of a server's."""
    return _HEADER.pack(kind, len(payload) + _LENGTH_BYTES) + payload


def _lost(what: str) -> Problem:
    return Problem(RefreshReason.CONNECTION_LOST, f"The connection was dropped, because the server {what}")
