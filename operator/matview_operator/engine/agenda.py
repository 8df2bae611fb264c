"""What each policy is to do next: slots and requests, to the dispatcher and from it to the runner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from matview_operator.domain.clock_jump import believed
from matview_operator.domain.conditions import Transition
from matview_operator.domain.slot import Slot, is_request_token, requested, scheduled
from matview_operator.domain.staleness import StalenessTarget
from matview_operator.engine.chronicle import Chronicle
from matview_operator.engine.dispatcher import Dispatcher
from matview_operator.engine.holds import Holds
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.ports import Clock, Events, Key, Metrics
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.recoveries import Recoveries
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.timers import Timers
from matview_operator.engine.turns import Turns
from matview_operator.engine.waiting import Waiting

log = logging.getLogger(__name__)

_BETWEEN_REQUESTS = timedelta(seconds=1)
"""Of one policy: whoever may annotate it could otherwise have it refreshed, and written, without a pause."""
_AFTER_A_BUG = timedelta(seconds=60)


class Agenda:
    """Owns the timers and the dispatcher. Its methods are called from the event loop and never wait.

    A policy is looked up anew after every wait: its object is another one once its spec has changed.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        runner: SlotRunner,
        holds: Holds,
        reporter: Reporter,
        preflights: Preflights,
        pauses: Pauses,
        events: Events,
        metrics: Metrics,
        clock: Clock,
        turns: Turns,
        soon: Callable[[Iterable[Key]], None],
    ) -> None:
        """`soon` is told which policies are due in a moment."""
        self._registry = registry
        self._turns = turns
        self._runner = runner
        self._preflights = preflights
        self._pauses = pauses
        self._recoveries = Recoveries(registry=registry, pauses=pauses)
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self.timers = Timers(clock=clock, fire=self._fire, soon=soon, set_back=self._set_back)
        self.chronicle = Chronicle(
            registry=registry,
            reporter=reporter,
            preflights=preflights,
            recoveries=self._recoveries,
            holds=holds,
            timers=self.timers,
            metrics=metrics,
            clock=clock,
        )
        self.waiting = Waiting(
            registry=registry, holds=holds, clock=clock, wake=self._wake, request_waits=self.chronicle.publish
        )
        self.dispatcher = Dispatcher(
            clock=clock,
            work=self._work,
            superseded=self._superseded,
            late=self.chronicle.late,
            taken=turns.taken,
            over=turns.over,
            holds=self.waiting.holds,
        )

    def schedule(self, policy: Policy) -> None:
        """Take up what is due or waits and set the timer, or stop it where the schedule is suspended.

        What waits to be tried again looks what changed.
        """
        self._pauses.wake(policy.key)
        timetable = policy.timetable
        if timetable is None or self._registry.is_suspended(policy):
            self.timers.cancel(policy.key)
            self.dispatcher.forget_slot(policy.key)
            return
        now = self._clock.now()
        if isinstance(timetable, StalenessTarget):
            if self.dispatcher.is_busy(policy.key):
                self.timers.set(policy.key, timetable.after_run(now))  # `_retime` knows better when it has ended
                self.dispatcher.look(policy.key)
                return
            policy.taken_until = min(policy.taken_until, now)  # rows grow old by a clock that was set back, too
        policy.taken_until = believed(policy.taken_until, now=now)
        due = timetable.due_between(policy.taken_until, now)
        self.timers.set(policy.key, due.following, begins_after=timetable.begins_after)
        if due.newest is not None:
            self._take(policy, due.newest, count=due.slots, begins_after=timetable.begins_after)
        self.dispatcher.look(policy.key)

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
        if policy.held_request is not None and policy.held_request[0] != token:
            policy.held_request = None
            self.chronicle.publish(policy)
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
        self.chronicle.publish(policy)
        slot = None if self._registry.is_suspended(policy) else self._recoveries.judged(policy)
        if slot is not None:
            self.dispatcher.submit(policy.key, slot)

    def forget(self, policy: Policy) -> None:
        """Forget a deleted policy at once; what it runs is stopped on the server."""
        self.timers.cancel(policy.key)
        self.waiting.timers.cancel(policy.key)
        self.dispatcher.forget(policy.key)
        self._recoveries.forget(policy.key)
        self._metrics.policy_gone(policy.key)

    def _fire(self, key: Key, due: datetime) -> None:
        policy = self._registry.policies.get(key)
        if policy is not None:
            self._schedule(policy, due)

    def _set_back(self) -> None:
        for key, policy in self._registry.policies.items():
            self._schedule(policy, self.timers.due(key) or self._clock.now())

    def _schedule(self, policy: Policy, due: datetime) -> None:
        try:
            self.schedule(policy)
        except Exception:  # The timers are everybody's: one policy's bug must not stop them, nor its own next slot.
            log.exception("slot not taken up", extra={"action": "schedule", "policy": str(policy.key)})
            self.timers.set(policy.key, max(due, self._clock.now()) + _AFTER_A_BUG)

    def _superseded(self, key: Key, slot: Slot) -> None:
        self.chronicle.superseded(key, slot, behind=self.dispatcher.works_on_a_slot(key))

    def _wake(self, key: Key) -> None:
        self._fire(key, self._clock.now())  # a newer slot that is due at this very instant takes the place of the old
        self.dispatcher.look(key)

    def _take(self, policy: Policy, newest: datetime, *, count: int, begins_after: timedelta) -> None:
        assert policy.spec is not None  # it has a timetable
        policy.taken_until = newest
        if count > 1:
            # After downtime or a stall the newest slot alone is run.
            self.chronicle.passed_over(policy, count - 1, before=newest)
        deadline = policy.spec.starting_deadline_seconds
        slot = scheduled(newest, starting_deadline_seconds=deadline, begins_after=begins_after)
        self.dispatcher.submit(policy.key, slot)

    async def _all_taken(self, key: Key, slot: Slot) -> None:
        """Wait until those are known to be due that the policy comes after: at the same instant, or with a jitter
        later in the same second.
        """
        await self.timers.caught_up()
        late = self.timers.late(slot.due_at)
        moments = [late[each] for each in self._turns.upstreams(key) & late.keys()] if late else []
        if moments:
            await asyncio.sleep(max(0.0, (max(moments) - self._clock.now()).total_seconds()))
            await self.timers.caught_up()

    async def _work(self, key: Key, slot: Slot) -> None:
        if slot.request is not None:
            await self._space_requests(key)
        elif self._turns.follows(key):
            await self._all_taken(key, slot)
        policy = self._registry.policies.get(key)
        if policy is None or not self._may_work(policy, slot):
            return
        missed = 0 if slot.request is not None else policy.missed  # of what is superseded now, the next slot tells
        begun = self._recoveries.begun(policy)
        self.dispatcher.begins(key)
        report = await self._runner.run(
            policy,
            slot,
            newer=lambda: self.dispatcher.has_newer(key),
            waits=lambda step, seconds: self.chronicle.waits(key, step, seconds),
            former=self._recoveries.former(key, slot),
        )
        current = self._registry.policies.get(key)
        if current is None or current.ref.uid != policy.ref.uid:
            return
        if report is None:
            self._not_begun(current, slot)
        else:
            self.chronicle.finished(current, report, begun_as=policy, missed=missed)
            self._recoveries.ended(key, report, begun=begun)
            if report.failed and current.database_key is not None and self._recoveries.begun(current)[1:] != begun[1:]:
                # The look that followed the change found the slot still at work.
                self._preflights.ask(current.database_key, [key])

    def _may_work(self, policy: Policy, slot: Slot) -> bool:
        """Whether there is still something to do; a request's work is told before it begins."""
        if slot.request is None:
            is_due = policy.spec is not None and not self._registry.is_suspended(policy)
            return is_due and not self._recoveries.is_done(policy.key, slot)
        policy.held_request = None
        if policy.spec is None or slot.request != policy.request or slot.request == policy.status.last_handled_request:
            return False  # superseded, withdrawn or answered while it waited
        policy.working_on, policy.request_begun_at = slot.request, self._clock.now()
        self.chronicle.publish(policy)
        return True

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
            self.chronicle.publish(policy)
            self.consider_request(policy)
        elif self._clock.now() >= slot.deadline:
            self.chronicle.late(policy.key, slot)
        elif self._owes(policy, slot):
            self.dispatcher.submit(policy.key, slot)  # the policy changed: the slot is run as it is now

    def _owes(self, policy: Policy, slot: Slot) -> bool:
        timetable = policy.timetable
        is_a_slot = timetable is not None and timetable.newest_at(slot.due_at) == slot.due_at
        return is_a_slot and not self._registry.is_suspended(policy)
