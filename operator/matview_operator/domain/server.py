"""What the operator found of the server behind a MatviewDatabase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

MAINTAIN_SINCE = 170_000
"""server_version_num of the first PostgreSQL with the MAINTAIN privilege."""
OWN_SEARCH_PATH_SINCE = 170_000
"""server_version_num of the first PostgreSQL whose REFRESH leaves no search path to the session."""
GRANTS_INHERIT_SINCE = 160_000
"""server_version_num of the first PostgreSQL where each GRANT of a role says whether its rights are inherited."""

VERSION_BYTES = 64
"""Of a version's text; the status holds no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vulnerability:
    """A fault of old minor versions by which REFRESH lets somebody else's code run."""

    cve: str
    since: int
    """server_version_num of the first version that has it."""
    fixed: int
    """server_version_num of the first version of that major that does not."""
    is_exploitable: bool
    """Whether a way to use it is known."""

    @property
    def fixed_version(self) -> str:
        """As people write it: 15.6."""
        return f"{self.fixed // 10_000}.{self.fixed % 10_000}"


VULNERABILITIES = (
    # A step of REFRESH … CONCURRENTLY ran what the view's owner made with the rights of the role that refreshes it. The
    # release notes of 15.6 and 16.2 say that the one known exploit does not work on 16.
    Vulnerability(cve="CVE-2024-0985", since=150_000, fixed=150_006, is_exploitable=True),
    Vulnerability(cve="CVE-2024-0985", since=160_000, fixed=160_002, is_exploitable=False),
)
"""Those of PostgreSQL 15 and later that concern a role which refreshes the views of others. CVE-2022-1552, of the same
kind, was fixed before 15.0."""


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
    def vulnerability(self) -> Vulnerability | None:
        """What its minor version lacks, if anything."""
        return next((each for each in VULNERABILITIES if each.since <= self.version_num < each.fixed), None)

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


def version_advice(facts: ServerFacts) -> str | None:
    """Say which fault this server's minor version has, and what to do; None if none is known."""
    found = facts.vulnerability
    if found is None:
        return None
    known = "views of other owners are not refreshed CONCURRENTLY" if found.is_exploitable else "no exploit is known"
    return (
        f"PostgreSQL {facts.version} lacks the fix of {found.cve}, by which the owner of a view could run code as "
        f"{facts.role}; {known}. Update the server to {found.fixed_version} or later."
    )


def search_path_advice(facts: ServerFacts, search_path: Sequence[str]) -> str | None:
    """Say that a search path that was asked for comes to nothing here."""
    if not search_path or facts.version_num < OWN_SEARCH_PATH_SINCE:
        return None
    return (
        "spec.searchPath has no effect on PostgreSQL 17 and later, where REFRESH fixes its own: leave it out, and give "
        "each function that needs one a path of its own, with ALTER FUNCTION … SET search_path."
    )


def check_owner(facts: ServerFacts, *, view: str, owner: str) -> None:
    """Raise Problem where a refresh CONCURRENTLY would hand the role over to the view's owner. Names are quoted."""
    found = facts.vulnerability
    if found is None or not found.is_exploitable or owner == facts.quoted_role:
        return
    raise Problem(
        RefreshReason.VULNERABLE_SERVER,
        f"PostgreSQL {facts.version} lacks the fix of {found.cve}: REFRESH … CONCURRENTLY of {view} would let {owner}, "
        f"who owns it, run code as {facts.quoted_role}. Bring the server to {found.fixed_version} or later. Until then "
        f"write concurrently: Never, or connect as {owner}.",
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
