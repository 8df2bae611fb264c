"""The executor: one run under one deadline, whatever the server, the network or our own shutdown do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import asyncpg

from matview_operator.adapters.postgres.commit import settle_unknown
from matview_operator.adapters.postgres.explanation import explained
from matview_operator.adapters.postgres.ledger import record_failure
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.transaction import work_through
from matview_operator.adapters.postgres.work import Job, Stage, Work, success
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.guard import Rejection
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run

log = logging.getLogger(__name__)

End: TypeAlias = tuple[Work, RefreshOutcome, Problem]
"""How one view's run ends without success."""

_CLIENT_GRACE_SECONDS = 1.0
"""The server's own timeout is to fire first: it answers, so that the failure can be recorded."""
_ROLLBACK_SECONDS = 2.0
_SETTLE_SECONDS = 3.0

_SERVER_LOST = frozenset(
    {RefreshReason.CONNECTION_LOST, RefreshReason.CONNECTION_FAILED, RefreshReason.READ_ONLY_SERVER}
)
"""After these, the server at that address is down or another one."""


class Refresher:
    """Runs refreshes. Two runs share nothing but the server and the pool."""

    def __init__(self, pool: Pool | None = None, *, verbose_errors: bool = False) -> None:
        """Take sessions from this pool, whose owner closes it; without one each run has a connection of its own.

        `verbose_errors`: results repeat what the server says of an error inside a view's query; it may hold rows.
        """
        self._pool = pool or Pool(idle_seconds=0)
        self._verbose_errors = verbose_errors

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        """Refresh one view and say how it ended; ends within the run's timeout + 5 s.

        Raises CancelledError only, after the server's side was stopped and rolled back (within 5 s). Its first argument
        is the result nevertheless: a run cancelled during COMMIT may have succeeded.
        """
        (result,) = await _work(
            Job(
                target=target,
                runs=[run],
                timeout_seconds=run.timeout_seconds,
                verbose_errors=self._verbose_errors,
            ),
            self._pool,
        )
        return result

    async def refresh_group(
        self, *, target: ConnectionTarget, runs: Sequence[Run], timeout_seconds: float
    ) -> tuple[RefreshResult, ...]:
        """Refresh several views in one transaction at one snapshot, all or none; results in the order of the runs.

        Ends within `timeout_seconds` + 5 s, which takes the place of the runs' own. The runs belong to one policy and
        one slot. Raises as `refresh` does, with all the results.
        """
        return await _work(
            Job(
                target=target,
                runs=runs,
                timeout_seconds=timeout_seconds,
                grouped=True,
                verbose_errors=self._verbose_errors,
            ),
            self._pool,
        )

    async def connect_ahead(self, *, target: ConnectionTarget, tenant_setting: str | None, count: int) -> None:
        """Have `count` sessions, idle or at work, for runs that are due within seconds; see Pool. Raises Problem."""
        await self._pool.fill(target, tenant_setting=tenant_setting, count=count)


async def _work(job: Job, pool: Pool) -> tuple[RefreshResult, ...]:
    cancelled = is_clean = False
    try:
        async with asyncio.timeout(job.timeout_seconds + _CLIENT_GRACE_SECONDS):
            results = await work_through(job, pool)
        is_clean = True
    except asyncio.CancelledError as error:
        cancelled = True
        results = await _failed(job, error)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the run's outcome; none gets lost
        results = await _failed(job, error)
    finally:
        if job.session is not None:
            if not is_clean and (job.session.closed or any(result.error_type in _SERVER_LOST for result in results)):
                pool.forget_server(job.target)
            try:
                await pool.take_back(job.session, is_clean=is_clean)
            except asyncio.CancelledError:
                cancelled = True
    for work, result in zip(job.works, results, strict=True):
        log.info(
            "%s %s",
            result.outcome.value,
            result.view_name,
            extra={
                **result.log_fields(),
                **({} if work.watch is None else asdict(work.watch.tally)),
                **work.log_fields(),
            },
        )
    if cancelled:
        raise asyncio.CancelledError(*results)
    return results


async def _failed(job: Job, error: Exception | asyncio.CancelledError) -> tuple[RefreshResult, ...]:
    if job.stage is Stage.COMMITTED:
        # Only ANALYZE is left then, and it never fails a run.
        return tuple(success(work) for work in job.works)
    problem = _problem(job, error)
    if problem.reason is RefreshReason.INTERNAL_ERROR:
        log.error("unexpected error", exc_info=error, extra={"action": "refresh_error", **_log_fields(job)})
    if problem.reason is RefreshReason.CANCELLED and job.remaining() <= 0:
        problem = Problem(
            RefreshReason.TIMEOUT,
            f"The refresh {'of the group ' if job.grouped else ''}did not end within {job.timeout_seconds:g} s and was "
            "cancelled; the old rows stay. Raise timeoutSeconds or make the view's query faster.",
            sqlstate=problem.sqlstate,
        )
    if job.stage is Stage.COMMITTING and _unanswered(job, error):
        return await _settle(job, problem)
    outcome = RefreshOutcome.FAILED
    if isinstance(problem, Rejection):
        outcome = RefreshOutcome.REJECTED_BY_GUARD
    elif problem.reason is RefreshReason.SHUTDOWN or (
        problem.reason is RefreshReason.CONNECTION_LOST and job.session is not None
    ):
        outcome = RefreshOutcome.INTERRUPTED
    return tuple(
        work.result(how, why, mode=None if work.choice is None else work.choice.mode)
        for work, how, why in await _undo(job, outcome, problem)
    )


def _ends(job: Job, outcome: RefreshOutcome, problem: Problem) -> list[End]:
    """How each view ends. Of a group the view that failed says why, the others that they were rolled back with it."""
    culprit = None if outcome is RefreshOutcome.INTERRUPTED else job.at
    if culprit is None:
        return [(work, outcome, problem) for work in job.works]
    with_it = Problem(
        RefreshReason.GROUP_ROLLED_BACK,
        f"Rolled back with {culprit.run.view}, which failed: a group is refreshed whole or not at all.",
    )
    return [
        (work, outcome, problem) if work is culprit else (work, RefreshOutcome.INTERRUPTED, with_it)
        for work in job.works
    ]


def _log_fields(job: Job) -> dict[str, Any]:
    return (job.at or job.works[0]).log_fields()


def _problem(job: Job, error: Exception | asyncio.CancelledError) -> Problem:
    if isinstance(error, asyncio.CancelledError):
        return Problem(RefreshReason.SHUTDOWN, "The run was cancelled before COMMIT; nothing changed.")
    return problem_of(
        error,
        view_found=job.at is not None and job.at.found is not None,
        connecting=job.session is None,
        tenant_setting_given=job.run.isolation is Isolation.TENANT,
        verbose=job.verbose_errors,
    )


def _unanswered(job: Job, error: Exception | asyncio.CancelledError) -> bool:
    """Whether COMMIT may have been done though nobody said so."""
    answered = isinstance(error, (Problem, asyncpg.PostgresError))
    return not answered or job.session is None or job.session.closed


async def _settle(job: Job, problem: Problem) -> tuple[RefreshResult, ...]:
    assert job.pending is not None  # set before COMMIT
    if job.session is not None:
        await job.session.close()
    seconds = min(_SETTLE_SECONDS, job.remaining() + _SETTLE_SECONDS)
    outcome = await settle_unknown(job.target, job.pending, seconds=seconds)
    if outcome is RefreshOutcome.SUCCESS:
        problem = Problem(RefreshReason.RECOVERED, "The answer to COMMIT was lost; the server says it committed.")
        return tuple(success(work, problem) for work in job.works)
    if outcome is RefreshOutcome.UNKNOWN:
        problem = Problem(
            RefreshReason.COMMIT_UNKNOWN,
            "The connection was lost during COMMIT and the server could not be asked yet; the next attempt will know.",
        )
    return tuple(work.result(outcome, problem) for work in job.works)


async def _undo(job: Job, outcome: RefreshOutcome, problem: Problem) -> list[End]:
    """Roll back and record the failure, best effort; returns how each view ends, with what the catalogue adds to it."""
    session, culprit = job.session, job.at
    ends = _ends(job, outcome, problem)
    if session is None or session.closed:
        return ends
    try:
        async with asyncio.timeout(_ROLLBACK_SECONDS):
            await session.rollback()
            if culprit is not None:
                problem = await explained(session, culprit, problem)
                ends = _ends(job, outcome, problem)
            for work, how, why in ends:
                if job.ledger and work.found is not None:
                    await record_failure(
                        session,
                        work.run,
                        outcome=how,
                        problem=why,
                        view_oid=work.found.oid,
                        attempt=work.attempt,
                        data_as_of=work.found.data_as_of,
                        mode=None if work.choice is None else work.choice.mode,
                        clock_offset=job.clock_offset,
                    )
    except (TimeoutError, OSError, *queries.DRIVER_ERRORS) as error:
        log.warning(
            "the failure could not be recorded: %s",
            type(error).__name__,
            extra={"action": "record_failure", **_log_fields(job)},
        )
    return ends
