"""How long a slot or a request has to wait before it may be begun, although it is due: the windows of its database."""

from __future__ import annotations

from datetime import datetime

from matview_operator.domain.windows import outlook
from matview_operator.engine.ports import Clock
from matview_operator.engine.registry import Policy, Registry


class Holds:
    """Asked before anything is begun, by the dispatcher and, once it has a place, by the runner."""

    def __init__(self, *, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    def closed_until(self, policy: Policy) -> datetime | None:
        """When the windows of the policy's database let a refresh start, at the earliest; None if they do now.

        Nothing waits for a database that cannot be used: whoever runs it says what is wrong.
        """
        database = self._registry.databases.get(policy.database_key) if policy.database_key else None
        if database is None or database.spec is None or database.spec.suspend or not database.spec.windows:
            return None
        now, known = self._clock.now(), database.outlook
        if known is None or not known.since <= now < known.until:
            # Once for each change of the windows, however many policies ask; the clock may have been set back.
            known = database.outlook = outlook(database.spec.windows, now)
        return None if known.is_open else known.until
