"""What became of a COMMIT whose answer never came."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.errors import Problem

if TYPE_CHECKING:
    from matview_operator.domain.connection import ConnectionTarget
    from matview_operator.domain.run import Run

_POLL_SECONDS = 0.2
_IN_PROGRESS = "in progress"
_COMMITTED = "committed"
_ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCommit:
    """A transaction that may have committed."""

    xid: str
    run: Run
    """One of the transaction's runs."""
    view_oid: int
    claimed: bool
    """Whether its success is a row of the ledger."""
    identity: tuple[int, int] | None = None
    """System identifier and timeline, without which a transaction id means nothing; read where there is no ledger."""


async def settle_unknown(target: ConnectionTarget, pending: PendingCommit, *, seconds: float) -> RefreshOutcome:
    """Ask a new connection: SUCCESS, INTERRUPTED (nothing changed), or UNKNOWN when nobody can tell in time.

    With the ledger its row is the truth, also on a promoted standby; without it the transaction's status is, on the
    same server and timeline only.
    """
    if seconds <= 0:
        return RefreshOutcome.UNKNOWN
    try:
        async with asyncio.timeout(seconds):
            while True:
                outcome = await _ask(target, pending, seconds=seconds)
                if outcome is not None:
                    return outcome
                # A server whose backend crashed refuses connections for a moment.
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        return RefreshOutcome.UNKNOWN


async def _ask(target: ConnectionTarget, pending: PendingCommit, *, seconds: float) -> RefreshOutcome | None:
    """Return None when there was no answer."""
    session: Session | None = None
    try:
        session = await Session.open(target, seconds=seconds)
        status = await _final_status(session, pending.xid)
        if pending.claimed:
            run = pending.run
            row = await session.row(
                queries.SETTLED_BY, run.policy_uid, pending.view_oid, run.slot_id, run.correlation_id
            )
            return RefreshOutcome.SUCCESS if row is not None else RefreshOutcome.INTERRUPTED
        identity = await session.row(queries.IDENTITY)
        if identity is None or (identity.system_identifier, identity.timeline) != pending.identity:
            return RefreshOutcome.UNKNOWN
        return {_COMMITTED: RefreshOutcome.SUCCESS, _ABORTED: RefreshOutcome.INTERRUPTED}.get(
            status or "", RefreshOutcome.UNKNOWN
        )
    except (Problem, OSError, *queries.DRIVER_ERRORS):
        return None
    finally:
        if session is not None:
            await session.close()


async def _final_status(session: Session, xid: str) -> str | None:
    """Wait while the old backend still commits, for a synchronous standby perhaps."""
    while True:
        row = await session.row(queries.XACT_STATUS, xid)
        status = None if row is None else row.status
        if status != _IN_PROGRESS:
            return status
        await asyncio.sleep(_POLL_SECONDS)
