"""The transaction of one run: both locks, the lookup, REFRESH, the claim, COMMIT. The only place that runs REFRESH."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import asyncpg

from matview_operator.adapters.postgres import queries
from matview_operator.adapters.postgres.authentication import Row
from matview_operator.adapters.postgres.commit import PendingCommit
from matview_operator.adapters.postgres.connection import CONNECT_SECONDS
from matview_operator.adapters.postgres.ledger import ATTEMPTS, MAX_ATTEMPT, read_settled
from matview_operator.adapters.postgres.session import Session, view_facts
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.work import Stage, Work, already_done, success
from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.policy import Analyze, Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import Problem
from matview_operator.domain.lock_keys import lock_keys
from matview_operator.domain.preflight import check_view
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.search_path import search_path_problems
from matview_operator.domain.server import check_server

log = logging.getLogger(__name__)

BUSY_TRIES = 5
"""How often a blocking refresh steps back from a view in use before it queues once, for the lock timeout."""
_BUSY_SECONDS = (0.1, 0.4)
_LEDGER_GONE = frozenset({"42P01", "3F000", "42501"})
_GLOBAL_KEY = lock_keys("").tenant_key
_EXECUTION_CONTEXT = "app.execution_context"


async def work_through(work: Work) -> RefreshResult:
    """Connect, refresh, commit. Raises Problem or what the driver raises; the transaction is then still open."""
    session = work.session = await Session.open(work.target, seconds=min(CONNECT_SECONDS, work.run.timeout_seconds))
    return await work_over(session, work)


async def work_over(session: Session, work: Work) -> RefreshResult:
    """Refresh and commit over this session. Raises as work_through does."""
    run = work.run
    setting = run.tenant_setting.lower()
    if "." not in setting or setting == _EXECUTION_CONTEXT:
        # set_config('role', …) would work: the setting must be a custom one.
        raise Problem(RefreshReason.INVALID_SPEC, f"tenantSetting must hold a dot and not be {_EXECUTION_CONTEXT}.")
    for problem in search_path_problems(run.search_path):
        raise Problem(RefreshReason.INVALID_SPEC, f"searchPath{problem}")
    check_server(session.facts, allow_superuser=run.allow_superuser)
    if run.due_at is not None:
        work.clock_offset = await session.clock_offset()
    work.ledger = session.facts.bookkeeping is Bookkeeping.INSTALLED
    busy = 0
    while True:
        try:
            result = await _transaction(work, session, queue=busy >= BUSY_TRIES)
        except asyncpg.PostgresError as error:
            in_ledger = work.ledger and work.stage in (Stage.READING, Stage.CLAIMING)
            if not (in_ledger and error.sqlstate in _LEDGER_GONE):
                raise
            await session.rollback()
            if (await session.read_facts()).bookkeeping is Bookkeeping.INSTALLED:
                raise
            work.ledger = False
            continue
        if result is not None:
            return result
        busy += 1
        await asyncio.sleep(random.uniform(*_BUSY_SECONDS))  # noqa: S311 - jitter


async def _transaction(work: Work, session: Session, *, queue: bool) -> RefreshResult | None:
    """One try; None when the view was in use, or its slot was settled meanwhile, and the try is to be made again."""
    run = work.run
    await session.begin()
    held = await _lock(work, session)
    if held is not None:
        await session.rollback()
        return held
    found = await _look_up(work, session)
    if work.ledger:
        done = found.settled_by or found.covered_by
        if done is not None:
            settled = await read_settled(session, done)
            await session.rollback()
            return already_done(work, settled, recovered=found.settled_by is not None)
        work.attempt = min(found.earlier_attempts + 1, MAX_ATTEMPT)
        if found.shared_with_another:
            raise Problem(
                RefreshReason.SHARED_VIEW,
                f"{found.quoted} was refreshed for another tenant within 24 hours. A view of several tenants needs "
                "isolation: Shared in every policy that names it.",
            )
    assert work.choice is not None  # set by the lookup
    if work.choice.mode is RefreshMode.BLOCKING and found.in_use and not queue:
        # Waiting for the lock would make every new reader wait behind us.
        await session.rollback()
        return None
    work.stage = Stage.REFRESHING
    await session.utility(queries.refresh(queries.QuotedName(found.quoted), work.choice.mode))
    work.stage = Stage.CLAIMING
    if not await _claim(work, session, found):
        await session.rollback()
        return None
    work.stage = Stage.COMMITTING
    await session.commit()
    work.stage = Stage.COMMITTED
    if work.choice.mode is RefreshMode.BLOCKING and run.analyze is Analyze.AUTO:
        await _analyze(work, session, found.oid)
    return success(work)


async def _lock(work: Work, session: Session) -> RefreshResult | None:
    run, keys = work.run, work.run.lock_keys
    shared = run.isolation is Isolation.SHARED
    log.debug("trying the locks", extra={"action": "lock_attempt", **work.log_fields()})
    row = await session.row(
        queries.SETTINGS_AND_LOCKS,
        max(1, round(work.remaining() * 1000)),
        None if run.lock_timeout_millis is None else str(run.lock_timeout_millis),
        # Off fails closed where the owner is subject to row-level security, instead of losing rows.
        "off" if shared else "on",
        run.tenant_setting,
        None if shared else run.tenant_id,
        keys.view_key,
        keys.tenant_key,
        _GLOBAL_KEY,
        [*run.search_path],
    )
    assert row is not None  # a select without from has one row
    if shared and row.leaked_setting:
        raise Problem(
            RefreshReason.TENANT_SETTING_LEAKED,
            f"The connection arrived with {run.tenant_setting} already set: a pooler hands sessions on unreset, or the "
            "role has a default for it. Set it with SET LOCAL only, or reset it in the pooler.",
        )
    if row.own_lock and row.global_lock:
        log.info("locks acquired", extra={"action": "lock_acquired", **work.log_fields()})
        return None
    log.info("lock held by another session", extra={"action": "lock_held", **work.log_fields()})
    return work.result(
        RefreshOutcome.SKIPPED_LOCK_HELD,
        Problem(RefreshReason.LOCK_HELD, "Another session holds the view's refresh lock."),
    )


async def _look_up(work: Work, session: Session) -> Row:
    run = work.run
    work.stage = Stage.READING
    arguments: list[Any] = [run.view.schema, run.view.name, run.concurrently is not Concurrently.ALWAYS]
    if work.ledger:
        row = await session.row(
            queries.LOOKUP_WITH_LEDGER,
            *arguments,
            run.policy_uid,
            run.slot_id,
            run.lock_token,
            None if run.due_at is None else run.due_at + work.clock_offset,
            ATTEMPTS,
            run.isolation is Isolation.TENANT,
        )
    else:
        row = await session.row(queries.LOOKUP, *arguments)
    work.found = row
    work.choice = check_view(run.view, view_facts(row), concurrently=run.concurrently, server=session.facts)
    assert row is not None  # check_view refuses a missing view
    return row


async def _claim(work: Work, session: Session, found: Row) -> bool:
    """Re-check the view and write the ledger's row; False when the slot was settled meanwhile."""
    run, choice = work.run, work.choice
    assert choice is not None  # set by the lookup
    name = (run.view.schema, run.view.name, found.oid)
    if work.ledger:
        row = await session.row(
            queries.RECHECK_AND_CLAIM,
            *name,
            found.inserted,
            found.deleted,
            run.policy_uid,
            str(run.view),
            run.slot_id,
            None if run.due_at is None else run.due_at + work.clock_offset,
            work.attempt,
            run.lock_token,
            found.data_as_of,
            choice.mode.value,
            None if choice.reason is None else choice.reason.value,
            run.correlation_id,
        )
    else:
        row = await session.row(queries.RECHECK, *name)
    if row is None:
        raise Problem(
            RefreshReason.VIEW_REPLACED,
            f"Another relation took the name {found.quoted} while it was refreshed; everything was rolled back.",
        )
    work.after = row
    work.pending = PendingCommit(
        xid=row.xid,
        view_oid=found.oid,
        claimed=work.ledger,
        identity=None if work.ledger else (row.system_identifier, row.timeline),
    )
    return not work.ledger or row.run_id is not None


async def _analyze(work: Work, session: Session, view_oid: int) -> None:
    """Plan with the new rows' statistics; in a transaction of its own, and never the run's failure."""
    try:
        await session.begin()
        target = await session.row(queries.ANALYZE_TARGET, view_oid, str(max(1, round(work.remaining() * 1000))))
        if target is not None:
            await session.utility(queries.analyze(queries.QuotedName(target.quoted)))
        await session.commit()
    except (Problem, OSError, *queries.DRIVER_ERRORS) as error:
        log.warning("ANALYZE failed: %s", problem_of(error).message, extra={"action": "analyze", **work.log_fields()})
