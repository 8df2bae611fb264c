"""What a job and its runs know while they work, and the results they can tell from that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Any

from pydantic import ValidationError

from matview_operator.adapters.postgres.commit import PendingCommit
from matview_operator.adapters.postgres.guard import Watch
from matview_operator.adapters.postgres.ledger import Settled
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.wire.authentication import Row
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run


class Stage(Enum):
    """How far a job has come; what an error means depends on it."""

    CONNECTING = auto()
    READING = auto()
    """The lookup, which reads the ledger."""
    REFRESHING = auto()
    CLAIMING = auto()
    COMMITTING = auto()
    COMMITTED = auto()


@dataclass(slots=True, kw_only=True)
class Job:
    """One connection and one transaction, for one run or for several that are to be committed together."""

    target: ConnectionTarget
    runs: InitVar[Sequence[Run]]
    """In the order in which they are worked on; at least one."""
    timeout_seconds: float
    """For all of them together."""
    verbose_errors: bool = False
    grouped: bool = False
    """Whether the views are to agree with each other: one snapshot for all."""
    works: tuple[Work, ...] = field(init=False)
    at: Work | None = None
    """The view at work, whose an error is; None while all of them are concerned."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    stage: Stage = Stage.CONNECTING
    session: Session | None = None
    ledger: bool = False
    clock_offset: timedelta = timedelta()
    pending: PendingCommit | None = None
    tries: int = 0
    """How often others came between a group and its COMMIT."""

    def __post_init__(self, runs: Sequence[Run]) -> None:
        self.works = tuple(Work(run=run, job=self) for run in runs)

    @property
    def run(self) -> Run:
        """A run that stands for all where they are alike: whose they are, and what they are for."""
        return self.works[0].run

    def remaining(self) -> float:
        """Seconds until the timeout."""
        return self.timeout_seconds - (time.monotonic() - self.started)


@dataclass(slots=True, kw_only=True)
class Work:
    """What is known so far of one view's run; read when it ends, however it ends."""

    run: Run
    job: Job
    found: Row | None = None
    files: dict[int, int] = field(default_factory=dict)
    """What the view reads is stored in, by OID, before REFRESH."""
    choice: ModeChoice | None = None
    watch: Watch | None = None
    attempt: int = 1
    after: Row | None = None

    def result(
        self,
        outcome: RefreshOutcome,
        problem: Problem | None = None,
        *,
        reason: RefreshReason | None = None,
        **known: Any,
    ) -> RefreshResult:
        """A result as of now, with what is known besides. Numbers and times that no server can mean are a failure.

        `reason`: why what was no problem was done as it was.
        """
        counted = {} if self.watch is None else asdict(self.watch.tally)
        ended = partial(
            self.run.result, started_at=self.job.started_at, ended_at=datetime.now(UTC), attempts=self.attempt
        )
        try:
            return ended(
                outcome,
                reason=reason if problem is None else problem.reason,
                message=None if problem is None else problem.message,
                **counted,
                **known,
            )
        except ValidationError:
            # They would be refused as a status too, and then nobody would hear of this run.
            return ended(
                RefreshOutcome.FAILED,
                reason=RefreshReason.CONNECTION_FAILED,
                message="The server's answers make no sense for PostgreSQL. Check host and port.",
            )

    def log_fields(self) -> dict[str, Any]:
        """The fields by which a log line names its run."""
        keys = self.run.lock_keys
        return {
            "view_name": str(self.run.view),
            "tenant_token": self.run.lock_token,
            "view_key": keys.view_key,
            "tenant_key": keys.tenant_key,
            "correlation_id": self.run.correlation_id,
        }


def row_of(work: Work) -> Row:
    """What the lookup found; for what comes after it."""
    assert work.found is not None  # check_view refuses a missing view
    return work.found


def mode_of(work: Work) -> RefreshMode:
    """How the view is refreshed; for what comes after the lookup."""
    assert work.choice is not None  # set by the lookup
    return work.choice.mode


def success(work: Work, problem: Problem | None = None) -> RefreshResult:
    """The result of a run that committed."""
    found, after, choice = work.found, work.after, work.choice
    assert found is not None  # set before REFRESH
    assert after is not None  # set before COMMIT
    assert choice is not None  # set before REFRESH
    concurrent = choice.mode is RefreshMode.CONCURRENT
    inserted, deleted = _difference(after.inserted, found.inserted), _difference(after.deleted, found.deleted)
    counted = after.counted
    return work.result(
        RefreshOutcome.SUCCESS,
        problem,
        reason=choice.reason,
        mode=choice.mode,
        data_as_of=found.data_as_of,
        verified_at=found.data_as_of,
        rows_inserted=inserted if counted else None,
        # A blocking refresh writes every row anew: there is no difference to report.
        rows_deleted=deleted if counted and concurrent else None,
        estimated_rows=after.estimated_rows if concurrent or not counted else inserted,
        size_bytes=after.size_bytes,
    )


def _difference(after: int | None, before: int | None) -> int | None:
    """None from a server that does not say; PostgreSQL always does."""
    return None if after is None or before is None else after - before


def already_done(work: Work, settled: Settled, *, recovered: bool) -> RefreshResult:
    """The slot was settled by a run whose answer got lost, or is covered by another run's."""
    if recovered:
        return work.result(
            RefreshOutcome.SUCCESS,
            Problem(RefreshReason.RECOVERED, f"Done before, at {settled.finished_at:%Y-%m-%dT%H:%M:%SZ}."),
            mode=settled.mode,
            data_as_of=settled.data_as_of,
            verified_at=settled.data_as_of,
            rows_inserted=settled.rows_inserted,
            rows_deleted=settled.rows_deleted,
            estimated_rows=settled.rows_total,
            attempts=settled.attempt,
        )
    return work.result(
        RefreshOutcome.SKIPPED_COVERED,
        Problem(RefreshReason.COVERED, f"Run {settled.correlation_id} refreshed it after this slot was due."),
        data_as_of=settled.data_as_of,
        verified_at=settled.data_as_of,
    )
