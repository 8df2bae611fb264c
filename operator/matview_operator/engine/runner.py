"""Runs one slot of one policy: attempt after attempt at its views, and one report of all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from types import MappingProxyType

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.slot import Slot, SlotReport, is_stopped
from matview_operator.domain.view import ViewName
from matview_operator.engine.attempts import Attempts
from matview_operator.engine.budget import Budget
from matview_operator.engine.execution import execute
from matview_operator.engine.flights import Flights, FollowedInVain, shared_view
from matview_operator.engine.holds import Holds
from matview_operator.engine.lines import Blame
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import Clock, Executor, Metrics
from matview_operator.engine.queue import NoPlace, Turn
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.runs import run_of
from matview_operator.engine.stands import Stands
from matview_operator.engine.step import Step
from matview_operator.engine.strands import Strands
from matview_operator.engine.targets import SlotTarget, Targets, usable
from matview_operator.engine.turns import StaysDue, Turns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the attempts of one slot have in common."""

    policy: Policy
    """As it was when the slot was taken up."""
    spec: MatviewRefreshPolicySpec
    slot: Slot
    attempts: Attempts
    where: SlotTarget


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
        permits: Permits,
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
        self._permits = permits
        self._clock = clock
        self._random = random
        self._turns = turns
        self._stands = Stands(
            registry=registry, permits=permits, turns=turns, flights=flights, budget=budget, clock=clock
        )

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
        try:
            turn = await self._stands.wait(policy, slot)
        except (NoPlace, asyncio.CancelledError):
            return None
        try:
            return await self._run(policy, slot, turn, newer=newer, waits=waits, former=former)
        finally:
            if turn is not None:
                self._budget.release(turn)

    async def _run(
        self,
        policy: Policy,
        slot: Slot,
        turn: Turn | None,
        *,
        newer: Callable[[], bool],
        waits: Callable[[Step, float], None],
        former: Mapping[ViewName, RefreshResult],
    ) -> SlotReport | None:
        """`turn` is the first step's."""
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
        work = _Work(policy=policy, spec=spec, slot=slot, attempts=attempts, where=where)
        rest = Problem(RefreshReason.SHUTDOWN, "Stopped before it began; nothing changed. The slot stays due.")
        outcome = RefreshOutcome.INTERRUPTED
        cut_short = False
        try:
            with attempts.work:
                async with Strands() as strands:
                    while (step := await attempts.next()) is not None:
                        strands.begin(self._attempt(step, work, turn))
                        turn = None
        except (NoPlace, StaysDue, asyncio.CancelledError):
            suspended = self._suspended(policy)
            if suspended is not None:
                rest = suspended
                for step in attempts.steps:
                    step.results = [_because(suspended, result) for result in step.results]
            cut_short = suspended is None and attempts.cut_short
            if attempts.began_at is None or not any(step.tells for step in attempts.steps):
                return None
        except Exception as error:  # noqa: BLE001 - `_bug` logs it
            rest, outcome = self._bug(policy, error), RefreshOutcome.FAILED
        now = self._clock.now()
        ended = [
            result
            for step in attempts.steps
            for result in (step.results if step.tells else self._all_ended(step, work, now, outcome, rest))
        ]
        return SlotReport(
            slot=slot,
            correlation_id=slot.correlation_id(policy.uid),
            started_at=attempts.began_at or ended[0].started_at,
            ended_at=now,
            results=tuple(zip(policy.views, ended, strict=True)),
            cut_short=cut_short,
        )

    async def _attempt(self, step: Step, work: _Work, turn: Turn | None) -> None:
        """One attempt at one step, beside those at others. Raises CancelledError only."""
        attempts = work.attempts
        try:
            blame = step.blame or (None if step.results else attempts.work.take(step.index))
            if blame is not None:
                attempts.left_out(step, self._skipped(step, work, blame), blame=blame)
                return
            if step.results:
                work.where.forget()  # what leads nowhere may be another Secret's by now
            attempts.ended(step, await self._refresh(step, work, turn))
        except FollowedInVain as vain:
            attempts.followed_in_vain(step, alone=vain.alone)
        except (NoPlace, StaysDue) as stop:
            if isinstance(stop, StaysDue) or self._budget.closed:
                attempts.stopped(step, stop)
            else:
                attempts.no_place(step, stop)
        except asyncio.CancelledError as stop:
            # A cancelled executor tells its result nevertheless: COMMIT may have been done.
            told = [result for result in stop.args if isinstance(result, RefreshResult)]
            if told:
                attempts.interrupted(step, told)
            raise
        except Exception as error:  # noqa: BLE001 - the slot's other views go on; `_bug` logs it
            bug, now = self._bug(work.policy, error), self._clock.now()
            attempts.left_out(step, self._all_ended(step, work, now, RefreshOutcome.FAILED, bug))
        finally:
            if turn is not None:
                self._budget.release(turn)

    def _bug(self, policy: Policy, error: Exception) -> Problem:
        """Whatever it was, the policy's status says so, and a request is answered."""
        log.error("slot failed unexpectedly", exc_info=error, extra={"action": "slot", "policy": str(policy.key)})
        return Problem(RefreshReason.INTERNAL_ERROR, f"{type(error).__name__} in the operator; see its log.")

    def _skipped(self, step: Step, work: _Work, blame: Blame) -> Sequence[RefreshResult]:
        problem = Problem(
            RefreshReason.UPSTREAM_FAILED,
            f"It reads {blame.view}, which policy {blame.policy} failed to refresh; refreshing it would only repeat "
            "old rows.",
        )
        return self._all_ended(step, work, self._clock.now(), RefreshOutcome.SKIPPED_UPSTREAM, problem)

    async def _refresh(self, step: Step, work: _Work, turn: Turn | None) -> Sequence[RefreshResult]:
        """Wait for a place and refresh. Raises NoPlace, StaysDue, FollowedInVain."""
        policy, spec, slot, attempts, key = work.policy, work.spec, work.slot, work.attempts, work.where.key
        started_at = self._clock.now()
        try:
            self._permits.database_of(policy)  # what is wrong is said at once, not after waiting for a place
            run, again = self._run_of(step.views[0], work), bool(step.results)
            view = None if step.alone else shared_view(self._registry.databases[key], spec, step.views[0])

            def check() -> MatviewDatabaseSpec:
                # Asked anew: while it waited, the database may have been suspended or a rival may have come.
                self._permits.check_begin(policy, slot, first=not attempts.has_begun(but=step), again=again)
                return self._permits.database_of(policy)

            def begin() -> None:
                check()
                attempts.begins(step)

            async with self._flights.seat(
                key,
                run,
                slot,
                shared=view,
                seconds=attempts.seconds_for_a_place(step),
                follows=lambda: attempts.follows(step),
                turn=turn,
            ) as seat:
                if seat.known is not None and seat.known.outcome is RefreshOutcome.SKIPPED_COVERED:
                    # Whoever is covered has begun nothing: it may be late by now, and a window may have closed.
                    if not attempts.has_begun(but=step):
                        self._permits.check_unchanged(policy)
                    self._permits.database_of(policy)
                    return [seat.known]
                database = check()
                if seat.known is not None:
                    return [seat.known]
                runs = [self._run_of(view, work) for view in step.views]
                results = await execute(
                    self._executor, runs, where=work.where, spec=spec, database=database, begin=begin
                )
                self._holds.ended(key, zip((run.view for run in runs), results, strict=True), slot=slot)
                seat.result = results[0]
                return results
        except Problem as problem:
            return self._all_ended(step, work, started_at, RefreshOutcome.FAILED, problem)

    def _suspended(self, policy: Policy) -> Problem | None:
        """Why a run was cancelled, if it was not for the process's end."""
        key = policy.database_key
        assert key is not None  # the policy has a spec
        try:
            usable(self._registry.databases.get(key), key)
        except Problem as problem:
            return problem if problem.reason is RefreshReason.DATABASE_SUSPENDED else None
        return None

    def _run_of(self, view: ViewSpec, work: _Work) -> Run:
        named = self._registry.database_of(work.policy)
        return run_of(work.policy, view, work.slot, spec=work.spec, database=None if named is None else named.spec)

    def _all_ended(
        self, step: Step, work: _Work, started_at: datetime, outcome: RefreshOutcome, problem: Problem
    ) -> list[RefreshResult]:
        """The step's views, none of which the server has anything to say of."""
        now = self._clock.now()
        return [
            self._run_of(view, work).result(
                outcome, started_at=started_at, ended_at=now, reason=problem.reason, message=problem.message
            )
            for view in step.views
        ]


def _because(suspended: Problem, result: RefreshResult) -> RefreshResult:
    if not is_stopped(result):
        return result
    message = f"{suspended.message} The run was stopped on the server; the old rows stay."
    return result.model_copy(update={"error_type": suspended.reason, "error_message": message})
