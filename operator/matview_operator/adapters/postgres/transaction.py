"""The transaction of a job, from BEGIN to COMMIT, and when it is tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import Random

import asyncpg

from matview_operator.adapters.postgres import group
from matview_operator.adapters.postgres.explanation import check_search_path, who_holds_the_lock
from matview_operator.adapters.postgres.ledger import MAX_ATTEMPT, is_one_transaction, read_settled
from matview_operator.adapters.postgres.overtaking import Overtaken, start_over
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.session import Session, SessionLost
from matview_operator.adapters.postgres.statements import NOT_KEPT
from matview_operator.adapters.postgres.steps import (
    analyze,
    claim,
    lock,
    lock_and_look_up,
    look_up,
    refresh,
    settings_of,
    would_queue,
)
from matview_operator.adapters.postgres.wire.connection import CONNECT_SECONDS
from matview_operator.adapters.postgres.work import Job, Stage, Work, already_done, mode_of, row_of, success
from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.policy import Analyze
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry import busy_pause
from matview_operator.domain.run import session_setting
from matview_operator.domain.server import check_server

_RANDOM = Random()  # noqa: S311 - jitter
_LEDGER_GONE = frozenset({"42P01", "3F000", "42501"})
_EXECUTION_CONTEXT = "app.execution_context"


async def work_through(job: Job, pool: Pool) -> tuple[RefreshResult, ...]:
    """Connect, refresh, commit. Raises Problem or what the driver raises; the transaction is then still open.

    The job's session is then the pool's, which wants it back.
    """
    is_pooled = False
    while True:
        session = job.session = await pool.lend(
            job.target,
            tenant_setting=session_setting(job.run.isolation, job.run.tenant_setting),
            seconds=min(CONNECT_SECONDS, job.timeout_seconds),
        )
        if is_pooled:
            session.distrust()
        try:
            return await work_over(session, job)
        except SessionLost:
            # Killed, timed out or lost by a firewall while it was idle. The others are no better than this one.
            job.session = None
            pool.forget_server(job.target)
            await pool.take_back(session, is_clean=False)
        except asyncpg.PostgresError as error:
            # A pooler is in between that passes for the server itself. Nothing was committed: it is an answer.
            if is_pooled or error.sqlstate not in NOT_KEPT:
                raise
            is_pooled, job.session, job.stage, job.pending = True, None, Stage.CONNECTING, None
            await pool.take_back(session, is_clean=False)


async def work_over(session: Session, job: Job) -> tuple[RefreshResult, ...]:
    """Refresh and commit over this session. Raises as work_through does."""
    setting = job.run.tenant_setting.lower()
    if "." not in setting or setting == _EXECUTION_CONTEXT:
        # set_config('role', …) would work: the setting must be a custom one.
        raise Problem(RefreshReason.INVALID_SPEC, f"tenantSetting must hold a dot and not be {_EXECUTION_CONTEXT}.")
    await check_search_path(session, job.run.search_path)
    check_server(session.facts, allow_superuser=job.run.allow_superuser)
    if job.run.due_at is not None:
        job.clock_offset = await session.clock_offset()
    job.ledger = session.facts.bookkeeping is Bookkeeping.INSTALLED
    looks, looking_since, queue = 0, time.monotonic(), False
    while True:
        try:
            results = await _transaction(job, session, queue=queue)
        except (asyncpg.PostgresError, Overtaken) as error:
            if not await _ledger_lost(job, session, error):
                await start_over(job, session, error)
            continue
        if results is not None:
            return results
        pause = busy_pause(
            looks,
            waited=time.monotonic() - looking_since,
            timeout_seconds=job.timeout_seconds,
            random=_RANDOM,
        )
        looks, queue = looks + 1, pause is None
        await asyncio.sleep(pause or 0)


async def _ledger_lost(job: Job, session: Session, error: asyncpg.PostgresError | Overtaken) -> bool:
    """Whether the ledger was there at the start and is no more, so that the job goes on without."""
    in_ledger = job.ledger and job.stage in (Stage.READING, Stage.CLAIMING) and not session.is_refused_ahead
    if not in_ledger or isinstance(error, Overtaken) or error.sqlstate not in _LEDGER_GONE:
        return False
    await session.rollback()
    if (await session.read_facts()).bookkeeping is Bookkeeping.INSTALLED:
        raise error
    job.ledger = False
    return True


async def _transaction(job: Job, session: Session, *, queue: bool) -> tuple[RefreshResult, ...] | None:
    """One try; None when a view was in use, or its slot was settled meanwhile, and the try is to be made again."""
    job.at = None
    await session.begin(at_one_snapshot=job.grouped, before=settings_of(job.run))
    blocked = await _lock_and_look_up(job, session)
    if blocked is not None:
        problem = await who_holds_the_lock(session, blocked.run)
        if job.grouped:
            problem = Problem(problem.reason, f"{blocked.run.view}: {problem.message}")
        await session.rollback()
        return tuple(each.result(RefreshOutcome.SKIPPED_LOCK_HELD, problem) for each in job.works)
    done = await _done_before(job, session)
    if done is not None:
        await session.rollback()
        return done
    if not queue and await _is_anything_in_use(job, session):
        await session.rollback()
        return None
    if not await _refresh_and_claim(job, session):
        await session.rollback()
        return None
    job.at, job.stage = None, Stage.COMMITTING
    await session.commit()
    job.stage = Stage.COMMITTED
    for work in job.works:
        if mode_of(work) is RefreshMode.BLOCKING and work.run.analyze is Analyze.AUTO:
            await analyze(work, session)
    return tuple(success(work) for work in job.works)


async def _lock_and_look_up(job: Job, session: Session) -> Work | None:
    """Return a view that another session has the lock of, if any."""
    if not job.grouped:
        (job.at,) = job.works
        return None if await lock_and_look_up(job.at, session) else job.at
    for work in group.in_lock_order(job):
        if not await lock(work, session):
            return work
    for work in job.works:
        job.at = work
        await look_up(work, session)
    return None


async def _is_anything_in_use(job: Job, session: Session) -> bool:
    for work in job.works:
        job.at = work
        if await would_queue(work, session):
            return True
    return False


async def _refresh_and_claim(job: Job, session: Session) -> bool:
    works: Sequence[Work] = job.works
    if job.grouped:
        job.at = None
        works = await group.in_order(job, session)
        await group.watch(job, session)
    for work in works:
        job.at = work
        if job.grouped:
            await group.share_time(job, session)
        await refresh(work, session)
    if job.grouped:
        await group.check_watched(job, session)
    for work in works:
        job.at = work
        if not await claim(work, session):
            return False
    return True


async def _done_before(job: Job, session: Session) -> tuple[RefreshResult, ...] | None:
    """The results if the ledger says that nothing is left to do. Counts the attempts besides."""
    if not job.ledger:
        return None
    found = [row_of(work) for work in job.works]
    done = [row.settled_by or row.covered_by for row in found]
    if None not in done:
        runs = [await read_settled(session, run_id) for run_id in done]
        # A group is covered by one transaction only: the work of several would not agree. Its own slot's work is done
        # once all the same: if it was settled view by view, before the policy said Group, the next slot's will agree.
        if not job.grouped or all(row.settled_by for row in found) or is_one_transaction(runs):
            return tuple(
                already_done(work, run, recovered=row.settled_by is not None)
                for work, run, row in zip(job.works, runs, found, strict=True)
            )
    for work, row in zip(job.works, found, strict=True):
        job.at = work
        work.attempt = min(row.earlier_attempts + 1, MAX_ATTEMPT)
        if row.shared_with_another:
            raise Problem(
                RefreshReason.SHARED_VIEW,
                f"{row.quoted} was refreshed for another tenant within 24 hours. A view of several tenants needs "
                "isolation: Shared in every policy that names it.",
            )
    return None
