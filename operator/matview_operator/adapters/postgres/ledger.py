"""The ledger's rows: what a run claims, what it recorded, what it failed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from matview_operator.adapters.postgres.sql import queries
from matview_operator.api.outcome import RefreshMode, RefreshOutcome
from matview_operator.domain.result import MESSAGE_BYTES
from matview_operator.domain.text import shown

if TYPE_CHECKING:
    from matview_operator.adapters.postgres.session import Session
    from matview_operator.domain.errors import Problem
    from matview_operator.domain.run import Run

ATTEMPTS = [
    RefreshOutcome.FAILED.value,
    RefreshOutcome.REJECTED_BY_GUARD.value,
    RefreshOutcome.INTERRUPTED.value,
]
"""Recorded outcomes that did not settle their slot."""

MAX_ATTEMPT = 32_767
"""What the column holds; a script may retry one request for days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A run that the ledger holds as done."""

    data_as_of: datetime
    finished_at: datetime
    mode: RefreshMode | None
    rows_inserted: int | None
    rows_deleted: int | None
    rows_total: int | None
    correlation_id: str
    attempt: int


async def read_settled(session: Session, run_id: int) -> Settled:
    """Read the row that settled or covers a slot."""
    row = await session.row(queries.LEDGER_ROW, run_id)
    assert row is not None  # read in the snapshot's transaction that found it; only prune deletes, after a day
    return Settled(
        data_as_of=row.data_as_of,
        finished_at=row.finished_at,
        mode=RefreshMode(row.mode) if row.mode else None,
        rows_inserted=row.rows_inserted,
        rows_deleted=row.rows_deleted,
        rows_total=row.rows_total,
        correlation_id=row.correlation_id,
        attempt=row.attempt,
    )


def is_one_transaction(runs: Sequence[Settled]) -> bool:
    """Whether one transaction did all of these: it has one snapshot, whose time its rows share."""
    return len({(run.correlation_id, run.data_as_of) for run in runs}) == 1


async def record_failure(
    session: Session,
    run: Run,
    *,
    outcome: RefreshOutcome,
    problem: Problem,
    view_oid: int,
    attempt: int,
    data_as_of: datetime | None,
    mode: RefreshMode | None,
    clock_offset: timedelta,
) -> None:
    """Write a run's failure by itself, after its transaction was rolled back."""
    await session.rows(
        queries.RECORD_FAILURE,
        run.policy_uid,
        view_oid,
        str(run.view),
        run.slot_id,
        None if run.due_at is None else run.due_at + clock_offset,
        attempt,
        outcome.value,
        run.lock_token,
        data_as_of,
        None if mode is None else mode.value,
        problem.reason.value,
        problem.sqlstate,
        shown(problem.message, size=MESSAGE_BYTES),
        run.correlation_id,
    )
