"""What the catalogue adds to a problem: which table, which role, which statement mends it. Asked when a run failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matview_operator.adapters.postgres.facts import view_facts
from matview_operator.adapters.postgres.sql import catalogue as catalogue_queries
from matview_operator.adapters.postgres.sql.lookup import LOOKUP
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.domain.blocker import Blocker, lock_held_problem, lock_timeout_problem
from matview_operator.domain.errors import Problem
from matview_operator.domain.lock_keys import GLOBAL_KEY
from matview_operator.domain.preflight import (
    MissingPrivilege,
    RowSecurityHazard,
    check_view,
    hazard_problem,
    privilege_problem,
    replaced_problem,
)
from matview_operator.domain.search_path import open_schemas_problem, search_path_problems
from matview_operator.domain.server import OWN_SEARCH_PATH_SINCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matview_operator.adapters.postgres.session import Session
    from matview_operator.adapters.postgres.wire.authentication import Row
    from matview_operator.adapters.postgres.work import Work
    from matview_operator.domain.run import Run
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
        case RefreshReason.LOCK_TIMEOUT:
            assert work.choice is not None  # no lock is waited for before the mode is chosen
            rows = await session.rows(catalogue_queries.BLOCKERS, oid, work.choice.mode is RefreshMode.BLOCKING)
            wants_index = work.choice.reason is RefreshReason.NO_UNIQUE_INDEX
            return lock_timeout_problem(problem, [_blocker(row) for row in rows], wants_index=wants_index)
        case RefreshReason.UNSAFE_SEARCH_PATH | RefreshReason.NOT_POPULATED | RefreshReason.NOT_MATERIALIZED_VIEW if (
            problem.sqlstate is not None
        ):
            # These states also mean that the view went away after the lookup.
            return await _gone_problem(session, work.run, oid) or problem
        case _:
            return problem


async def _gone_problem(session: Session, run: Run, view_oid: int) -> Problem | None:
    """What became of the view that the lookup found, if it is not the one under its name any more."""
    row = await session.row(LOOKUP, run.view.schema, run.view.name)
    if row is not None and row.oid == view_oid:
        return None
    try:
        check_view(run.view, view_facts(row), concurrently=run.concurrently, server=session.facts)
    except Problem as problem:
        return problem
    return replaced_problem(run.view)


async def who_holds_the_lock(session: Session, run: Run) -> Problem:
    """Say whose lock a run met. Asked within its transaction, which may have got one of the two locks itself."""
    keys = run.lock_keys
    rows = await session.rows(catalogue_queries.LOCK_HOLDERS, keys.view_key, [keys.tenant_key, GLOBAL_KEY])
    return lock_held_problem([_blocker(row) for row in rows])


async def check_search_path(session: Session, search_path: Sequence[str]) -> None:
    """Raise Problem for a search path that cannot be meant, or in which everybody could plant functions."""
    for problem in search_path_problems(search_path):
        raise Problem(RefreshReason.INVALID_SPEC, f"searchPath{problem}")
    if search_path and session.facts.version_num < OWN_SEARCH_PATH_SINCE:
        found = [row.schema for row in await session.rows(catalogue_queries.OPEN_SCHEMAS, [*search_path])]
        if found:
            raise open_schemas_problem(found)


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


def _blocker(row: Row) -> Blocker:
    return Blocker(
        pid=row.pid,
        application=row.application_name,
        kind=row.backend_type,
        state=row.state,
        since=row.xact_start,
        lock=row.mode,
        granted=row.granted,
        relation=row.relation,
    )
