"""Whether a view can be refreshed, decided from one row of the catalogue, with the statement that mends it.

Messages that name one end in `Run: …`. The names in it come quoted from the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice, choose_mode
from matview_operator.domain.server import GRANTS_INHERIT_SINCE, MAINTAIN_SINCE, ServerFacts, check_owner
from matview_operator.domain.view import ViewName

_KINDS = {
    "r": "a table",
    "p": "a partitioned table",
    "v": "an ordinary view",
    "f": "a foreign table",
    "i": "an index",
}
_SHOWN = 3
"""So many of a list are named; the message has room for no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFacts:
    """One relation as the catalogue holds it; all names as the server quotes them."""

    oid: int
    quoted: str
    """Schema and name."""
    relkind: str
    populated: bool
    usable_index: bool
    may_refresh: bool
    may_use_schema: bool
    schema: str
    owner: str
    is_member: bool
    """Whether the role belongs to the owner, with or without his rights."""
    owner_has_temp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSecurityHazard:
    """A table that REFRESH would read under row-level security."""

    relation: str
    read_as: str
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingPrivilege:
    """A relation or function that REFRESH needs and may not use; all names as the server quotes them."""

    object: str
    role: str
    """Who is refused: the view's owner, or that of an ordinary view in between."""
    mend: str
    """The GRANT, ready to be run."""


def check_view(
    view: ViewName,
    facts: ViewFacts | None,
    *,
    concurrently: Concurrently,
    grouped: bool = False,
    server: ServerFacts,
) -> ModeChoice:
    """Return how the view will be refreshed; raises Problem with what a person must do first."""
    if facts is None:
        raise Problem(
            RefreshReason.VIEW_NOT_FOUND,
            f"There is no materialized view {view} in database {server.database}. "
            "Create it, or correct schema and name (they are literal: upper case matters).",
        )
    if facts.relkind != "m":
        raise Problem(
            RefreshReason.NOT_MATERIALIZED_VIEW,
            f"{facts.quoted} is {_KINDS.get(facts.relkind, 'another kind of relation')}, not a materialized view. "
            "Name a materialized view in spec.views.",
        )
    grants = _missing_grants(facts, server)
    if grants:
        raise Problem(
            RefreshReason.PERMISSION_DENIED,
            f"The role {server.quoted_role} may not refresh {facts.quoted}, which {facts.owner} owns. "
            f"Run: {' '.join(grants)}",
        )
    choice = choose_mode(
        concurrently,
        populated=facts.populated,
        usable_index=facts.usable_index,
        view=facts.quoted,
        grouped=grouped,
    )
    if choice.mode is RefreshMode.BLOCKING:
        return choice
    check_owner(server, view=facts.quoted, owner=facts.owner)
    if not facts.owner_has_temp:
        raise Problem(
            RefreshReason.PERMISSION_DENIED,
            f"REFRESH … CONCURRENTLY needs the TEMP privilege for the owner of {facts.quoted}. "
            f"Run: GRANT TEMP ON DATABASE {server.quoted_database} TO {facts.owner};",
        )
    return choice


def _missing_grants(facts: ViewFacts, server: ServerFacts) -> list[str]:
    """What the role lacks to name the view and to refresh it, as statements."""
    grants = []
    if not facts.may_use_schema:
        grants.append(f"GRANT USAGE ON SCHEMA {facts.schema} TO {server.quoted_role};")
    if facts.may_refresh:
        return grants
    if server.version_num >= MAINTAIN_SINCE:
        return [*grants, f"GRANT MAINTAIN ON {facts.quoted} TO {server.quoted_role};"]
    if server.version_num >= GRANTS_INHERIT_SINCE:
        return [*grants, f"GRANT {facts.owner} TO {server.quoted_role} WITH INHERIT TRUE;"]
    if not facts.is_member:
        grants.append(f"GRANT {facts.owner} TO {server.quoted_role};")
    if not server.inherits:
        grants.append(f"ALTER ROLE {server.quoted_role} INHERIT;")
    return grants


def replaced_problem(view: ViewName) -> Problem:
    """Say that the name means another relation now than when the run looked it up."""
    return Problem(
        RefreshReason.VIEW_REPLACED,
        f"Another relation took the name {view} while it was refreshed; everything was rolled back.",
    )


def hazard_problem(view: ViewName, hazards: Sequence[RowSecurityHazard], *, sqlstate: str | None = None) -> Problem:
    """Say which table would be read in part only, and how to mend it."""
    named = "; ".join(
        f"{hazard.relation} as {hazard.read_as}{' (FORCE)' if hazard.forced else ''}" for hazard in hazards[:_SHOWN]
    )
    where = f"It reads under row-level security: {named}{_more(hazards)}. " if named else ""
    readers = dict.fromkeys(hazard.read_as for hazard in hazards)
    run = " Run: " + " ".join(f"ALTER ROLE {reader} BYPASSRLS;" for reader in readers) if readers else ""
    return Problem(
        RefreshReason.ROW_SECURITY_HAZARD,
        f"REFRESH of {view} would keep only the rows that a policy lets its owner see. {where}"
        "Give the owner BYPASSRLS or ownership of the table without FORCE; "
        f"if the view is one tenant's alone, set isolation: Tenant.{run}",
        sqlstate=sqlstate,
    )


def privilege_problem(view: ViewName, missing: Sequence[MissingPrivilege], *, sqlstate: str | None = None) -> Problem:
    """Say what REFRESH needs and may not use, and the grants that mend it."""
    named = "; ".join(f"{each.object} as {each.role}" for each in missing[:_SHOWN])
    return Problem(
        RefreshReason.PERMISSION_DENIED,
        f"REFRESH of {view} needs what its owner has no right to: {named}{_more(missing)}. "
        f"Run: {' '.join(each.mend for each in missing[:_SHOWN])}",
        sqlstate=sqlstate,
    )


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
