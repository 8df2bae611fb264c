"""Lets the ledgers forget: once a day for each database, one database after another."""

from __future__ import annotations

import asyncio
import logging

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import Key, Pruner
from matview_operator.engine.registry import Registry
from matview_operator.engine.targets import Targets, usable

log = logging.getLogger(__name__)

ROUND_SECONDS = 600.0
"""Between two looks at who is due; after a start nothing is pruned before the first."""
DAY_SECONDS = 86_400.0
_RETRY_SECONDS = 3_600.0
_OWN = frozenset({RefreshReason.PERMISSION_DENIED, RefreshReason.TIMEOUT})
"""What pruning has trouble with and no preflight tells."""


class Retention:
    """Remembers in memory when a database was last pruned: after a restart it happens once more, which does no harm."""

    def __init__(self, *, registry: Registry, pruner: Pruner, targets: Targets, keep_days: int) -> None:
        self._registry = registry
        self._pruner = pruner
        self._targets = targets
        self._keep_days = keep_days
        self._due: dict[str, float] = {}
        """By UID, on the loop's clock, which nobody sets."""

    async def run(self) -> None:
        """Prune until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            present = {database.ref.uid for database in self._registry.databases.values()}
            self._due = {uid: due for uid, due in self._due.items() if uid in present}
            for key in [*self._registry.databases]:
                await self._prune_if_due(key)

    async def _prune_if_due(self, key: Key) -> None:
        database = self._registry.databases.get(key)
        now = asyncio.get_running_loop().time()
        if database is None or self._due.get(database.ref.uid, now) > now:
            return
        again = _RETRY_SECONDS
        try:
            # Superusers are refused as for a refresh, by the same setting.
            spec = usable(database, key)
            target = await self._targets.resolve(spec, key)
            await self._pruner.prune(target=target, keep_days=self._keep_days, allow_superuser=spec.allow_superuser)
            again = DAY_SECONDS
        except Problem as problem:
            # What keeps us from the database is in its status, by the preflight.
            log.log(
                logging.WARNING if problem.reason in _OWN else logging.DEBUG,
                "the ledger was not pruned: %s",
                problem.message,
                extra={"action": "prune", "database": str(key), "reason": problem.reason},
            )
        except Exception:  # One database's surprise stops nobody else's pruning.
            log.exception("pruning failed", extra={"action": "prune", "database": str(key)})
        self._due[database.ref.uid] = now + again
