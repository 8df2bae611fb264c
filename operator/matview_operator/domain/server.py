"""What the operator found of the server behind a MatviewDatabase."""

from __future__ import annotations

from dataclasses import dataclass

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

MAINTAIN_SINCE = 170_000
"""server_version_num of the first PostgreSQL with the MAINTAIN privilege."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """Read once per connection."""

    version: str
    version_num: int
    database: str
    role: str
    superuser: bool
    in_recovery: bool
    bookkeeping: Bookkeeping
    bookkeeping_forbidden: bool = False
    """The ledger is there, but the role was not granted its use."""
    system_identifier: str | None = None


def check_server(facts: ServerFacts, *, allow_superuser: bool) -> None:
    """Raise Problem where no view of this server may or can be refreshed."""
    if facts.in_recovery:
        raise Problem(
            RefreshReason.READ_ONLY_SERVER,
            "The server is a standby (pg_is_in_recovery). Point the Secret's host at the primary.",
        )
    if facts.superuser and not allow_superuser:
        raise Problem(
            RefreshReason.SUPERUSER_REFUSED,
            f"The role {facts.role} is a superuser. Use a role that may refresh these views and nothing more, "
            "or set spec.allowSuperuser: true on the MatviewDatabase.",
        )
