"""How long something has to wait before it may be begun, although it is due: for a window, for the least interval."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.slot import Slot
from matview_operator.domain.view import ViewName
from matview_operator.domain.windows import outlook
from matview_operator.engine.pace import Pace
from matview_operator.engine.ports import Clock, Key
from matview_operator.engine.registry import Database, Policy, Registry


class Holds:
    """Asked before anything is begun, by the dispatcher and, once it has a place, by the runner."""

    def __init__(self, *, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._pace = Pace(registry=registry)

    def until(self, policy: Policy, slot: Slot) -> datetime | None:
        """Before when it may not be begun; None if it may be now."""
        waits = (self.closed_until(policy), self.paced_until(policy, slot))
        return max((instant for instant in waits if instant is not None), default=None)

    def paced_until(self, policy: Policy, slot: Slot) -> datetime | None:
        """When the least interval since the views' last runs is over; None if it is. Requests have their own pace."""
        database, spec = self._database_of(policy)
        if slot.request is not None or database is None or spec is None or not spec.limits.min_interval_seconds:
            return None
        least, now = timedelta(seconds=spec.limits.min_interval_seconds), self._clock.now()
        again = self._pace.next_start(policy, slot, least=least, ledger=database.has_ledger, now=now)
        return again if again is not None and now < again else None

    def ended(self, database: Key, results: Iterable[tuple[ViewName, RefreshResult]], *, slot: Slot) -> None:
        """Have the intervals begin with these runs."""
        known = self._registry.databases.get(database)
        if known is not None and known.spec is not None and known.spec.limits.min_interval_seconds:
            least = timedelta(seconds=known.spec.limits.min_interval_seconds)
            for view, result in results:
                self._pace.ended(database, view, result, slot=slot, least=least)

    def closed_until(self, policy: Policy) -> datetime | None:
        """When the windows of the policy's database let a refresh start, at the earliest; None if they do now."""
        database, spec = self._database_of(policy)
        if database is None or spec is None or not spec.windows:
            return None
        now, known = self._clock.now(), database.outlook
        if known is None or not known.since <= now < known.until:
            # Once for each change of the windows, however many policies ask; the clock may have been set back.
            known = database.outlook = outlook(spec.windows, now)
        return None if known.is_open else known.until

    def _database_of(self, policy: Policy) -> tuple[Database | None, MatviewDatabaseSpec | None]:
        """Nothing waits for a database that cannot be used: whoever runs it says what is wrong."""
        database = self._registry.database_of(policy)
        usable = database is not None and database.spec is not None and not database.spec.suspend
        return (database, database.spec) if database is not None and usable else (None, None)
