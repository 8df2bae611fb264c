"""What each policy is to do next, and what came of it: slots and requests out, status documents in."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import FRESH, Statement, Transition, statement_of
from matview_operator.domain.slot import Slot, SlotReport, is_request_token, requested, scheduled
from matview_operator.domain.status import (
    after_missed,
    after_slot,
    for_views,
    fresh_after,
    fresh_after_missed,
    fresh_until_retry,
    views_of,
    with_conditions,
)
from matview_operator.engine.attempts import Pauses, Step
from matview_operator.engine.dispatcher import Dispatcher
from matview_operator.engine.ports import Clock, Events, Key, Metrics
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.recoveries import Recoveries
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.timers import Timers

log = logging.getLogger(__name__)

_BETWEEN_REQUESTS = timedelta(seconds=1)
"""Of one policy: whoever may annotate it could otherwise have it refreshed, and written, without a pause."""
_AFTER_A_BUG = timedelta(seconds=60)
_WORTH_TELLING_SECONDS = 5.0
"""A shorter wait for another attempt is over before anybody reads of it."""


class Agenda:
    """Owns the timers and the dispatcher. Its methods are called from the event loop and never wait.

    A policy is looked up anew after every wait: its object is another one once its spec has changed.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        runner: SlotRunner,
        reporter: Reporter,
        preflights: Preflights,
        pauses: Pauses,
        events: Events,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._runner = runner
        self._reporter = reporter
        self._preflights = preflights
        self._pauses = pauses
        self._recoveries = Recoveries(registry=registry, pauses=pauses)
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self.timers = Timers(clock=clock, fire=self._fire)
        self.dispatcher = Dispatcher(clock=clock, work=self._work, superseded=self._superseded, late=self._late)

    def schedule(self, policy: Policy) -> None:
        """Take up what is due and set the timer, or stop it where the schedule is suspended.

        What waits to be tried again looks what changed.
        """
        self._pauses.wake(policy.key)
        timetable = policy.timetable
        if timetable is None or self.is_suspended(policy):
            self.timers.cancel(policy.key)
            self.dispatcher.forget_slot(policy.key)
            return
        due = timetable.due_between(policy.taken_until, self._clock.now())
        if due.newest is not None:
            self._take(policy, due.newest, count=due.slots)
        self.timers.set(policy.key, due.following)

    def announce(self, policy: Policy) -> None:
        """Log a schedule that was loaded or changed."""
        timetable, due = policy.timetable, self.timers.due(policy.key)
        log.info(
            "schedule of %s loaded",
            policy.key,
            extra={
                "action": "schedule_loaded",
                "policy": str(policy.key),
                "schedule": None if timetable is None else timetable.describe(),
                "next_slot": None if due is None else due.isoformat(),
                "invalid": None if policy.spec is not None or policy.problem is None else policy.problem.message,
            },
        )

    def resume(self, policy: Policy) -> None:
        """Let slots count from now on: a schedule that changed or was suspended owes nothing for before."""
        policy.taken_until = max(policy.taken_until, self._clock.now())
        self.dispatcher.forget_slot(policy.key)

    def stop(self, policy: Policy) -> None:
        """Stop what runs, on the server too, because its database is suspended; its status will say so."""
        self.dispatcher.stop(policy.key)

    def consider_request(self, policy: Policy) -> None:
        """Run the newest unseen token once; it is echoed in status.lastHandledRequest when all views have ended."""
        token = policy.request
        known = (policy.status.last_handled_request, policy.working_on, policy.refused_request)
        if token is None or policy.spec is None or token in known:
            return
        if not is_request_token(token):
            policy.refused_request = token
            self._events.record(
                policy.ref,
                Transition(
                    "Warning",
                    "InvalidRequest",
                    "The annotation requestedAt must hold 1 to 128 printable ASCII characters without blanks, "
                    "such as a time stamp; nothing was run.",
                ),
            )
            return
        deadline = policy.spec.starting_deadline_seconds
        self.dispatcher.submit(policy.key, requested(token, now=self._clock.now(), starting_deadline_seconds=deadline))
        self._pauses.wake(policy.key)

    def judged(self, policy: Policy) -> None:
        """Tell what a preflight found, and run a failed slot again if all is well now and it may still start."""
        self.publish(policy)
        slot = None if self.is_suspended(policy) else self._recoveries.judged(policy)
        if slot is not None:
            self.dispatcher.submit(policy.key, slot)

    def publish(self, policy: Policy, *, fresh: Statement | None = None) -> None:
        """Bring the policy's conditions up to date and have its status written if it says anything new."""
        self._publish(policy, policy.status, fresh=fresh)

    def forget(self, policy: Policy) -> None:
        """Forget a deleted policy at once; what it runs is stopped on the server."""
        self.timers.cancel(policy.key)
        self.dispatcher.forget(policy.key)
        self._recoveries.forget(policy.key)
        self._metrics.policy_gone(policy.key)

    def is_suspended(self, policy: Policy) -> bool:
        """Whether nothing is due, by the policy's own word or its database's."""
        database = self._registry.databases.get(policy.database_key) if policy.database_key else None
        return (policy.spec is not None and policy.spec.suspend) or (
            database is not None and database.spec is not None and database.spec.suspend
        )

    def _publish(self, policy: Policy, status: MatviewRefreshPolicyStatus, *, fresh: Statement | None = None) -> None:
        self._reporter.policy(
            policy,
            with_conditions(
                status,
                policy.standing(),
                timetable=policy.timetable,
                next_slot=self.timers.due(policy.key),
                now=self._clock.now(),
                fresh=fresh,
            ),
        )

    def _fire(self, key: Key, due: datetime) -> None:
        policy = self._registry.policies.get(key)
        if policy is None:
            return
        try:
            self.schedule(policy)
        except Exception:
            # The timers are everybody's: one policy's bug must not stop them, nor its own next slot.
            log.exception("slot not taken up", extra={"action": "schedule", "policy": str(key)})
            self.timers.set(key, max(due, self._clock.now()) + _AFTER_A_BUG)

    def _take(self, policy: Policy, newest: datetime, *, count: int) -> None:
        assert policy.spec is not None  # it has a timetable
        policy.taken_until = newest
        if count > 1:
            # After downtime or a stall the newest slot alone is run.
            policy.missed += count - 1
            self._metrics.slots_missed(policy.key, count - 1)
        slot = scheduled(newest, starting_deadline_seconds=policy.spec.starting_deadline_seconds)
        self.dispatcher.submit(policy.key, slot)

    async def _work(self, key: Key, slot: Slot) -> None:
        if slot.request is not None:
            await self._space_requests(key)
        policy = self._registry.policies.get(key)
        if policy is None or policy.spec is None:
            return
        if slot.request is not None:
            if slot.request != policy.request or slot.request == policy.status.last_handled_request:
                return  # superseded, withdrawn or answered while it waited
            policy.working_on, policy.request_begun_at = slot.request, self._clock.now()
            self.publish(policy)
        begun = self._recoveries.begun(policy)
        report = await self._runner.run(
            policy,
            slot,
            newer=lambda: self.dispatcher.has_newer(key),
            waits=lambda step, seconds: self._waits(key, step, seconds),
            former=self._recoveries.former(key, slot),
        )
        current = self._registry.policies.get(key)
        if current is None or current.ref.uid != policy.ref.uid:
            return
        if report is None:
            self._not_begun(current, slot)
        else:
            self._finished(current, report, begun_as=policy)
            self._recoveries.ended(key, report, begun=begun)
            if report.failed and current.database_key is not None and self._recoveries.begun(current)[1:] != begun[1:]:
                # The look that followed the change found the slot still at work.
                self._preflights.ask(current.database_key, [key])

    def _waits(self, key: Key, step: Step, seconds: float) -> None:
        """Tell of a longer wait for another attempt, once: Fresh that is False already says enough."""
        policy = self._registry.policies.get(key)
        if policy is None or seconds < _WORTH_TELLING_SECONDS:
            return
        fresh = statement_of(policy.status.conditions, FRESH)
        if fresh is None or fresh.status != "False":
            retry_at = self._clock.now() + timedelta(seconds=seconds)
            self.publish(policy, fresh=fresh_until_retry(step.results, retry_at=retry_at))

    async def _space_requests(self, key: Key) -> None:
        """Wait until the policy's last request is a second old; of those that come meanwhile the newest is run."""
        policy = self._registry.policies.get(key)
        if policy is not None and policy.request_begun_at is not None:
            pause = policy.request_begun_at + _BETWEEN_REQUESTS - self._clock.now()
            if pause > timedelta():
                # Not longer, though somebody set the clock back.
                await asyncio.sleep(min(pause, _BETWEEN_REQUESTS).total_seconds())

    def _not_begun(self, policy: Policy, slot: Slot) -> None:
        if slot.request is not None:
            policy.working_on = None
            self.publish(policy)
            self.consider_request(policy)
        elif self._clock.now() >= slot.deadline:
            self._late(policy.key, slot)
        elif self._owes(policy, slot):
            self.dispatcher.submit(policy.key, slot)  # the policy changed: the slot is run as it is now

    def _owes(self, policy: Policy, slot: Slot) -> bool:
        timetable = policy.timetable
        is_a_slot = timetable is not None and timetable.newest_at(slot.due_at) == slot.due_at
        return is_a_slot and not self.is_suspended(policy)

    def _finished(self, policy: Policy, report: SlotReport, *, begun_as: Policy) -> None:
        former = self._recoveries.former(policy.key, report.slot)
        for view, result in report.results:
            if former.get(view) is not result:
                self._metrics.run_ended(policy.key, result)
        if report.slot.request is not None:
            policy.working_on = None
        else:
            if not self._recoveries.is_again(policy.key, report.slot):
                lag = (report.started_at - report.slot.due_at).total_seconds()
                self._metrics.slot_started(lag_seconds=max(0.0, lag))
            if report.lock_held and not report.stopped:
                policy.missed += 1
                self._metrics.slots_missed(policy.key, 1)
        status = after_missed(policy.status, count=policy.missed) if policy.missed else policy.status
        policy.missed = 0
        spec = policy.spec or begun_as.spec
        assert spec is not None  # else it would not have begun
        status = for_views(after_slot(status, report, history_limit=spec.history_limit), views_of(spec))
        self._publish(policy, status, fresh=fresh_after(report))
        recovered = report.fresh and policy.problem is not None
        if (recovered or (report.failed and status.consecutive_failures == 1)) and policy.database_key is not None:
            # Find out now, not at the next period, whether all is well again, or whether it needs a person.
            self._preflights.ask(policy.database_key, [policy.key])

    def _superseded(self, key: Key, slot: Slot) -> None:
        policy = self._registry.policies.get(key)
        if policy is not None and not self._recoveries.is_again(key, slot):
            self._metrics.slots_missed(key, 1)
            policy.missed += 1  # told with the next slot's result: a write per skipped slot would be a storm

    def _late(self, key: Key, slot: Slot) -> None:
        policy = self._registry.policies.get(key)
        if policy is not None and not self._recoveries.is_again(key, slot):
            self._metrics.slots_missed(key, 1)
            status = after_missed(policy.status, count=policy.missed + 1, newest=slot.due_at)
            policy.missed = 0
            self._publish(policy, status, fresh=fresh_after_missed(slot.due_at))
