"""What came of each slot and request, counted, and folded into the policy's status."""

from __future__ import annotations

from datetime import datetime, timedelta

from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import FRESH, WINDOW_CLOSED, Statement, statement_of
from matview_operator.domain.slot import Slot, SlotReport
from matview_operator.domain.staleness import StalenessTarget
from matview_operator.domain.status import (
    after_missed,
    after_slot,
    for_views,
    fresh_after,
    fresh_after_missed,
    fresh_until_retry,
    with_conditions,
)
from matview_operator.engine.holds import Holds
from matview_operator.engine.ports import Clock, Key, Metrics
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.recoveries import Recoveries
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.step import Step
from matview_operator.engine.timers import Timers

_WORTH_TELLING_SECONDS = 5.0
"""A shorter wait for another attempt is over before anybody reads of it."""


class Chronicle:
    """Hands status documents to the reporter. A policy with a target has its next slot from what it tells."""

    def __init__(
        self,
        *,
        registry: Registry,
        reporter: Reporter,
        preflights: Preflights,
        recoveries: Recoveries,
        holds: Holds,
        timers: Timers,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._reporter = reporter
        self._preflights = preflights
        self._recoveries = recoveries
        self._holds = holds
        self._timers = timers
        self._metrics = metrics
        self._clock = clock

    def publish(self, policy: Policy, *, fresh: Statement | None = None) -> None:
        """Bring the policy's conditions up to date and have its status written if it says anything new."""
        self._publish(policy, policy.status, fresh=fresh)

    def waits(self, key: Key, step: Step, seconds: float) -> None:
        """Tell of a longer wait for another attempt, once: Fresh that is False already says enough."""
        policy = self._registry.policies.get(key)
        if policy is None or seconds < _WORTH_TELLING_SECONDS:
            return
        fresh = statement_of(policy.status.conditions, FRESH)
        if fresh is None or fresh.status != "False":
            retry_at = self._clock.now() + timedelta(seconds=seconds)
            self.publish(policy, fresh=fresh_until_retry(step.results, retry_at=retry_at))

    def finished(self, policy: Policy, report: SlotReport, *, begun_as: Policy, missed: int) -> None:
        """Count and tell how a slot or request ended.

        `begun_as` is the policy as it was when it began, `missed` what was to be told with it then.
        """
        missed = 0 if report.stopped else min(missed, policy.missed)  # a stopped slot, and all before it, stay due
        policy.missed -= missed
        policy.missed_until = policy.missed_until if policy.missed else None
        former = self._recoveries.former(policy.key, report.slot)
        for view, result in report.results:
            if former.get(view) is not result:
                self._metrics.run_ended(policy.key, result)
        if report.slot.request is not None:
            policy.working_on = None
        else:
            if not self._recoveries.is_again(policy.key, report.slot):
                lag = report.started_at - report.slot.due_at - report.slot.begins_after
                self._metrics.slot_started(lag_seconds=max(0.0, lag.total_seconds()))
            if report.lock_held and not report.stopped:
                missed += 1
                self._metrics.slots_missed(policy.key, 1)
        status = after_missed(policy.status, count=missed, now=self._clock.now()) if missed else policy.status
        known = begun_as if policy.spec is None else policy
        assert known.spec is not None  # else it would not have begun
        status = for_views(after_slot(status, report, history_limit=known.spec.history_limit), known.views)
        self._retime(policy, status)
        self._publish(policy, status, fresh=fresh_after(report))
        recovered = report.fresh and policy.problem is not None
        if (recovered or (report.failed and status.consecutive_failures == 1)) and policy.database_key is not None:
            # Find out now, not at the next period, whether all is well again, or whether it needs a person.
            self._preflights.ask(policy.database_key, [policy.key])

    def passed_over(self, policy: Policy, count: int, *, before: datetime) -> None:
        """Count slots in whose place a newer one is run; the next result tells them."""
        timetable = policy.timetable
        assert timetable is not None  # it has slots
        self._count_missed(policy, count, newest=timetable.newest_at(before - timedelta(seconds=1)))

    def superseded(self, key: Key, slot: Slot, *, behind: bool) -> None:
        """Count a slot in whose place a newer one waits; `behind` one that is in flight, which has to be told first."""
        policy = self._registry.policies.get(key)
        if policy is not None and not self._recoveries.is_again(key, slot):
            # Told with the next slot's result: a write per skipped slot would be a storm.
            self._count_missed(policy, 1, newest=slot.due_at)
            said = statement_of(policy.status.conditions, FRESH)
            is_said = said is not None and said.reason == WINDOW_CLOSED
            if not (behind or is_said) and self._holds.closed_until(policy) is not None:
                self._tell_missed(policy, slot)  # the first one: the next result may be hours away

    def late(self, key: Key, slot: Slot) -> None:
        """Count and tell a slot that is not run because it would be too late."""
        policy = self._registry.policies.get(key)
        if policy is not None and not self._recoveries.is_again(key, slot):
            self._count_missed(policy, 1, newest=slot.due_at)
            self._tell_missed(policy, slot)

    def _count_missed(self, policy: Policy, count: int, *, newest: datetime) -> None:
        policy.missed += count
        policy.missed_until = max(newest, policy.missed_until or newest)
        self._metrics.slots_missed(policy.key, count)

    def _tell_missed(self, policy: Policy, slot: Slot) -> None:
        # Among them are slots newer than this one, if it was late because the clock was set forward. None of them may
        # be counted once more by the next process.
        now, counted_until = self._clock.now(), policy.missed_until
        assert counted_until is not None  # the slot itself has been counted
        newest = counted_until if slot.due_at < counted_until <= now else slot.due_at
        status = after_missed(policy.status, count=policy.missed, newest=newest, now=now)
        policy.missed, policy.missed_until = 0, None
        self._retime(policy, status)
        opens_at, paced = self._holds.closed_until(policy), self._holds.paced_until(policy, slot)
        why = fresh_after_missed(slot.due_at, opens_at=opens_at, paced=paced is not None)
        self._publish(policy, status, fresh=why)

    def _retime(self, policy: Policy, status: MatviewRefreshPolicyStatus) -> None:
        """Set the timer of a policy with a target: its next slot follows from what has just ended."""
        target = policy.timetable_by(status)
        if isinstance(target, StalenessTarget) and not self._registry.is_suspended(policy):
            policy.taken_until = self._clock.now()
            self._timers.set(policy.key, target.next_after(policy.taken_until))

    def _publish(self, policy: Policy, status: MatviewRefreshPolicyStatus, *, fresh: Statement | None = None) -> None:
        self._reporter.policy(
            policy,
            with_conditions(
                status,
                policy.standing(),
                timetable=policy.timetable_by(status),
                next_slot=self._timers.due(policy.key),
                now=self._clock.now(),
                fresh=fresh,
            ),
        )
