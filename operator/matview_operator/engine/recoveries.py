"""What a policy gets when it is found well again: its waiting ends, and a slot that failed is run once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry_class import RetryClass, retry_class
from matview_operator.domain.slot import Slot, SlotReport
from matview_operator.domain.view import ViewName
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy, Registry


class Begun(NamedTuple):
    """What a slot was begun as; anything else later means that something changed."""

    taken_until: datetime
    policy: int
    """Its generation."""
    database: int | None


@dataclass(slots=True, kw_only=True)
class _Failed:
    """A policy's newest slot, which failed."""

    report: SlotReport
    begun: Begun
    mendable: bool
    """Whether a view failed for what a preflight sees."""
    run_again: bool = False
    done: bool = False
    """Whether a request did its work while it waited to be run again."""


class Recoveries:
    """Remembers of each policy whether it is unwell, and its newest slot if that failed: bounded by their number."""

    def __init__(self, *, registry: Registry, pauses: Pauses) -> None:
        self._registry = registry
        self._pauses = pauses
        self._unwell: set[Key] = set()
        self._failed: dict[Key, _Failed] = {}

    def begun(self, policy: Policy) -> Begun:
        """What a slot of the policy would be begun as now."""
        database = self._registry.database_of(policy)
        return Begun(policy.taken_until, policy.generation, None if database is None else database.generation)

    def ended(self, key: Key, report: SlotReport, *, begun: Begun) -> None:
        """Remember a slot that failed; one that was run again, or that a request did the work of, is done with."""
        if report.slot.request is not None:
            failed = self._failed.get(key)
            if failed is None or not report.fresh:
                return
            if failed.run_again:
                failed.done = True  # it waits, and is to be known when its turn comes
            else:
                del self._failed[key]
        elif self.is_again(key, report.slot):
            del self._failed[key]
        elif report.failed and not report.broken_off:
            mendable = any(retry_class([result]) is RetryClass.ON_CHANGE for _, result in report.results)
            self._failed[key] = _Failed(report=report, begun=begun, mendable=mendable)
        else:
            self._failed.pop(key, None)

    def judged(self, policy: Policy) -> Slot | None:
        """Take up what a preflight found; returns the slot that is to be run again because all is well now.

        Whether it may still start is the dispatcher's to know.
        """
        key = policy.key
        if policy.problem is not None:
            self._unwell.add(key)
            return None
        recovered = key in self._unwell
        self._unwell.discard(key)
        if recovered:
            self._pauses.wake(key)
        failed = self._failed.get(key)
        if failed is None or failed.run_again:
            return None
        now = self.begun(policy)
        if now.taken_until != failed.begun.taken_until:
            return None
        failed.run_again = recovered or failed.mendable or now != failed.begun
        return failed.report.slot if failed.run_again else None

    def is_again(self, key: Key, slot: Slot) -> bool:
        """Whether this slot has been run, and is to be run again."""
        failed = self._failed.get(key)
        return failed is not None and failed.run_again and failed.report.slot == slot

    def is_done(self, key: Key, slot: Slot) -> bool:
        """Whether this slot was to be run again, and need not be any more."""
        return self.is_again(key, slot) and self._failed[key].done

    def former(self, key: Key, slot: Slot) -> Mapping[ViewName, RefreshResult]:
        """How a slot that is run again has ended before."""
        return dict(self._failed[key].report.results) if self.is_again(key, slot) else {}

    def forget(self, key: Key) -> None:
        """Drop what is known of a deleted policy."""
        self._unwell.discard(key)
        self._failed.pop(key, None)
