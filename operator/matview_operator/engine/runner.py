"""Runs one slot of one policy: its views one after another, a held lock tried again until the slot's deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from random import Random
from typing import assert_never

from matview_operator.api.database import DatabaseLimits, MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Consistency, MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import MatviewError, Problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry import lock_held_pause
from matview_operator.domain.run import Run, group_timeout
from matview_operator.domain.slot import Slot, SlotReport, is_stopped
from matview_operator.domain.spec_check import check_timeouts
from matview_operator.domain.status import views_of
from matview_operator.domain.view import ViewName
from matview_operator.engine.budget import Budget, NoPlace
from matview_operator.engine.ports import Clock, Executor, Key, Secrets
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.targets import SlotTarget, SlotTargets, usable

log = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({RefreshOutcome.SKIPPED_LOCK_HELD, RefreshOutcome.UNKNOWN})
_NOT_LET_IN = frozenset(
    {
        RefreshReason.AUTHENTICATION_FAILED,
        RefreshReason.CONNECT_REJECTED,
        RefreshReason.CONNECTION_FAILED,
        RefreshReason.TLS_FAILED,
    }
)
"""What a Secret that was rotated within the slot may explain. Nothing was begun on the server."""


class _PolicyChanged(MatviewError):
    """The policy as it was when the slot came up is not the policy any more."""


class SlotRunner:
    """Turns a slot into a report. Holds no state of its own between slots."""

    def __init__(
        self,
        *,
        registry: Registry,
        executor: Executor,
        secrets: Secrets,
        destinations: Destinations,
        budget: Budget,
        clock: Clock,
        random: Random,
    ) -> None:
        self._registry = registry
        self._executor = executor
        self._targets = SlotTargets(secrets=secrets, destinations=destinations)
        self._budget = budget
        self._clock = clock
        self._random = random

    async def run(self, policy: Policy, slot: Slot) -> SlotReport | None:
        """Refresh every view as the policy says now. Cancelled, it reports what was interrupted, and returns.

        None if nothing came of it: no place became free before the slot's deadline, the policy changed before the
        first view's run, or the process ends.
        """
        spec = policy.spec
        assert spec is not None  # an invalid policy has no timer and no request
        ended: list[RefreshResult] = []
        key = policy.database_key
        assert key is not None  # the policy has a spec
        where = self._targets.of_slot(key)
        rest = Problem(RefreshReason.SHUTDOWN, "Stopped before it began; nothing changed. The slot stays due.")
        outcome = RefreshOutcome.INTERRUPTED
        try:
            for views in _together(spec):
                ended += await self._refresh(policy, spec, views, slot, where, first=not ended)
        except (NoPlace, _PolicyChanged, asyncio.CancelledError) as stop:
            # A cancelled executor tells its result nevertheless: COMMIT may have been done.
            told = [result for result in stop.args if isinstance(result, RefreshResult)]
            suspended = self._suspended(policy)
            if suspended is not None:
                rest = suspended
                told = [_because(suspended, result) for result in told]
            ended += told
            if not ended:
                return None
        except Exception as error:
            # Whatever it was, the policy's status says so, and a request is answered.
            log.exception("slot failed unexpectedly", extra={"action": "slot", "policy": str(policy.key)})
            rest = Problem(RefreshReason.INTERNAL_ERROR, f"{type(error).__name__} in the operator; see its log.")
            outcome = RefreshOutcome.FAILED
        for view in spec.views[len(ended) :]:
            ended.append(self._ended(self._run_of(policy, spec, view, slot), self._clock.now(), outcome, rest))
        return SlotReport(
            slot=slot,
            correlation_id=slot.correlation_id(policy.uid),
            started_at=ended[0].started_at,
            ended_at=self._clock.now(),
            results=tuple(zip(views_of(spec), ended, strict=True)),
        )

    async def _refresh(
        self,
        policy: Policy,
        spec: MatviewRefreshPolicySpec,
        views: Sequence[ViewSpec],
        slot: Slot,
        where: SlotTarget,
        *,
        first: bool,
    ) -> Sequence[RefreshResult]:
        key = where.key
        tries = 0
        held: Sequence[RefreshResult] = ()
        while True:
            started_at = self._clock.now()
            # A slot is begun in time or not at all; once begun, its other views are not left out.
            bounded = bool(held) or (first and slot.request is None)
            try:
                self._allowed(policy, spec, key)  # what is wrong is said at once, not after waiting for a place
                async with self._budget.place(key, seconds=self._remaining(slot) if bounded else None):
                    if first and self._registry.policies.get(policy.key) is not policy:
                        raise _PolicyChanged
                    # Asked anew: while it waited, the database may have been suspended or a rival may have come.
                    database = self._allowed(policy, spec, key)
                    target = await where.of(database)
                    runs = [self._run_of(policy, spec, view, slot) for view in views]
                    results = await self._execute(spec, database, target, runs)
                    if any(result.error_type in _NOT_LET_IN for result in results):
                        other = await where.instead_of(target, spec=database)
                        if other is not None:
                            results = await self._execute(spec, database, other, runs)
            except Problem as problem:
                runs = [self._run_of(policy, spec, view, slot) for view in views]
                return [self._ended(run, started_at, RefreshOutcome.FAILED, problem) for run in runs]
            except NoPlace:
                if not held or self._budget.closed:
                    raise
                return held
            tries += 1
            remaining = self._remaining(slot)
            if remaining <= 0 or not any(result.outcome in _TRY_AGAIN for result in results):
                return results
            # The rival's run may cover this slot; the ledger then says so. No place is held while waiting.
            held = results
            where.forget()
            await asyncio.sleep(min(remaining, lock_held_pause(tries, random=self._random)))

    async def _execute(
        self,
        spec: MatviewRefreshPolicySpec,
        database: MatviewDatabaseSpec,
        target: ConnectionTarget,
        runs: Sequence[Run],
    ) -> Sequence[RefreshResult]:
        if spec.consistency is Consistency.GROUP:
            seconds = group_timeout(spec, limits=database.limits)
            return await self._executor.refresh_group(target=target, runs=runs, timeout_seconds=seconds)
        return (await self._executor.refresh(target=target, run=runs[0]),)

    def _remaining(self, slot: Slot) -> float:
        return (slot.deadline - self._clock.now()).total_seconds()

    def _allowed(self, policy: Policy, spec: MatviewRefreshPolicySpec, key: Key) -> MatviewDatabaseSpec:
        database = usable(self._registry.databases.get(key), key)
        problem = self._registry.sharing_problem(policy)
        if problem is not None:
            raise problem
        too_long = check_timeouts(spec, limits=database.limits)
        if too_long:
            raise Problem(RefreshReason.INVALID_SPEC, too_long[0])
        return database

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
        named = self._registry.databases.get(policy.database_key) if policy.database_key else None
        database = None if named is None else named.spec
        limits = DatabaseLimits() if database is None else database.limits
        return Run(
            view=ViewName(view.schema_name, view.name),
            tenant_id=spec.tenant_id,
            isolation=spec.isolation,
            tenant_setting=spec.tenant_setting,
            concurrently=view.concurrently or spec.concurrently,
            timeout_seconds=view.timeout_seconds or limits.timeout_seconds,
            lock_timeout_millis=limits.lock_timeout_millis,
            allow_superuser=database is not None and database.allow_superuser,
            policy_uid=policy.uid,
            slot_id=slot.id,
            due_at=None if slot.request is not None else slot.due_at,
            correlation_id=slot.correlation_id(policy.uid),
            analyze=spec.analyze,
            search_path=() if database is None else database.search_path,
            guard=view.guard,
        )

    def _ended(self, run: Run, started_at: datetime, outcome: RefreshOutcome, problem: Problem) -> RefreshResult:
        return run.result(
            outcome,
            started_at=started_at,
            ended_at=self._clock.now(),
            reason=problem.reason,
            message=problem.message,
        )


def _together(spec: MatviewRefreshPolicySpec) -> list[Sequence[ViewSpec]]:
    """The views in the steps in which they are refreshed: all in one, or each in its own."""
    match spec.consistency:
        case Consistency.GROUP:
            return [spec.views]
        case Consistency.VIEW:
            return [[view] for view in spec.views]
        case _:
            assert_never(spec.consistency)


def _because(suspended: Problem, result: RefreshResult) -> RefreshResult:
    if not is_stopped(result):
        return result
    message = f"{suspended.message} The run was stopped on the server; the old rows stay."
    return result.model_copy(update={"error_type": suspended.reason, "error_message": message})
