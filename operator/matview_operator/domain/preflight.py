"""Whether a view can be refreshed, decided from one row of the catalogue, with the statement that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice, choose_mode
from matview_operator.domain.server import MAINTAIN_SINCE, ServerFacts
from matview_operator.domain.view import ViewName

_KINDS = {
    "r": "a table",
    "p": "a partitioned table",
    "v": "an ordinary view",
    "f": "a foreign table",
    "i": "an index",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFacts:
    """One relation as the catalogue holds it."""

    oid: int
    quoted: str
    """Schema and name as the server quotes them."""
    relkind: str
    populated: bool
    usable_index: bool
    may_refresh: bool
    owner: str
    owner_has_temp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSecurityHazard:
    """A table that REFRESH would read under row-level security."""

    relation: str
    read_as: str
    forced: bool


def check_view(
    view: ViewName, facts: ViewFacts | None, *, concurrently: Concurrently, server: ServerFacts
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
    if not facts.may_refresh:
        grant = (
            f"GRANT MAINTAIN ON {facts.quoted} TO {server.role};"
            if server.version_num >= MAINTAIN_SINCE
            else f"GRANT {facts.owner} TO {server.role};"
        )
        raise Problem(
            RefreshReason.PERMISSION_DENIED,
            f"The role {server.role} may not refresh {facts.quoted}, which {facts.owner} owns. Run: {grant}",
        )
    choice = choose_mode(concurrently, populated=facts.populated, usable_index=facts.usable_index)
    if choice.mode is RefreshMode.CONCURRENT and not facts.owner_has_temp:
        raise Problem(
            RefreshReason.PERMISSION_DENIED,
            f"REFRESH … CONCURRENTLY needs the TEMP privilege for the owner of {facts.quoted}. "
            f"Run: GRANT TEMP ON DATABASE {server.database} TO {facts.owner};",
        )
    return choice


def hazard_problem(view: ViewName, hazards: Sequence[RowSecurityHazard], *, sqlstate: str | None = None) -> Problem:
    """Say which table would be read in part only, and how to mend it."""
    named = "; ".join(
        f"{hazard.relation} as {hazard.read_as}{' (FORCE)' if hazard.forced else ''}" for hazard in hazards[:3]
    )
    where = f"It reads under row-level security: {named}. " if named else ""
    return Problem(
        RefreshReason.ROW_SECURITY_HAZARD,
        f"REFRESH of {view} would keep only the rows that a policy lets its owner see. {where}"
        "Give the owner BYPASSRLS or ownership of the table without FORCE; "
        "if the view is one tenant's alone, set isolation: Tenant.",
        sqlstate=sqlstate,
    )
