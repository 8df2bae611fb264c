"""The one exception base, and the errors that people can mend."""

from __future__ import annotations

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.scalar import CONDITION_MESSAGE_CHARACTERS
from matview_operator.domain.text import shown


class MatviewError(Exception):
    """Base of every error that this project raises on purpose. Its text never holds a password or a DSN."""


class InvalidName(MatviewError):
    """A view name that PostgreSQL could not mean."""


class InvalidRequest(MatviewError):
    """Arguments of a refresh that nobody could mean: a tenant, a correlation id, a timeout."""


class InvalidTarget(MatviewError):
    """A connection URL or Secret that does not say how to reach a database. The text names keys, never values."""


class Problem(MatviewError):
    """What stands between a policy and a fresh view: a reason of the closed set and what to do about it.

    The message may repeat names, a hostile server's too: it is one line, and no longer than a condition's may be.
    """

    def __init__(self, reason: RefreshReason, message: str, *, sqlstate: str | None = None) -> None:
        self.reason = reason
        self.message = shown(message, size=CONDITION_MESSAGE_CHARACTERS)
        super().__init__(self.message)
        self.sqlstate = sqlstate
