"""When each view was last begun to be refreshed, for the least interval that a database's administrator wants."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from matview_operator.api.policy import Consistency
from matview_operator.domain.result import RefreshResult, was_begun
from matview_operator.domain.slot import Slot, is_fresh
from matview_operator.domain.view import ViewName
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy, Registry

_FORGOTTEN_AT_ONCE = 1000


class _Begun(NamedTuple):
    at: datetime
    fresh: bool
    started_at: datetime
    """As it was told: views of one transaction have the same."""


class Pace:
    """Holds one entry for each view that is named by a policy, of databases that have such an interval."""

    def __init__(self, *, registry: Registry) -> None:
        self._registry = registry
        self._begun: dict[tuple[Key, ViewName], _Begun] = {}

    def ended(self, database: Key, view: ViewName, result: RefreshResult, *, slot: Slot, least: timedelta) -> None:
        """Take down when a run began, or might have but for its waiting for a place, half of `least` at most.

        Else a schedule as often as the interval allows would come later and later. Until the run ends, the view's lock
        keeps others from it.
        """
        if not was_begun(result.outcome, result.error_type):
            return
        at = result.started_at
        before = self._begun.get((database, view))
        free = slot.due_at if before is None else max(slot.due_at, before.at + least)
        if slot.request is None and timedelta() <= at - free < least / 2:
            at = free
        if before is not None and at < before.at <= result.started_at + timedelta(milliseconds=result.duration_ms):
            return  # it hung, and another one was begun meanwhile
        named = self._registry.named_views()
        if len(self._begun) > len(named) + _FORGOTTEN_AT_ONCE:
            self._begun = {place: begun for place, begun in self._begun.items() if place in named}
        self._begun[database, view] = _Begun(at, is_fresh(result.outcome), result.started_at)

    def next_start(
        self, policy: Policy, slot: Slot, *, least: timedelta, ledger: bool, now: datetime
    ) -> datetime | None:
        """When the slot's views may be refreshed again; None if they were not yet.

        What was begun later than now tells nothing: somebody set the clock back since.
        A view that was refreshed since the slot was due keeps nothing waiting: where there is a ledger it will say that
        that run covers the slot. Of a group it says so if all of its views were refreshed together.
        """
        if policy.spec is None or policy.database_key is None:
            return None
        begun = [self._last(policy, policy.database_key, view) for view in policy.views]
        if policy.spec.consistency is Consistency.GROUP:
            ledger = ledger and len({each and each.started_at for each in begun}) == 1
        counted = [
            each.at
            for each in begun
            if each is not None and each.at <= now and not (ledger and each.fresh and each.at >= slot.due_at)
        ]
        return max(counted) + least if counted else None

    def _last(self, policy: Policy, database: Key, view: ViewName) -> _Begun | None:
        known = self._begun.get((database, view))
        if known is not None:
            return known
        for told in policy.status.views:  # by the process before this one
            if (told.schema_name, told.name) != (view.schema, view.name):
                continue
            if told.started_at is not None and told.outcome is not None and was_begun(told.outcome, told.reason):
                return _Begun(told.started_at, is_fresh(told.outcome), told.started_at)
        return None
