"""What the catalogue adds to a problem: which table, which role, which statement mends it. Asked when a run failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matview_operator.adapters.postgres import catalogue_queries
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.preflight import MissingPrivilege, RowSecurityHazard, hazard_problem, privilege_problem

if TYPE_CHECKING:
    from matview_operator.adapters.postgres.session import Session
    from matview_operator.adapters.postgres.work import Work
    from matview_operator.domain.errors import Problem
    from matview_operator.domain.view import ViewName


async def explained(session: Session, work: Work, problem: Problem) -> Problem:
    """Return the problem with what can be said besides. The failed transaction must have been rolled back."""
    if work.found is None:
        return problem
    view, oid = work.run.view, work.found.oid
    match problem.reason:
        case RefreshReason.ROW_SECURITY_HAZARD:
            return hazard_problem(view, await read_hazards(session, oid), sqlstate=problem.sqlstate)
        case RefreshReason.PERMISSION_DENIED if problem.sqlstate is not None:
            return await reading_problem(session, view, oid, sqlstate=problem.sqlstate) or problem
        case _:
            return problem


async def read_hazards(session: Session, view_oid: int) -> list[RowSecurityHazard]:
    """Tables that REFRESH of this view would read under row-level security."""
    return [
        RowSecurityHazard(relation=row.relation, read_as=row.read_as, forced=row.forced)
        for row in await session.rows(catalogue_queries.ROW_SECURITY_HAZARDS, view_oid)
    ]


async def reading_problem(
    session: Session, view: ViewName, view_oid: int, *, sqlstate: str | None = None
) -> Problem | None:
    """What REFRESH of this view would not be allowed to read or call, if anything."""
    missing = [
        MissingPrivilege(object=row.object, role=row.role, mend=row.mend)
        for row in await session.rows(catalogue_queries.MISSING_PRIVILEGES, view_oid)
    ]
    return privilege_problem(view, missing, sqlstate=sqlstate) if missing else None
