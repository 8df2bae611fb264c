"""The status of a policy: a document that slots, missed slots and preflights fold into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import HistoryEntry, MatviewRefreshPolicyStatus, ViewStatus
from matview_operator.domain.clock_jump import believed
from matview_operator.domain.conditions import (
    FAILED_SLOTS_UNTIL_NOT_READY,
    FRESH,
    READY,
    RECONCILING,
    STALLED,
    WINDOW_CLOSED,
    Statement,
    merge,
    not_ready,
    statement_of,
)
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import FAILURES, RefreshResult
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.slot import SlotReport, is_fresh, is_stopped
from matview_operator.domain.staleness import StalenessTarget
from matview_operator.domain.view import ViewName

_NOT_YET_RUN = Statement(FRESH, "Unknown", "NotYetRun", "No slot has ended yet; the first is at status.nextSlotTime.")
_NOT_YET_CHECKED = Statement(READY, "Unknown", "NotYetChecked", "The database and the views are being looked up.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a policy besides its runs."""

    generation: int
    problem: Problem | None
    """What the preflight, or the spec itself, found wrong."""
    note: Statement | None = None
    """What Ready says instead, if it is true."""
    """What works, but not as one would wish: a view that is refreshed in blocking mode."""
    is_judged: bool = True
    """Whether problem and note are known yet; else Ready says what it said."""
    suspended: bool = False
    working_on: str | None = None
    """The request that is being answered."""
    held_request: tuple[str, datetime] | None = None
    """The request that waits for a window, and when that opens."""


def views_of(spec: MatviewRefreshPolicySpec) -> tuple[ViewName, ...]:
    """The policy's views, in its order."""
    return tuple([ViewName(view.schema_name, view.name) for view in spec.views])


def after_slot(
    status: MatviewRefreshPolicyStatus, report: SlotReport, *, history_limit: int
) -> MatviewRefreshPolicyStatus:
    """Fold in a slot whose views have all ended. Conditions follow by `with_conditions`.

    A slot that our own shutdown stopped stays due: the next process takes it up. A slot that was run again is told
    once, as it ended at last.
    """
    former = {(view.schema_name, view.name): view for view in status.views}
    worst, slot = report.worst, report.slot
    again = slot.request is None and slot.due_at == status.last_slot_time
    views = tuple(
        _view_status(former.get((view.schema, view.name)), view, result, again=again) for view, result in report.results
    )
    told = [each for each in status.history if slot.request is not None or each.slot_time != slot.due_at]
    entry = HistoryEntry(
        slot_time=None if slot.request is not None else slot.due_at,
        request=slot.request,
        outcome=worst.outcome,
        started_at=report.started_at,
        duration_ms=max(0, round((report.ended_at - report.started_at).total_seconds() * 1000)),
        views=len(report.results),
        failed=report.failed,
        message=worst.error_message,
        correlation_id=report.correlation_id,
    )
    failed = report.failed > 0 and not report.broken_off and not again
    changes: dict[str, object] = {
        "views": views,
        "history": (entry, *told)[:history_limit],
        "consecutive_failures": 0 if report.fresh else (status.consecutive_failures or 0) + failed,
    }
    if report.fresh:
        changes["last_success_time"] = report.ended_at
    if report.stopped:
        pass
    elif slot.request is not None:
        changes["last_handled_request"] = slot.request
    else:
        changes["last_slot_time"] = _last_slot(status, slot.due_at, now=report.ended_at)
    return status.model_copy(update=changes)


def after_missed(
    status: MatviewRefreshPolicyStatus, *, count: int, newest: datetime | None = None, now: datetime
) -> MatviewRefreshPolicyStatus:
    """Fold in slots that were not run; `newest` then counts as handled, so that it is never replayed."""
    changes: dict[str, object] = {"missed_slots": (status.missed_slots or 0) + count}
    if newest is not None:
        changes["last_slot_time"] = _last_slot(status, newest, now=now)
    return status.model_copy(update=changes)


def fresh_after(report: SlotReport) -> Statement:
    """What Fresh says after a slot."""
    if report.fresh:
        return Statement(FRESH, "True", "Refreshed", f"Every view was verified by run {report.correlation_id}.")
    view, result = next((view, result) for view, result in report.results if result.outcome is report.worst.outcome)
    return Statement(
        FRESH, "False", result.error_type or result.outcome.value, f"{view}: {result.error_message or result.outcome}"
    )


def fresh_until_retry(results: Sequence[RefreshResult], *, retry_at: datetime) -> Statement:
    """What Fresh says while a view that failed waits for its next attempt."""
    failed = next(result for result in results if not is_fresh(result.outcome))
    return Statement(
        FRESH,
        "False",
        "Retrying",
        f"{failed.view_name} is tried again at {retry_at:%Y-%m-%dT%H:%M:%SZ}. "
        f"{failed.error_type or failed.outcome}: {failed.error_message or failed.outcome}",
    )


def fresh_after_missed(newest: datetime, *, opens_at: datetime | None = None, paced: bool = False) -> Statement:
    """What Fresh says when the newest due slot was not run, and why.

    A closed window opens at `opens_at`; `paced` means that the least interval was not over.
    """
    if opens_at is not None:
        return Statement(
            FRESH,
            "False",
            WINDOW_CLOSED,
            f"The slot of {_shown(newest)} was missed: the windows of the MatviewDatabase let no refresh start before "
            f"{_shown(opens_at)}.",
        )
    return Statement(
        FRESH,
        "False",
        "SlotMissed",
        f"The slot of {_shown(newest)} was missed: it was later than startingDeadlineSeconds allows."
        + (" It had to wait for limits.minIntervalSeconds of the MatviewDatabase." if paced else ""),
    )


def with_conditions(
    status: MatviewRefreshPolicyStatus,
    standing: Standing,
    *,
    timetable: Timetable | StalenessTarget | None,
    next_slot: datetime | None,
    now: datetime,
    fresh: Statement | None = None,
) -> MatviewRefreshPolicyStatus:
    """Bring conditions and the schedule's fields up to date. Without `fresh` that condition is said again."""
    statements = [
        *_readiness(status, standing),
        fresh or statement_of(status.conditions, FRESH) or _NOT_YET_RUN,
    ]
    missed = timetable.missed() if isinstance(timetable, StalenessTarget) else None
    if missed is not None:
        statements.append(missed)
    if standing.working_on is not None:
        statements.append(
            Statement(RECONCILING, "True", "RefreshRequested", f"Working on request {standing.working_on}.")
        )
    elif standing.held_request is not None:
        statements.append(_waiting_for_window(*standing.held_request))
    return status.model_copy(
        update={
            "observed_generation": standing.generation,
            "conditions": merge(status.conditions, statements, generation=standing.generation, now=now),
            "schedule": None if timetable is None else timetable.describe(),
            "next_slot_time": next_slot,
        }
    )


def _waiting_for_window(token: str, opens_at: datetime) -> Statement:
    return Statement(
        RECONCILING,
        "True",
        "WaitingForWindow",
        f"Request {token} waits: the windows of the MatviewDatabase let no refresh start before {_shown(opens_at)}.",
    )


def for_views(status: MatviewRefreshPolicyStatus, views: Sequence[ViewName]) -> MatviewRefreshPolicyStatus:
    """Forget views that the policy names no longer."""
    named = {(view.schema, view.name) for view in views}
    kept = tuple(view for view in status.views if (view.schema_name, view.name) in named)
    return status if len(kept) == len(status.views) else status.model_copy(update={"views": kept})


def oldest_verified(status: MatviewRefreshPolicyStatus, spec: MatviewRefreshPolicySpec | None) -> datetime | None:
    """Since when the stalest view of the policy is known to be current; None while one never was.

    While the spec is invalid, its views are the ones that the status knows.
    """
    verified = {(view.schema_name, view.name): view.verified_at for view in status.views}
    names = verified if spec is None else [(view.schema_name, view.name) for view in spec.views]
    times = [verified.get(name) for name in names]
    known = [time for time in times if time is not None]
    return min(known, default=None) if len(known) == len(times) else None


def _shown(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def _readiness(status: MatviewRefreshPolicyStatus, standing: Standing) -> list[Statement]:
    if not standing.is_judged:
        said = [statement_of(status.conditions, kind) for kind in (READY, STALLED)]
        return [statement for statement in said if statement is not None] or [_NOT_YET_CHECKED]
    if standing.problem is not None:
        return not_ready(standing.problem.reason, standing.problem.message)
    if (status.consecutive_failures or 0) >= FAILED_SLOTS_UNTIL_NOT_READY:
        failing = next((view for view in status.views if view.consecutive_failures), None)
        if failing is not None:
            return not_ready(
                RefreshReason(failing.reason) if failing.reason in _REASONS else RefreshReason.INTERNAL_ERROR,
                f"{status.consecutive_failures} slots in a row failed. {failing.name}: {failing.message or ''}",
            )
    if standing.suspended:
        return [Statement(READY, "True", "Suspended", "The schedule is suspended; requested refreshes still run.")]
    if standing.note is not None:
        return [standing.note]
    return [Statement(READY, "True", "Scheduled", "The views can be refreshed; see status.nextSlotTime.")]


def _last_slot(status: MatviewRefreshPolicyStatus, slot_time: datetime, *, now: datetime) -> datetime:
    # By now's clock: the slot may be hours old, if that was set forward while it was worked on.
    last = status.last_slot_time or slot_time
    return max(slot_time, last) if believed(last, now=now) == last else slot_time


_REASONS = frozenset(reason.value for reason in RefreshReason)


def _view_status(former: ViewStatus | None, view: ViewName, result: RefreshResult, *, again: bool) -> ViewStatus:
    failures = 0 if former is None else former.consecutive_failures or 0
    if result.outcome in FAILURES and not is_stopped(result):
        # A slot that was run again counts once.
        failures = max(1, failures + (not again))
    elif is_fresh(result.outcome):
        failures = 0
    # What a run did not find out is still true of the view: how old its rows are, how large it is.
    lasting = {
        name: getattr(result, name) if getattr(result, name) is not None or former is None else getattr(former, name)
        for name in ("data_as_of", "verified_at", "estimated_rows", "size_bytes")
    }
    return ViewStatus(
        schema_name=view.schema,
        name=view.name,
        outcome=result.outcome,
        reason=result.error_type,
        message=result.error_message,
        mode=result.mode,
        correlation_id=result.correlation_id,
        started_at=result.started_at,
        duration_ms=result.duration_ms,
        rows_inserted=result.rows_inserted,
        rows_deleted=result.rows_deleted,
        rows_before=result.rows_before,
        rows_after=result.rows_after,
        tenants_before=result.tenants_before,
        tenants_lost=result.tenants_lost,
        attempts=result.attempts,
        consecutive_failures=failures,
        **lasting,
    )
