"""The steps of a run inside its transaction: lock, look up, REFRESH, claim. The only place that runs REFRESH."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

from matview_operator.adapters.postgres.commit import PendingCommit
from matview_operator.adapters.postgres.facts import view_facts
from matview_operator.adapters.postgres.guard import watch
from matview_operator.adapters.postgres.ledger import ATTEMPTS
from matview_operator.adapters.postgres.overtaking import check_sources, note_sources
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import claim as claim_queries
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sql import sources as source_queries
from matview_operator.adapters.postgres.sql.leftovers import ASK_LOCKS
from matview_operator.adapters.postgres.sql.lookup import IN_USE, LOOKUP, LOOKUP_WITH_LEDGER
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.wire.authentication import Row
from matview_operator.adapters.postgres.work import Stage, Work, mode_of, row_of
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.domain.errors import Problem
from matview_operator.domain.lock_keys import GLOBAL_KEY
from matview_operator.domain.preflight import check_view, replaced_problem
from matview_operator.domain.run import Run

log = logging.getLogger(__name__)


async def lock(work: Work, session: Session) -> bool:
    """Make the settings and try both locks of the view; False if another session has one of them."""
    log.debug("trying the locks", extra={"action": "lock_attempt", **work.log_fields()})
    row = await session.row(settings_of(work.run), *_settings(work))
    assert row is not None  # a select without from has one row
    return _is_locked(work, row)


async def look_up(work: Work, session: Session) -> None:
    """Find the view, what may be done with it, and what the ledger knows of it."""
    work.job.stage = Stage.READING
    await _judge(work, session, await session.row(_lookup_of(work), *_looked_up(work)))


async def lock_and_look_up(work: Work, session: Session) -> bool:
    """Both, as one message where the server keeps the statements; False if another session has one of the locks."""
    settings, lookup = settings_of(work.run), _lookup_of(work)
    # What finds the locks taken by others is of no use, and does no harm.
    if work.run.search_path or not session.ask_ahead(settings, *_settings(work), before=lookup):
        if not await lock(work, session):
            return False
        await look_up(work, session)
        return True
    log.debug("trying the locks", extra={"action": "lock_attempt", **work.log_fields()})
    work.job.stage = Stage.READING
    row = await session.row(lookup, *_looked_up(work))
    if not _is_locked(work, session.told_ahead(settings)):
        return False
    await _judge(work, session, row)
    return True


def settings_of(run: Run) -> str:
    """The first statement of the run's transaction."""
    return queries.SETTINGS_WITH_SEARCH_PATH_AND_LOCKS if run.search_path else queries.SETTINGS_AND_LOCKS


def _settings(work: Work) -> tuple[Any, ...]:
    run, keys = work.run, work.run.lock_keys
    shared = run.isolation is Isolation.SHARED
    return (
        max(1, round(work.job.remaining() * 1000)),
        None if run.lock_timeout_millis is None else str(run.lock_timeout_millis),
        # Off fails closed where the owner is subject to row-level security, instead of losing rows.
        "off" if shared else "on",
        run.tenant_setting,
        None if shared else run.tenant_id,
        keys.view_key,
        keys.tenant_key,
        GLOBAL_KEY,
        random.uniform(-1, 1),  # noqa: S311 - no secret depends on it
        *([[*run.search_path]] if run.search_path else ()),
    )


def _is_locked(work: Work, row: Row | Mapping[str, str | None]) -> bool:
    run = work.run
    if run.isolation is Isolation.SHARED and row["leaked_setting"]:
        raise Problem(
            RefreshReason.TENANT_SETTING_LEAKED,
            f"The connection arrived with {run.tenant_setting} already set: a pooler hands sessions on unreset, or the "
            "role has a default for it. Set it with SET LOCAL only, or reset it in the pooler.",
        )
    is_locked = row["own_lock"] == row["global_lock"] == "true"
    if is_locked:
        log.info("locks acquired", extra={"action": "lock_acquired", **work.log_fields()})
    else:
        log.info("lock held by another session", extra={"action": "lock_held", **work.log_fields()})
    return is_locked


def _lookup_of(work: Work) -> str:
    run = work.run
    if not work.job.ledger:
        return LOOKUP
    return LOOKUP_WITH_LEDGER[run.due_at is not None, run.isolation is Isolation.TENANT]


def _looked_up(work: Work) -> tuple[Any, ...]:
    run, job = work.run, work.job
    arguments: list[Any] = [run.view.schema, run.view.name]
    if job.ledger:
        arguments += [run.policy_uid, run.slot_id, ATTEMPTS]
        if run.due_at is not None:
            arguments += [run.lock_token, run.due_at + job.clock_offset]
        elif run.isolation is Isolation.TENANT:
            arguments.append(run.lock_token)
    return (*arguments,)


async def _judge(work: Work, session: Session, row: Row | None) -> None:
    run = work.run
    work.found = row
    work.choice = check_view(
        run.view, view_facts(row), concurrently=run.concurrently, grouped=work.job.grouped, server=session.facts
    )
    await note_sources(work, session)


async def would_queue(work: Work, session: Session) -> bool:
    """Whether REFRESH would have to wait for somebody, and so make every new reader wait behind it."""
    if mode_of(work) is RefreshMode.CONCURRENT:
        return False
    row = await session.row(IN_USE, row_of(work).oid)
    return row is not None and bool(row.in_use)


async def refresh(work: Work, session: Session) -> None:
    """Refresh the view that was looked up, under the eyes of its guard."""
    run, found, mode = work.run, row_of(work), mode_of(work)
    work.job.stage = Stage.REFRESHING
    work.watch = await watch(session, run.guard, view=run.view, found=found, mode=mode)
    after = _claim_of(work)
    await session.describe(source_queries.FILES, source_queries.REWRITTEN, after, queries.COMMIT)
    statement = queries.refresh(queries.QuotedName(found.quoted), mode)
    if work.watch is None and not work.job.grouped:
        await session.refresh(statement, before=after)
    else:
        await session.utility(statement)
        # What is wrong for that reason is not the guard's business, nor that of the views that come after.
        await check_sources(work, session)
    if work.watch is not None:
        await work.watch.check()


async def claim(work: Work, session: Session) -> bool:
    """Re-check the view and write the ledger's row; False when the slot was settled meanwhile."""
    run, job, found = work.run, work.job, row_of(work)
    job.stage = Stage.CLAIMING
    claims = _claim_of(work) is claim_queries.RECHECK_AND_CLAIM
    row = await _recheck(work, session)
    if row is None and work.files:
        # Not yet the view's or the slot's fault: something that it reads was rewritten, if only what it did not read.
        await check_sources(work, session)
        row = await _recheck(work, session)
    if row is None and claims:
        row = await session.row(claim_queries.RECHECK, *_same_view(work))
        if row is not None:
            return False
    if row is None:
        raise replaced_problem(run.view)
    work.after = row
    # A group has more locks, and is always taken for one that left something.
    session.note_locks(row.locks, own=len({run.lock_keys.tenant_key, GLOBAL_KEY}))
    if claims or not job.ledger:
        job.pending = PendingCommit(
            xid=row.xid,
            run=run,
            view_oid=found.oid,
            claimed=claims,
            identity=None if claims else (row.system_identifier, row.timeline),
        )
    return True


async def _recheck(work: Work, session: Session) -> Row | None:
    run, job, found, choice = work.run, work.job, row_of(work), work.choice
    assert choice is not None  # set by the lookup
    statement = _claim_of(work)
    if statement is claim_queries.RECHECK:
        return await session.row(statement, *_same_view(work))
    return await session.row(
        statement,
        *_same_view(work),
        found.inserted,
        found.deleted,
        run.policy_uid,
        str(run.view),
        run.slot_id,
        None if run.due_at is None else run.due_at + job.clock_offset,
        work.attempt,
        run.lock_token,
        found.data_as_of,
        choice.mode.value,
        None if choice.reason is None else choice.reason.value,
        run.correlation_id,
    )


def _same_view(work: Work) -> tuple[Any, ...]:
    """By what both claims know the view again."""
    run, found = work.run, row_of(work)
    return run.view.schema, run.view.name, found.oid, [*work.files], [*work.files.values()]


def _claim_of(work: Work) -> str:
    # Of a group a part may be settled, by the policy as it was when the slot was first worked on. It is not claimed
    # again. One view at least is, so that this transaction too can commit once only.
    claims = work.job.ledger and row_of(work).settled_by is None
    return claim_queries.RECHECK_AND_CLAIM if claims else claim_queries.RECHECK


async def analyze(work: Work, session: Session) -> None:
    """Plan with the new rows' statistics; in a transaction of its own, and never the run's failure."""
    try:
        await session.begin(before=queries.PATH)
        await session.rows(queries.PATH)
        timeout = str(max(1, round(work.job.remaining() * 1000)))
        target = await session.row(queries.ANALYZE_TARGET, row_of(work).oid, timeout)
        if target is not None:
            await session.utility(queries.analyze(queries.QuotedName(target.quoted)))
            row = await session.row(ASK_LOCKS)
            assert row is not None  # a select without from has one row
            session.note_locks(row.locks, own=0)
        await session.commit()
    except (Problem, OSError, *queries.DRIVER_ERRORS) as error:
        problem = problem_of(error, view_found=True, verbose=work.job.verbose_errors)
        log.warning("ANALYZE failed: %s", problem.message, extra={"action": "analyze", **work.log_fields()})
