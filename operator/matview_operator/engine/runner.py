"""Runs one slot of one policy: attempt after attempt at its views, and one report of all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from random import Random
from types import MappingProxyType

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Consistency, Isolation, MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.slot import Slot, SlotReport, is_stopped
from matview_operator.domain.spec_check import check_timeouts
from matview_operator.domain.status import views_of
from matview_operator.domain.view import ViewName
from matview_operator.engine.attempts import Attempts, Step
from matview_operator.engine.budget import Budget, NoPlace
from matview_operator.engine.execution import execute
from matview_operator.engine.flights import Flights, SharedView
from matview_operator.engine.holds import Holds
from matview_operator.engine.lines import Blame
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.ports import Clock, Executor, Key, Metrics
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.runs import run_of
from matview_operator.engine.targets import SlotTarget, Targets, usable
from matview_operator.engine.turns import StaysDue, Turns

log = logging.getLogger(__name__)


class _PolicyChanged(StaysDue):
    """The policy as it was when the slot came up is not the policy any more."""


class _Held(StaysDue):
    """While the slot waited for a place, the time came in which it may not be begun."""


class SlotRunner:
    """Turns a slot into a report. Holds no state of its own between slots."""

    def __init__(
        self,
        *,
        registry: Registry,
        executor: Executor,
        targets: Targets,
        budget: Budget,
        pauses: Pauses,
        metrics: Metrics,
        flights: Flights,
        holds: Holds,
        clock: Clock,
        random: Random,
        turns: Turns,
    ) -> None:
        self._registry = registry
        self._executor = executor
        self._targets = targets
        self._budget = budget
        self._pauses = pauses
        self._metrics = metrics
        self._flights = flights
        self._holds = holds
        self._clock = clock
        self._random = random
        self._turns = turns

    async def run(
        self,
        policy: Policy,
        slot: Slot,
        *,
        newer: Callable[[], bool] = lambda: False,
        waits: Callable[[Step, float], None] = lambda *_: None,
        former: Mapping[ViewName, RefreshResult] = MappingProxyType({}),
    ) -> SlotReport | None:
        """Refresh every view as the policy says now. Cancelled, it reports what was interrupted, and returns.

        `newer`, `waits` and `former` are those of Attempts. None if nothing came of it: no place became free before the
        slot's deadline, the policy changed or a window closed before the first view's run, or the process ends.
        """
        spec, key = policy.spec, policy.database_key
        assert spec is not None  # an invalid policy has no timer and no request
        assert key is not None  # the policy has a spec
        attempts = Attempts(
            policy,
            slot,
            former=former,
            registry=self._registry,
            pauses=self._pauses,
            turns=self._turns,
            metrics=self._metrics,
            clock=self._clock,
            random=self._random,
            newer=newer,
            waits=waits,
        )
        age = (self._clock.now() - slot.due_at).total_seconds()
        where = self._targets.of_slot(key, due_at=asyncio.get_running_loop().time() - age)
        rest = Problem(RefreshReason.SHUTDOWN, "Stopped before it began; nothing changed. The slot stays due.")
        outcome = RefreshOutcome.INTERRUPTED
        cut_short = False
        step: Step | None = None
        try:
            with attempts.work:
                while (step := await attempts.next()) is not None:
                    await self._attempt(step, attempts, policy=policy, spec=spec, slot=slot, where=where)
        except (NoPlace, StaysDue, asyncio.CancelledError) as stop:
            # A cancelled executor tells its result nevertheless: COMMIT may have been done.
            told = [result for result in stop.args if isinstance(result, RefreshResult)]
            suspended = self._suspended(policy)
            if suspended is not None:
                rest = suspended
                told = [_because(suspended, result) for result in told]
            if told and step is not None:
                step.results, step.over = told, True
            cut_short = suspended is None and attempts.cut_short
            if not any(step.tells for step in attempts.steps):
                return None
        except Exception as error:  # Whatever it was, the policy's status says so, and a request is answered.
            log.exception("slot failed unexpectedly", extra={"action": "slot", "policy": str(policy.key)})
            rest = Problem(RefreshReason.INTERNAL_ERROR, f"{type(error).__name__} in the operator; see its log.")
            outcome = RefreshOutcome.FAILED
        now = self._clock.now()
        ended = [
            result
            for step in attempts.steps
            for result in (
                step.results
                if step.tells
                else [self._ended(self._run_of(policy, spec, view, slot), now, outcome, rest) for view in step.views]
            )
        ]
        return SlotReport(
            slot=slot,
            correlation_id=slot.correlation_id(policy.uid),
            started_at=attempts.began_at or ended[0].started_at,
            ended_at=now,
            results=tuple(zip(views_of(spec), ended, strict=True)),
            cut_short=cut_short,
        )

    async def _attempt(
        self,
        step: Step,
        attempts: Attempts,
        *,
        policy: Policy,
        spec: MatviewRefreshPolicySpec,
        slot: Slot,
        where: SlotTarget,
    ) -> None:
        blame = attempts.take(step)
        if blame is not None:
            attempts.skipped(step, self._skipped(policy, spec, step.views, slot, blame), blame)
            return
        if step.results:
            where.forget()  # what leads nowhere may be another Secret's by now
        try:
            results = await self._refresh(
                policy,
                spec,
                step.views,
                slot,
                where,
                first=attempts.began_at is None,
                again=bool(step.results),
                seconds=attempts.seconds_for_a_place(step),
            )
        except NoPlace:
            if not step.results or self._budget.closed:
                raise
            attempts.no_place(step)
        else:
            attempts.ended(step, results)

    def _skipped(
        self, policy: Policy, spec: MatviewRefreshPolicySpec, views: Sequence[ViewSpec], slot: Slot, blame: Blame
    ) -> Sequence[RefreshResult]:
        problem = Problem(
            RefreshReason.UPSTREAM_FAILED,
            f"It reads {blame.view}, which policy {blame.policy} failed to refresh; refreshing it would only repeat "
            "old rows.",
        )
        runs = [self._run_of(policy, spec, view, slot) for view in views]
        return [self._ended(run, self._clock.now(), RefreshOutcome.SKIPPED_UPSTREAM, problem) for run in runs]

    async def _refresh(
        self,
        policy: Policy,
        spec: MatviewRefreshPolicySpec,
        views: Sequence[ViewSpec],
        slot: Slot,
        where: SlotTarget,
        *,
        first: bool,
        again: bool,
        seconds: float | None,
    ) -> Sequence[RefreshResult]:
        """One attempt; waits so long for a place. Raises NoPlace."""
        key = where.key
        started_at = self._clock.now()
        try:
            self._allowed(policy, spec, key)  # what is wrong is said at once, not after waiting for a place
            run, view = self._run_of(policy, spec, views[0], slot), self._shared(spec, views[0], key)

            def check() -> MatviewDatabaseSpec:
                # Asked anew: while it waited, the database may have been suspended or a rival may have come.
                self._may_begin(policy, slot, first=first, again=again)
                return self._allowed(policy, spec, key)

            async with self._flights.seat(key, run, slot, shared=view, seconds=seconds) as seat:
                database = check()
                if seat.known is not None:
                    return [seat.known]
                runs = [self._run_of(policy, spec, view, slot) for view in views]
                results = await execute(self._executor, runs, where=where, spec=spec, database=database, check=check)
                self._holds.ended(key, zip((run.view for run in runs), results, strict=True), slot=slot)
                seat.result = results[0]
                return results
        except Problem as problem:
            runs = [self._run_of(policy, spec, view, slot) for view in views]
            return [self._ended(run, started_at, RefreshOutcome.FAILED, problem) for run in runs]

    def _may_begin(self, policy: Policy, slot: Slot, *, first: bool, again: bool) -> None:
        """Raises _PolicyChanged or _Held of a slot, NoPlace of one that is late, and of another attempt at a view: then
        the one before is told.
        """
        if first and self._registry.policies.get(policy.key) is not policy:
            raise _PolicyChanged
        if first and slot.request is None and self._clock.now() > slot.deadline:
            raise NoPlace
        if first and self._holds.until(policy, slot) is not None:
            raise _Held
        if again and self._holds.closed_until(policy) is not None:
            raise NoPlace

    def _allowed(self, policy: Policy, spec: MatviewRefreshPolicySpec, key: Key) -> MatviewDatabaseSpec:
        database = usable(self._registry.databases.get(key), key)
        problem = self._registry.sharing_problem(policy) or self._turns.order.problem(policy)
        if problem is not None:
            raise problem
        too_long = check_timeouts(spec, limits=database.limits)
        if too_long:
            raise Problem(RefreshReason.INVALID_SPEC, too_long[0])
        return database

    def _shared(self, spec: MatviewRefreshPolicySpec, view: ViewSpec, key: Key) -> SharedView | None:
        """What a run may share with other policies' runs; a group is refreshed by itself."""
        database = self._registry.databases[key]
        is_own = spec.isolation is Isolation.TENANT or spec.consistency is Consistency.GROUP
        return None if is_own else (database.ref.uid, database.generation, ViewName(view.schema_name, view.name))

    def _suspended(self, policy: Policy) -> Problem | None:
        """Why a run was cancelled, if it was not for the process's end."""
        key = policy.database_key
        assert key is not None  # the policy has a spec
        try:
            usable(self._registry.databases.get(key), key)
        except Problem as problem:
            return problem if problem.reason is RefreshReason.DATABASE_SUSPENDED else None
        return None

    def _run_of(self, policy: Policy, spec: MatviewRefreshPolicySpec, view: ViewSpec, slot: Slot) -> Run:
        named = self._registry.database_of(policy)
        return run_of(policy, view, slot, spec=spec, database=None if named is None else named.spec)

    def _ended(self, run: Run, started_at: datetime, outcome: RefreshOutcome, problem: Problem) -> RefreshResult:
        return run.result(
            outcome,
            started_at=started_at,
            ended_at=self._clock.now(),
            reason=problem.reason,
            message=problem.message,
        )


def _because(suspended: Problem, result: RefreshResult) -> RefreshResult:
    if not is_stopped(result):
        return result
    message = f"{suspended.message} The run was stopped on the server; the old rows stay."
    return result.model_copy(update={"error_type": suspended.reason, "error_message": message})
