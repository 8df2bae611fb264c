"""Old rows leave the ledger: only the role's own, a day's worth at a time, and by a function that was looked at."""

from __future__ import annotations

import asyncio
import logging
import math
from datetime import timedelta

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import ledger as ledger_queries
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.server import check_server

log = logging.getLogger(__name__)

_OLDEST_DAYS = 36_500
"""A century: what a hostile server says is bounded too."""
PRUNE_SECONDS = 300.0
"""For one database; what was deleted until then stays deleted."""


class LedgerPruner:
    """Holds no state; a connection of its own for each call, closed after it."""

    async def prune(
        self, *, target: ConnectionTarget, keep_days: int, allow_superuser: bool, seconds: float = PRUNE_SECONDS
    ) -> int | None:
        """Delete this role's runs that ended more than `keep_days` ago; return their number, None without a ledger.

        Raises Problem: for the connection, for a prune() that is not as `migrate` makes it, and when the time is over.
        """
        deleted = 0
        try:
            async with asyncio.timeout(seconds):
                session = await Session.open(target)
                try:
                    check_server(session.facts, allow_superuser=allow_superuser)
                    if session.facts.bookkeeping is not Bookkeeping.INSTALLED:
                        return None
                    await _check_function(session)
                    for days in await _steps(session, keep_days=keep_days):
                        row = await session.row(ledger_queries.PRUNE, timedelta(days=days))
                        deleted += 0 if row is None else row.deleted
                finally:
                    await session.close()
        except TimeoutError:
            raise Problem(
                RefreshReason.TIMEOUT,
                f"{deleted:,} old runs were deleted from the ledger in {seconds:g} s, and there are more; "
                "the next time goes on.",
            ) from None
        except Exception as error:  # whatever a server answers is this one database's problem
            problem = problem_of(error)
            if problem.reason is RefreshReason.INTERNAL_ERROR:
                log.exception("unexpected error", extra={"action": "prune_error"})
            raise problem from None
        log.info(
            "pruned the ledger",
            extra={"action": "prune", "host": target.host, "database": target.database, "runs_deleted": deleted},
        )
        return deleted


async def _steps(session: Session, *, keep_days: int) -> range:
    """By how many days to prune: from the oldest row's age downwards, so that no transaction deletes all at once."""
    oldest = await session.row(ledger_queries.OLDEST_AGE)
    return range(0) if oldest is None else range(min(math.floor(oldest.days), _OLDEST_DAYS), keep_days - 1, -1)


async def _check_function(session: Session) -> None:
    found = await session.row(ledger_queries.PRUNE_FLAW)
    flaw = "it is missing" if found is None else found.flaw
    if flaw is not None:
        raise Problem(
            RefreshReason.PERMISSION_DENIED,
            f"The ledger's function matview_ops.prune(interval) is not called: {flaw}. "
            f"Install it anew: matview-operator migrate --down, then "
            f"matview-operator migrate --grant-to {session.facts.role}",
        )
