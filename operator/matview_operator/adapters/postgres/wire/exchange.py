"""What a server may ask for while it lets us in, and in which order.

asyncpg answers whatever is asked, and takes any yes for one: also from a server that began SCRAM and never proved in it
that it knows the password.
"""

from __future__ import annotations

import re

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

_OK = 0
_CLEAR_TEXT = 3
_MD5 = 5
_SCRAM_BEGIN = 10
_SCRAM_CONTINUE = 11
_SCRAM_END = 12

_FOLLOWS: dict[int, frozenset[int | None]] = {
    _OK: frozenset({None, _CLEAR_TEXT, _MD5, _SCRAM_END}),
    _CLEAR_TEXT: frozenset({None}),
    _MD5: frozenset({None}),
    _SCRAM_BEGIN: frozenset({None}),
    _SCRAM_CONTINUE: frozenset({_SCRAM_BEGIN}),
    _SCRAM_END: frozenset({_SCRAM_CONTINUE}),
}
"""What each request may come after; None is the beginning."""


_REQUEST_BYTES = 4
_MANY_ITERATIONS = re.compile(rb",i=0*[1-9]\d{6}")
"""Half a second of SCRAM and more, in which nothing else runs here. PostgreSQL's default is 4,096; a hostile server can
ask for two milliards."""


class Exchange:
    """One connection's authentication."""

    def __init__(self) -> None:
        self._last: int | None = None

    def refusal(self, message: bytes, *, verified: bool) -> Problem | None:
        """Why this request is not to be answered, None if it is. `message` is without type and length.

        `verified`: TLS has proven whose server it is.
        """
        request = int.from_bytes(message[:_REQUEST_BYTES], "big")
        if request in (_CLEAR_TEXT, _MD5) and not verified:
            return Problem(
                RefreshReason.TLS_FAILED,
                "The server asked for the password itself. Only a connection whose TLS is verified may carry it. "
                "Use scram-sha-256 on the server, or sslMode verify-full with the server's CA.",
            )
        if request == _SCRAM_CONTINUE and _MANY_ITERATIONS.search(message):
            return Problem(
                RefreshReason.AUTHENTICATION_FAILED,
                "The server asks for a million iterations of SCRAM or more, for which everything else would have to "
                "wait. Lower scram_iterations there, and set the role's password anew.",
            )
        if request == _OK and self._last in (_SCRAM_BEGIN, _SCRAM_CONTINUE):
            return Problem(
                RefreshReason.AUTHENTICATION_FAILED,
                "The server let us in without proving that it knows the password, as scram-sha-256 demands: it may not "
                "be yours. Check host and port; sslMode verify-full tells servers apart.",
            )
        if self._last not in _FOLLOWS.get(request, frozenset()):
            return Problem(
                RefreshReason.AUTHENTICATION_FAILED,
                "The server asks for a kind of authentication that is not supported, or not at this point. "
                "Use scram-sha-256 or a client certificate.",
            )
        self._last = request
        return None
