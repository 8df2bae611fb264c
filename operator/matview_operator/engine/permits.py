"""Whether a slot may be begun, and a view be refreshed: asked before a place is waited for, and when it is there."""

from __future__ import annotations

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.slot import Slot
from matview_operator.domain.spec_check import check_timeouts
from matview_operator.engine.holds import Holds
from matview_operator.engine.order import Order
from matview_operator.engine.ports import Clock
from matview_operator.engine.queue import NoPlace
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.targets import usable
from matview_operator.engine.turns import StaysDue


class _PolicyChanged(StaysDue):
    """The policy as it was when the slot came up is not the policy any more."""


class _Held(StaysDue):
    """While the slot waited for a place, the time came in which it may not be begun."""


class Permits:
    """Answers by what the registry, the holds and the order say at the moment."""

    def __init__(self, *, registry: Registry, holds: Holds, order: Order, clock: Clock) -> None:
        self._registry = registry
        self._holds = holds
        self._order = order
        self._clock = clock

    def check_begin(self, policy: Policy, slot: Slot, *, first: bool, again: bool) -> None:
        """Raises StaysDue of a slot of which nothing was begun, NoPlace of one that is late, and of another attempt at
        a view: then the one before is told.
        """
        if first:
            self.check_unchanged(policy)
        if first and slot.request is None and self._clock.now() > slot.deadline:
            raise NoPlace
        if first and self._holds.until(policy, slot) is not None:
            raise _Held
        if again and self._holds.closed_until(policy) is not None:
            raise NoPlace

    def check_unchanged(self, policy: Policy) -> None:
        """Raises StaysDue of a slot that was taken up when the policy was another one."""
        if self._registry.policies.get(policy.key) is not policy:
            raise _PolicyChanged

    def database_of(self, policy: Policy) -> MatviewDatabaseSpec:
        """The database that the policy may refresh its views on; raises Problem."""
        key = policy.database_key
        assert key is not None  # an invalid policy has no timer and no request
        database = usable(self._registry.databases.get(key), key)
        problem = self.problem_of(policy)
        if problem is not None:
            raise problem
        return database

    def problem_of(self, policy: Policy) -> Problem | None:
        """What the policies and databases by themselves forbid."""
        problem = self._registry.sharing_problem(policy) or self._order.problem(policy)
        database = self._registry.database_of(policy)
        if problem is not None or policy.spec is None or database is None or database.spec is None:
            return problem
        too_long = check_timeouts(policy.spec, limits=database.spec.limits)
        return Problem(RefreshReason.INVALID_SPEC, too_long[0]) if too_long else None
