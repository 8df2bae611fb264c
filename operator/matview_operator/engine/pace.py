"""When each view was last begun to be refreshed, for the least interval that a database's administrator wants."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.slot import Slot, is_fresh
from matview_operator.domain.status import views_of
from matview_operator.domain.view import ViewName
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy, Registry

_OWN_LAG = timedelta(seconds=1)
"""A run that began this soon counts as begun when it was due: else a schedule as often as the interval allows would
come later and later, by each run's lag."""
_NO_REFRESH = frozenset(
    {
        RefreshOutcome.SKIPPED_COVERED,
        RefreshOutcome.SKIPPED_LOCK_HELD,
        RefreshOutcome.SKIPPED_UNCHANGED,
        RefreshOutcome.SKIPPED_UPSTREAM,
    }
)
_FORGOTTEN_AT_ONCE = 1000


class _Begun(NamedTuple):
    at: datetime
    fresh: bool


class Pace:
    """Holds one entry for each view that is named by a policy, of databases that have such an interval."""

    def __init__(self, *, registry: Registry) -> None:
        self._registry = registry
        self._begun: dict[tuple[Key, ViewName], _Begun] = {}

    def ended(self, database: Key, view: ViewName, result: RefreshResult, *, slot: Slot) -> None:
        """Take down when a run began. Until it ends, the view's lock keeps others from it."""
        if not _counts(result.outcome, result.error_type):
            return
        at = result.started_at
        if slot.request is None and timedelta() <= at - slot.due_at < _OWN_LAG:
            at = slot.due_at
        named = self._registry.named_views()
        if len(self._begun) > len(named) + _FORGOTTEN_AT_ONCE:
            self._begun = {place: begun for place, begun in self._begun.items() if place in named}
        self._begun[database, view] = _Begun(at, is_fresh(result.outcome))

    def next_start(self, policy: Policy, slot: Slot, *, least: timedelta, ledger: bool) -> datetime | None:
        """When the slot's views may be refreshed again; None if they were not yet.

        A view that was refreshed since the slot was due keeps nothing waiting: where there is a ledger it will say that
        that run covers the slot.
        """
        if policy.spec is None or policy.database_key is None:
            return None
        begun = [self._last(policy, policy.database_key, view) for view in views_of(policy.spec)]
        counted = [
            each.at for each in begun if each is not None and not (ledger and each.fresh and each.at >= slot.due_at)
        ]
        return max(counted) + least if counted else None

    def _last(self, policy: Policy, database: Key, view: ViewName) -> _Begun | None:
        known = self._begun.get((database, view))
        if known is not None:
            return known
        for told in policy.status.views:  # by the process before this one
            if (told.schema_name, told.name) != (view.schema, view.name):
                continue
            if told.started_at is not None and told.outcome is not None and _counts(told.outcome, told.reason):
                return _Begun(told.started_at, is_fresh(told.outcome))
        return None


def _counts(outcome: RefreshOutcome, reason: str | None) -> bool:
    """Whether it was a refresh; what we ourselves stopped is made up for at once."""
    return outcome not in _NO_REFRESH and reason not in (RefreshReason.SHUTDOWN, RefreshReason.DATABASE_SUSPENDED)
