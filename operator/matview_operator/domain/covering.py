"""Which slots a run has done the work of besides its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """What one run showed of its view, for slots of the same view and lock."""

    up_to: datetime
    """Slots that were due no later, on the operator's clock, are covered."""
    message: str
    """Names the run that did the work."""
    started_at: datetime
    duration_ms: int
    data_as_of: datetime | None
    verified_at: datetime | None

    def result_for(self, run: Run) -> RefreshResult:
        """The result of a run that is covered: it began and took as long as the one that covers it."""
        return run.result(
            RefreshOutcome.SKIPPED_COVERED,
            started_at=self.started_at,
            ended_at=self.started_at + timedelta(milliseconds=self.duration_ms),
            reason=RefreshReason.COVERED,
            message=self.message,
        ).model_copy(update={"data_as_of": self.data_as_of, "verified_at": self.verified_at})


def cover_of(result: RefreshResult, *, began_at: datetime, due_at: datetime | None) -> Cover | None:
    """Tell what a run covers; None for one that covers nothing.

    `began_at` is the operator's clock before the server was asked. It is compared with slots rather than `data_as_of`,
    which is the server's: the rows are as of then or later, however far the clocks are apart.
    """
    up_to: datetime | None = None
    message = f"Run {result.correlation_id} refreshed it after this slot was due."
    if result.outcome is RefreshOutcome.SUCCESS and result.error_type is not RefreshReason.RECOVERED:
        up_to = began_at  # what was recovered, an earlier attempt did
    elif result.outcome is RefreshOutcome.SKIPPED_COVERED and result.error_message is not None:
        # The ledger knows of a run that was no earlier than this one's slot, and says which.
        up_to, message = due_at, result.error_message
    if up_to is None:
        return None
    return Cover(
        up_to=up_to,
        message=message,
        started_at=result.started_at,
        duration_ms=result.duration_ms,
        data_as_of=result.data_as_of,
        verified_at=result.verified_at,
    )
