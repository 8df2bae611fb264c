"""The executor: one run under one deadline, whatever the server, the network or our own shutdown do."""

from __future__ import annotations

import asyncio
import logging

import asyncpg

from matview_operator.adapters.postgres import queries
from matview_operator.adapters.postgres.commit import settle_unknown
from matview_operator.adapters.postgres.ledger import record_failure
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.transaction import work_through
from matview_operator.adapters.postgres.work import Stage, Work, success
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.preflight import hazard_problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run

log = logging.getLogger(__name__)

_CLIENT_GRACE_SECONDS = 1.0
"""The server's own timeout is to fire first: it answers, so that the failure can be recorded."""
_ROLLBACK_SECONDS = 2.0
_SETTLE_SECONDS = 3.0


class Refresher:
    """Runs refreshes. Holds no state: two runs share nothing but the server."""

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        """Refresh one view and say how it ended; ends within the run's timeout + 5 s.

        Raises CancelledError only, after the server's side was stopped and rolled back (within 5 s). Its first argument
        is the result nevertheless: a run cancelled during COMMIT may have succeeded.
        """
        work = Work(run=run, target=target)
        cancelled = False
        try:
            async with asyncio.timeout(run.timeout_seconds + _CLIENT_GRACE_SECONDS):
                result = await work_through(work)
        except asyncio.CancelledError as error:
            cancelled = True
            result = await _failed(work, error)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the run's outcome; none gets lost
            result = await _failed(work, error)
        finally:
            if work.session is not None:
                await work.session.close()
        log.info(
            "%s %s",
            result.outcome.value,
            result.view_name,
            extra={
                "action": "refresh",
                "outcome": result.outcome,
                "reason": result.error_type,
                "detail": result.error_message,
                "duration_ms": result.duration_ms,
                "mode": result.mode,
                "rows_inserted": result.rows_inserted,
                "rows_deleted": result.rows_deleted,
                **work.log_fields(),
            },
        )
        if cancelled:
            raise asyncio.CancelledError(result)
        return result


async def _failed(work: Work, error: Exception | asyncio.CancelledError) -> RefreshResult:
    if work.stage is Stage.COMMITTED:
        # Only ANALYZE is left then, and it never fails a run.
        return success(work)
    problem = _problem(work, error)
    if problem.reason is RefreshReason.INTERNAL_ERROR:
        log.error("unexpected error", exc_info=error, extra={"action": "refresh_error", **work.log_fields()})
    if problem.reason is RefreshReason.CANCELLED and work.remaining() <= 0:
        problem = Problem(
            RefreshReason.TIMEOUT,
            f"The refresh did not end within {work.run.timeout_seconds:g} s and was cancelled; the old rows stay. "
            "Raise timeoutSeconds or make the view's query faster.",
            sqlstate=problem.sqlstate,
        )
    if work.stage is Stage.COMMITTING and _unanswered(work, error):
        return await _settle(work, problem)
    outcome = RefreshOutcome.FAILED
    if problem.reason is RefreshReason.SHUTDOWN or (
        problem.reason is RefreshReason.CONNECTION_LOST and work.stage is not Stage.CONNECTING
    ):
        outcome = RefreshOutcome.INTERRUPTED
    problem = await _undo(work, outcome, problem)
    return work.result(outcome, problem, mode=None if work.choice is None else work.choice.mode)


def _problem(work: Work, error: Exception | asyncio.CancelledError) -> Problem:
    if isinstance(error, asyncio.CancelledError):
        return Problem(RefreshReason.SHUTDOWN, "The run was cancelled before COMMIT; nothing changed.")
    return problem_of(
        error,
        view_found=work.found is not None,
        connecting=work.session is None,
        tenant_setting_given=work.run.isolation is Isolation.TENANT,
    )


def _unanswered(work: Work, error: Exception | asyncio.CancelledError) -> bool:
    """Whether COMMIT may have been done though nobody said so."""
    answered = isinstance(error, (Problem, asyncpg.PostgresError))
    return not answered or work.session is None or work.session.closed


async def _settle(work: Work, problem: Problem) -> RefreshResult:
    assert work.pending is not None  # set before COMMIT
    if work.session is not None:
        await work.session.close()
    seconds = min(_SETTLE_SECONDS, work.remaining() + _SETTLE_SECONDS)
    outcome = await settle_unknown(work.target, work.run, work.pending, seconds=seconds)
    if outcome is RefreshOutcome.SUCCESS:
        return success(
            work,
            Problem(RefreshReason.RECOVERED, "The answer to COMMIT was lost; the server says it committed."),
        )
    if outcome is RefreshOutcome.UNKNOWN:
        problem = Problem(
            RefreshReason.COMMIT_UNKNOWN,
            "The connection was lost during COMMIT and the server could not be asked yet; the next attempt will know.",
        )
    return work.result(outcome, problem)


async def _undo(work: Work, outcome: RefreshOutcome, problem: Problem) -> Problem:
    """Roll back and record the failure, best effort; returns the problem, with what the catalogue adds to it."""
    session, found = work.session, work.found
    if session is None or session.closed or work.stage is Stage.COMMITTED:
        return problem
    try:
        async with asyncio.timeout(_ROLLBACK_SECONDS):
            await session.rollback()
            if found is None:
                return problem
            if problem.reason is RefreshReason.ROW_SECURITY_HAZARD:
                problem = hazard_problem(work.run.view, await session.hazards(found.oid), sqlstate=problem.sqlstate)
            if work.ledger:
                await record_failure(
                    session,
                    work.run,
                    outcome=outcome,
                    problem=problem,
                    view_oid=found.oid,
                    attempt=work.attempt,
                    data_as_of=found.data_as_of,
                    mode=None if work.choice is None else work.choice.mode,
                    clock_offset=work.clock_offset,
                )
    except (TimeoutError, OSError, *queries.DRIVER_ERRORS) as error:
        log.warning(
            "the failure could not be recorded: %s",
            type(error).__name__,
            extra={"action": "record_failure", **work.log_fields()},
        )
    return problem
