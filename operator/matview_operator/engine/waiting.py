"""Slots and requests that are due and may not begin yet: each policy has one entry in a heap, and holds no place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from matview_operator.domain.slot import Slot
from matview_operator.engine.holds import Holds
from matview_operator.engine.ports import Clock, Key
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.timers import Timers

_PAST = timedelta(milliseconds=1)
"""After its deadline a slot is missed, at it it may still begin."""


class Waiting:
    """Answers the dispatcher whether something has to wait, and sees to it that it is asked again in time."""

    def __init__(
        self,
        *,
        registry: Registry,
        holds: Holds,
        clock: Clock,
        wake: Callable[[Key], None],
        request_waits: Callable[[Policy], None],
    ) -> None:
        """`wake` is told of a policy when what it has waiting may begin or is late, `request_waits` of a new wait."""
        self._registry = registry
        self._holds = holds
        self._clock = clock
        self._request_waits = request_waits
        self.timers = Timers(clock=clock, fire=lambda key, _: wake(key))

    def holds(self, key: Key, slot: Slot) -> bool:
        """Whether it has to wait. A slot does so until its deadline at most, a request as long as it takes."""
        policy = self._registry.policies.get(key)
        until = None if policy is None else self._holds.until(policy, slot)
        if policy is None or until is None:
            return False
        again = until if slot.request is not None else min(until, slot.deadline + _PAST)
        due = self.timers.due(key)
        if due is None or not self._clock.now() < due <= again:  # a slot and a request may both wait
            self.timers.set(key, again)
        if slot.request is not None and policy.held_request != (slot.request, until):
            policy.held_request = slot.request, until
            self._request_waits(policy)
        return True
