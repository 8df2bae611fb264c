"""Runs one slot of one policy: its views one after another, a held lock tried again until the slot's deadline."""

from __future__ import annotations

import asyncio
from datetime import datetime
from random import Random

from matview_operator.api.database import DatabaseLimits, MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry import lock_held_pause
from matview_operator.domain.run import Run
from matview_operator.domain.slot import Slot, SlotReport
from matview_operator.domain.spec_check import check_timeouts
from matview_operator.domain.view import ViewName
from matview_operator.engine.budget import Budget
from matview_operator.engine.ports import Clock, Executor, Key, Secrets
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.targets import resolve, usable

_TRY_AGAIN = frozenset({RefreshOutcome.SKIPPED_LOCK_HELD, RefreshOutcome.UNKNOWN})


class SlotRunner:
    """Turns a slot into a report. Holds no state of its own between slots."""

    def __init__(
        self,
        *,
        registry: Registry,
        executor: Executor,
        secrets: Secrets,
        budget: Budget,
        clock: Clock,
        random: Random,
    ) -> None:
        self._registry = registry
        self._executor = executor
        self._secrets = secrets
        self._budget = budget
        self._clock = clock
        self._random = random

    async def run(self, policy: Policy, slot: Slot) -> SlotReport:
        """Refresh every view as the policy says now. Cancelled, it reports what was interrupted, and returns."""
        spec, key = policy.spec, policy.database_key
        assert spec is not None  # an invalid policy has no timer and no request
        assert key is not None
        started_at = self._clock.now()
        results: list[tuple[ViewName, RefreshResult]] = []
        runs = [self._run_of(policy, spec, view, slot) for view in spec.views]
        try:
            try:
                database = self._allowed(policy, spec, key)
                target = await resolve(database, key, self._secrets)
            except Problem as problem:
                results = [(run.view, self._ended(run, started_at, RefreshOutcome.FAILED, problem)) for run in runs]
            else:
                for run in runs:
                    results.append((run.view, await self._refresh(run, slot, key, database, target)))
        except asyncio.CancelledError:
            stopped = Problem(RefreshReason.SHUTDOWN, "Stopped before it ended; nothing changed. The slot stays due.")
            now = self._clock.now()
            results += [
                (run.view, self._ended(run, now, RefreshOutcome.INTERRUPTED, stopped)) for run in runs[len(results) :]
            ]
        return SlotReport(
            slot=slot,
            correlation_id=slot.correlation_id(policy.uid),
            started_at=started_at,
            ended_at=self._clock.now(),
            results=tuple(results),
        )

    async def _refresh(
        self, run: Run, slot: Slot, key: Key, database: MatviewDatabaseSpec, target: ConnectionTarget
    ) -> RefreshResult:
        tries = 0
        while True:
            async with self._budget.place(key):
                result = await self._executor.refresh(target=target, run=run)
            tries += 1
            if result.outcome not in _TRY_AGAIN:
                return result
            # The rival's run may cover this slot; the ledger then says so. No place is held while waiting.
            pause = lock_held_pause(tries, random=self._random)
            if (slot.deadline - self._clock.now()).total_seconds() < pause:
                return result
            await asyncio.sleep(pause)
            target = await self._again(database, key, target)

    async def _again(self, database: MatviewDatabaseSpec, key: Key, former: ConnectionTarget) -> ConnectionTarget:
        """Read the Secret anew after a pause: it may have been rotated."""
        try:
            return await resolve(database, key, self._secrets)
        except Problem:
            return former

    def _allowed(self, policy: Policy, spec: MatviewRefreshPolicySpec, key: Key) -> MatviewDatabaseSpec:
        database = usable(self._registry.databases.get(key), key)
        problem = self._registry.sharing_problem(policy)
        if problem is not None:
            raise problem
        too_long = check_timeouts(spec, limits=database.limits)
        if too_long:
            raise Problem(RefreshReason.INVALID_SPEC, too_long[0])
        return database

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
        )

    def _ended(self, run: Run, started_at: datetime, outcome: RefreshOutcome, problem: Problem) -> RefreshResult:
        return run.result(
            outcome,
            started_at=started_at,
            ended_at=self._clock.now(),
            reason=problem.reason,
            message=problem.message,
        )
