"""What the operator found of the server behind a MatviewDatabase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

MAINTAIN_SINCE = 170_000
"""server_version_num of the first PostgreSQL with the MAINTAIN privilege."""
GRANTS_INHERIT_SINCE = 160_000
"""server_version_num of the first PostgreSQL where each GRANT of a role says whether its rights are inherited."""

VERSION_BYTES = 64
"""Of a version's text; the status holds no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """Read once per connection."""

    version: str
    version_num: int
    database: str
    role: str
    quoted_role: str
    """As the server quotes it, for statements that a person is to run."""
    quoted_database: str
    inherits: bool
    """Whether the role has the rights of the roles that it is a member of, where a grant does not say so itself."""
    superuser: bool
    in_recovery: bool
    bookkeeping: Bookkeeping
    bookkeeping_forbidden: bool = False
    """The ledger is there, but the role was not granted its use."""
    bookkeeping_flaw: str | None = None
    """Why a ledger that is there is not to be trusted, as a sentence about it."""
    system_identifier: str | None = None

    @property
    def ledger_is_absent(self) -> bool:
        """Whether nobody ever installed it, as far as this role can see."""
        return self.bookkeeping is Bookkeeping.MISSING and not self.bookkeeping_forbidden


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


def ledger_advice(facts: ServerFacts) -> str | None:
    """Say why the ledger is not used and what to do about it; None if it is."""
    if facts.bookkeeping_flaw is not None:
        return (
            f"The ledger matview_ops.refresh_run is not used: {facts.bookkeeping_flaw}. Such a table could run "
            f"somebody's code as {facts.role}, or let a slot run twice. Undo that, or make the ledger anew: "
            f"matview-operator migrate --down, then matview-operator migrate --grant-to {facts.role}"
        )
    if facts.bookkeeping_forbidden:
        return (
            f"The bookkeeping schema is installed, but {facts.role} may not use it. "
            f"Its owner can grant that: matview-operator migrate --grant-to {facts.role}"
        )
    match facts.bookkeeping:
        case Bookkeeping.INSTALLED:
            return None
        case Bookkeeping.OUTDATED:
            return (
                "The ledger is not used: it lacks what this version writes. "
                f"Bring it up to date: matview-operator migrate --grant-to {facts.role}"
            )
        case Bookkeeping.MISSING:
            return (
                "Without the ledger a crash at the wrong moment repeats one refresh. "
                f"Install it: matview-operator migrate --grant-to {facts.role}"
            )
        case _:
            assert_never(facts.bookkeeping)
