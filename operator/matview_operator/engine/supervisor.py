"""The engine's front: told what the API server says, it decides what is due, runs it and reports it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from random import Random

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import Statement, Transition
from matview_operator.domain.errors import Problem
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.slot import Slot, SlotReport, is_request_token, requested, scheduled
from matview_operator.domain.status import after_missed, after_slot, fresh_after, fresh_after_missed, with_conditions
from matview_operator.engine.budget import Budget
from matview_operator.engine.dispatcher import Dispatcher
from matview_operator.engine.ports import Clock, Events, Executor, Inspector, Key, Metrics, Secrets, StatusWriter
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.timers import Timers

log = logging.getLogger(__name__)

_SILENCE = timedelta(seconds=15)
"""A timer loop that has not gone round for so long has stopped."""
_SECOND = timedelta(seconds=1)
_FLUSH_SECONDS = 5.0


class Supervisor:
    """Wires the engine. Its methods are called from the event loop and never wait."""

    def __init__(
        self,
        *,
        executor: Executor,
        inspector: Inspector,
        secrets: Secrets,
        writer: StatusWriter,
        events: Events,
        metrics: Metrics,
        clock: Clock,
        max_concurrent_refreshes: int,
        random: Random,
    ) -> None:
        self.registry = registry = Registry()
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self.budget = Budget(limit_of=self._limit_of, limit_in_all=max_concurrent_refreshes)
        self._runner = SlotRunner(
            registry=registry, executor=executor, secrets=secrets, budget=self.budget, clock=clock, random=random
        )
        self.timers = Timers(clock=clock, fire=self._fire)
        self.dispatcher = Dispatcher(clock=clock, work=self._work, superseded=self._superseded, late=self._late)
        self.reporter = Reporter(registry=registry, writer=writer, events=events, random=random)
        self.preflights = Preflights(
            registry=registry,
            inspector=inspector,
            secrets=secrets,
            reporter=self.reporter,
            clock=clock,
            judged=lambda policy: self.publish(policy, policy.status),
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the loops."""
        for name, loop in (("timers", self.timers), ("reporter", self.reporter), ("preflights", self.preflights)):
            task = asyncio.create_task(loop.run(), name=name)
            task.add_done_callback(_loop_ended)
            self._tasks.append(task)

    async def stop(self, *, grace_seconds: float) -> None:
        """Start nothing more, give runs the grace, then stop them on their servers; write what is left to write."""
        timers, *others = self._tasks
        timers.cancel()
        await self.dispatcher.drain(seconds=grace_seconds)
        await self.reporter.flush(seconds=_FLUSH_SECONDS)
        for task in others:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def healthy(self) -> bool:
        """Whether every loop is alive and the timers have gone round lately."""
        beat = self.timers.last_beat
        return (
            bool(self._tasks)
            and not any(task.done() for task in self._tasks)
            and beat is not None
            and abs(self._clock.now() - beat) < _SILENCE
        )

    def schedule(self, policy: Policy) -> None:
        """Take up what is due and set the timer, or stop it where the schedule is suspended."""
        timetable = policy.timetable
        if timetable is None or self._is_suspended(policy):
            self.timers.cancel(policy.key)
            return
        now = self._clock.now()
        newest = timetable.newest_at(now)
        if newest > policy.taken_until:
            self._take(policy, timetable, newest)
        self.timers.set(policy.key, timetable.next_after(now))

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

    def consider_request(self, policy: Policy) -> None:
        """Run the newest unseen token once; it is echoed in status.lastHandledRequest when all views have ended."""
        token = policy.request
        if token is None or policy.spec is None or token in (policy.status.last_handled_request, policy.working_on):
            return
        if not is_request_token(token):
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

    def forget(self, policy: Policy) -> None:
        """Forget a deleted policy at once; what it runs is stopped on the server."""
        self.timers.cancel(policy.key)
        self.dispatcher.forget(policy.key)
        self.reporter.forget(policy.ref)
        self._metrics.policy_gone(policy.key)

    def publish(self, policy: Policy, status: MatviewRefreshPolicyStatus, *, fresh: Statement | None = None) -> None:
        """Bring the policy's conditions up to date and have its status written if it says anything new."""
        self.reporter.policy(
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

    def _fire(self, key: Key, _due: datetime) -> None:
        policy = self.registry.policies.get(key)
        if policy is not None:
            self.schedule(policy)

    def _take(self, policy: Policy, timetable: Timetable, newest: datetime) -> None:
        assert policy.spec is not None  # it has a timetable
        count = timetable.count_between(policy.taken_until, newest)
        policy.taken_until = newest
        if count > 1:
            # After downtime or a stall the newest slot alone is run.
            policy.missed += count - 1
            self._metrics.slots_missed(policy.key, count - 1)
        slot = scheduled(newest, starting_deadline_seconds=policy.spec.starting_deadline_seconds)
        if self._clock.now() > slot.deadline:
            self._late(policy.key, slot)
        else:
            self.dispatcher.submit(policy.key, slot)

    async def _work(self, key: Key, slot: Slot) -> None:
        policy = self.registry.policies.get(key)
        if policy is None or policy.spec is None:
            return
        if slot.request is not None:
            policy.working_on = slot.request
            self.publish(policy, policy.status)
        else:
            self._metrics.slot_started(lag_seconds=max(0.0, (self._clock.now() - slot.due_at).total_seconds()))
        report = await self._runner.run(policy, slot)
        current = self.registry.policies.get(key)
        if current is not None and current.ref.uid == policy.ref.uid:
            self._finished(current, report)

    def _finished(self, policy: Policy, report: SlotReport) -> None:
        for _, result in report.results:
            self._metrics.run_ended(policy.key, result)
        if report.lock_held and report.slot.request is None:
            policy.missed += 1
            self._metrics.slots_missed(policy.key, 1)
        status = after_missed(policy.status, count=policy.missed) if policy.missed else policy.status
        policy.missed = 0
        limit = 0 if policy.spec is None else policy.spec.history_limit
        status = after_slot(status, report, history_limit=limit)
        if report.slot.request is not None:
            policy.working_on = None
        if report.fresh:
            policy.problem = None
        self.publish(policy, status, fresh=fresh_after(report))
        if report.failed and status.consecutive_failures == 1 and policy.database_key is not None:
            # Find out now, not at the next period, whether it needs a person.
            self.preflights.ask(policy.database_key, [policy.key])
        self.consider_request(policy)

    def _superseded(self, key: Key, _slot: Slot) -> None:
        self._metrics.slots_missed(key, 1)
        policy = self.registry.policies.get(key)
        if policy is not None:
            policy.missed += 1  # told with the next slot's result: a write per skipped slot would be a storm

    def _late(self, key: Key, slot: Slot) -> None:
        self._metrics.slots_missed(key, 1)
        policy = self.registry.policies.get(key)
        if policy is not None:
            status = after_missed(policy.status, count=policy.missed + 1, newest=slot.due_at)
            policy.missed = 0
            self.publish(policy, status, fresh=fresh_after_missed(slot.due_at))

    def _is_suspended(self, policy: Policy) -> bool:
        database = self.registry.databases.get(policy.database_key) if policy.database_key else None
        return (policy.spec is not None and policy.spec.suspend) or (
            database is not None and database.spec is not None and database.spec.suspend
        )

    def _limit_of(self, key: Key) -> int:
        database = self.registry.databases.get(key)
        return 1 if database is None or database.spec is None else database.spec.limits.max_concurrent_refreshes


def invalid_spec(problems: Iterable[str]) -> Problem:
    """The problem of a spec that the operator cannot act on."""
    return Problem(RefreshReason.INVALID_SPEC, " ".join(problems))


def _loop_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical(
            "the %s loop stopped; the liveness probe fails now",
            task.get_name(),
            exc_info=task.exception(),
            extra={"action": "loop_ended"},
        )
