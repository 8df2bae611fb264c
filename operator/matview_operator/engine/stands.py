"""Where a slot waits that waits for nothing but a place: as a name in the line.

To wait with all that a run needs takes three times as much memory, and five thousand slots may be due at one instant.
"""

from __future__ import annotations

from matview_operator.domain.errors import Problem
from matview_operator.domain.slot import Slot
from matview_operator.engine.budget import Budget
from matview_operator.engine.flights import Flights, shared_view
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import Clock
from matview_operator.engine.queue import Turn
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.turns import Turns


class Stands:
    """Knows who may wait so: whoever may not, is to find out step by step what there is to wait for."""

    def __init__(
        self, *, registry: Registry, permits: Permits, turns: Turns, flights: Flights, budget: Budget, clock: Clock
    ) -> None:
        self._registry = registry
        self._permits = permits
        self._turns = turns
        self._flights = flights
        self._budget = budget
        self._clock = clock

    async def wait(self, policy: Policy, slot: Slot) -> Turn | None:
        """Wait for the first view's place, and return it, to be released. Raises NoPlace if there is none in time.

        None where a place is not all: the view comes after another, somebody else's run may cover it, or something is
        wrong that is to be told at once. Either way the order of the database's views is known then, if it can be.
        """
        assert policy.spec is not None  # an invalid policy has no timer and no request
        assert policy.database_key is not None  # the policy has a spec
        await self._turns.order.looked(policy.database_key)
        if not self._waits_for_a_place_alone(policy):
            return None
        turn = self._budget.queue(policy.database_key, tenant=policy.spec.tenant_id)
        is_ours = False
        try:
            left = None if slot.request is not None else (slot.deadline - self._clock.now()).total_seconds()
            await turn.come(seconds=left)
            # What came up meanwhile otherwise lets go of a place as soon as it has no use for it.
            is_ours = not self._turns.follows(policy.key)
        finally:
            if not is_ours:
                self._budget.release(turn)
        return turn if is_ours else None

    def _waits_for_a_place_alone(self, policy: Policy) -> bool:
        assert policy.spec is not None  # see above
        assert policy.database_key is not None
        try:
            self._permits.database_of(policy)
        except Problem:
            return False
        view = shared_view(self._registry.databases[policy.database_key], policy.spec, policy.spec.views[0])
        is_shared = view is not None and (
            self._flights.concern(view)
            or any(key != policy.key for key in self._registry.naming(policy.database_key, view[2]))
        )
        return not is_shared and not self._turns.follows(policy.key)
