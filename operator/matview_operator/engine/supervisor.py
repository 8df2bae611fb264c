"""The engine's front: wires its parts, starts and stops them, and lets objects that are gone be forgotten by all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import timedelta
from random import Random

from matview_operator.domain.destination import Destinations
from matview_operator.engine.agenda import Agenda
from matview_operator.engine.budget import Budget
from matview_operator.engine.flights import Flights
from matview_operator.engine.holds import Holds
from matview_operator.engine.order import Order
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import (
    Clock,
    Events,
    Executor,
    Inspector,
    Key,
    Metrics,
    ObjectRef,
    Pruner,
    Secrets,
    StatusWriter,
)
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.registry import Database, Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.retention import Retention
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.targets import Targets
from matview_operator.engine.turns import Turns
from matview_operator.engine.warmups import Warmups

log = logging.getLogger(__name__)

_SILENCE = timedelta(seconds=15)
"""A timer loop that has not gone round for so long has stopped."""
_FLUSH_SECONDS = 5.0


class Supervisor:
    """Owns the registry and the loops. Only start and stop belong to the process; the rest never waits."""

    def __init__(
        self,
        *,
        executor: Executor,
        inspector: Inspector,
        pruner: Pruner,
        secrets: Secrets,
        destinations: Destinations,
        writer: StatusWriter,
        events: Events,
        metrics: Metrics,
        clock: Clock,
        max_concurrent_refreshes: int,
        ledger_keep_days: int,
        random: Random,
    ) -> None:
        self.registry = registry = Registry()
        self._clock = clock
        self.budget = Budget(limit_of=self._limit_of, limit_in_all=max_concurrent_refreshes)
        self.pauses = Pauses()
        self.flights = Flights(budget=self.budget, clock=clock)
        self.order = Order(registry=registry)
        self.turns = turns = Turns(registry=registry, order=self.order, clock=clock)
        targets = Targets(secrets=secrets, destinations=destinations)
        self.reporter = Reporter(
            registry=registry, writer=writer, events=events, random=random, gone=self._gone, may_wait=self._may_wait
        )
        holds = Holds(registry=registry, clock=clock)
        permits = Permits(registry=registry, holds=holds, order=self.order, clock=clock)
        self.preflights = Preflights(
            registry=registry,
            inspector=inspector,
            targets=targets,
            reporter=self.reporter,
            clock=clock,
            judged=self._judged,
            order=self.order,
            permits=permits,
        )
        self._warmups = Warmups(registry=registry, executor=executor, targets=targets, holds=holds, budget=self.budget)
        self.agenda = Agenda(
            registry=registry,
            holds=holds,
            runner=SlotRunner(
                registry=registry,
                executor=executor,
                targets=targets,
                budget=self.budget,
                pauses=self.pauses,
                metrics=metrics,
                flights=self.flights,
                holds=holds,
                permits=permits,
                clock=clock,
                random=random,
                turns=turns,
            ),
            reporter=self.reporter,
            preflights=self.preflights,
            pauses=self.pauses,
            events=events,
            metrics=metrics,
            clock=clock,
            turns=turns,
            soon=self._warmups.soon,
        )
        self.retention = Retention(
            registry=registry,
            pruner=pruner,
            targets=targets,
            keep_days=ledger_keep_days,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def queue_depth(self) -> int:
        """How many slots, requests and runs are due and wait."""
        waiting = self.budget.waiting + self.flights.following + self.turns.waiting
        return self.agenda.dispatcher.waiting + waiting

    @property
    def started(self) -> bool:
        """Whether the loops were started."""
        return bool(self._tasks)

    def start(self) -> None:
        """Start the loops."""
        loops = (
            ("timers", self.agenda.timers),
            ("waiting", self.agenda.waiting.timers),
            ("reporter", self.reporter),
            ("preflights", self.preflights),
            ("retention", self.retention),
        )
        for name, loop in loops:
            task = asyncio.create_task(loop.run(), name=name)
            task.add_done_callback(_loop_ended)
            self._tasks.append(task)

    async def stop(self, *, grace_seconds: float, flush_seconds: float = _FLUSH_SECONDS) -> None:
        """Start nothing more, give runs the grace, then stop them on their servers; write what is left to write.

        Both are 0 for who no longer leads. May be called again.
        """
        timers, waiting, *others = self._tasks
        timers.cancel()
        waiting.cancel()
        self._warmups.close()
        self.budget.close()
        self.pauses.close()
        await self.agenda.dispatcher.drain(seconds=grace_seconds)
        await self.reporter.flush(seconds=flush_seconds)
        for task in others:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def healthy(self) -> bool:
        """Whether every loop is alive and the timers have gone round lately."""
        beat = self.agenda.timers.last_beat
        return (
            self.started
            and not any(task.done() for task in self._tasks)
            and beat is not None
            and abs(self._clock.now() - beat) < _SILENCE
        )

    def forget_policy(self, policy: Policy) -> None:
        """Forget a deleted policy at once; who shared a view with it is judged anew."""
        rivals = self.registry.rivals(policy)
        self.registry.remove_policy(policy.key)
        self.registry.resource_versions.pop(policy.ref.uid, None)
        self.agenda.forget(policy)
        self.reporter.forget(policy.ref)
        self.ask_again(rivals | self.order.stirred(policy.database_key))

    def forget_database(self, database: Database) -> None:
        """Forget a deleted database; its policies say so."""
        key = database.ref.key
        if self.registry.databases.get(key) is database:
            del self.registry.databases[key]
        self.registry.resource_versions.pop(database.ref.uid, None)
        self.reporter.forget(database.ref)
        policies = self.registry.policies_of(key)
        suspended = database.spec is not None and database.spec.suspend
        for policy in policies:
            if suspended:
                self.agenda.resume(policy)
            self.agenda.schedule(policy)
        self.preflights.ask(key, [policy.key for policy in policies])

    def ask_again(self, keys: Iterable[Key]) -> None:
        """Have these policies judged anew."""
        for key in keys:
            policy = self.registry.policies.get(key)
            if policy is not None and policy.database_key is not None:
                self.preflights.ask(policy.database_key, [key])

    def _judged(self, policy: Policy) -> None:
        self.agenda.judged(policy)

    def _gone(self, ref: ObjectRef) -> None:
        policy, database = self.registry.policies.get(ref.key), self.registry.databases.get(ref.key)
        if policy is not None and policy.ref == ref:
            self.forget_policy(policy)
        if database is not None and database.ref == ref:
            self.forget_database(database)

    def _may_wait(self, ref: ObjectRef) -> bool:
        """While runs wait for a place, the status of a policy whose slots the ledger knows without it."""
        policy = self.registry.policies.get(ref.key) if ref.kind == "MatviewRefreshPolicy" else None
        if policy is None or policy.working_on is not None or not self.budget.is_short:
            return False
        database = self.registry.database_of(policy)
        return database is not None and database.has_ledger

    def _limit_of(self, key: Key) -> int:
        database = self.registry.databases.get(key)
        return 1 if database is None or database.spec is None else database.spec.limits.max_concurrent_refreshes


def _loop_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical(
            "the %s loop stopped; the liveness probe fails now",
            task.get_name(),
            exc_info=task.exception(),
            extra={"action": "loop_ended"},
        )
