"""The attempts of one slot: which of its steps is tried next, when once more, and what ends the waiting for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import assert_never

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Consistency, MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry import lock_held_pause
from matview_operator.domain.retry_class import RetryClass, retry_class, retry_pause
from matview_operator.domain.slot import Slot, is_fresh
from matview_operator.domain.view import ViewName
from matview_operator.engine.budget import NoPlace
from matview_operator.engine.lines import Blame
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.ports import Clock, Metrics
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.turns import Turns

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """Views that are refreshed together, or one, and what came of it so far."""

    index: int
    views: Sequence[ViewSpec]
    due: float | None = None
    """When it is tried once more, in the loop's time, which nobody sets back; None before the first attempt."""
    results: Sequence[RefreshResult] = ()
    """Of the newest attempt."""
    kind: RetryClass | None = None
    """How the newest attempt is tried again."""
    tries: int = 0
    """Attempts so far but for those that found the lock held."""
    retries: int = 0
    """How many of them count against spec.retry.limit."""
    rungs: int = 0
    """How often it waited for a lock or for the fate of a COMMIT."""
    hurried: bool = False
    """Whether newer work of the policy has already brought its next attempt forward."""
    over: bool = False

    @property
    def tells(self) -> bool:
        """Whether it has ended, or its newest attempt came to anything: one that found the lock held did not."""
        return self.over or any(result.outcome is not RefreshOutcome.SKIPPED_LOCK_HELD for result in self.results)


class Attempts:
    """The steps of one slot, in the policy's order. No step waits for another one's pause, but for its turn.

    A lock that is held is tried again until the slot's deadline. What failed is tried again spec.retry.limit times, for
    a slot only before the schedule's next one; a changed policy, or newer work of it, ends that.
    """

    def __init__(
        self,
        policy: Policy,
        slot: Slot,
        *,
        former: Mapping[ViewName, RefreshResult],
        registry: Registry,
        pauses: Pauses,
        turns: Turns,
        metrics: Metrics,
        clock: Clock,
        random: Random,
        newer: Callable[[], bool],
        waits: Callable[[Step, float], None],
    ) -> None:
        """`newer` says whether newer work of the policy is due; `waits` is told what waits if nothing else is left, and
        for how many seconds. Of a slot that is run again, `former` is how it ended: what succeeded is not tried.
        """
        assert policy.spec is not None  # an invalid policy has no timer and no request
        self._policy = policy
        self._slot = slot
        self._registry = registry
        self._pauses = pauses
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._newer = newer
        self._waits = waits
        self._retry = policy.spec.retry
        self.steps = [Step(index=index, views=views) for index, views in enumerate(_together(policy.spec))]
        names = [tuple(ViewName(view.schema_name, view.name) for view in step.views) for step in self.steps]
        self.work = turns.work(policy, slot, names)
        """Its place among the slots that are due with it; to be entered."""
        self._turns = turns
        for step in self.steps:
            told = [former.get(name) for name in names[step.index]]
            known = [result for result in told if result is not None]
            step.tries = max((result.attempts for result in known), default=0)
            if all(result is not None and is_fresh(result.outcome) for result in told):
                step.results = known
                self._end(step)
        timetable = policy.timetable
        self._ends_at = None if slot.request or timetable is None else timetable.next_after(slot.due_at)
        self.began_at: datetime | None = None
        """When the slot's first attempt began; None before it ended."""

    async def next(self) -> Step | None:
        """The first step that can be tried now, waiting for it; None when all have ended. Raises NoPlace."""
        if self.work.asked_at is None:
            await self.work.begin()
        while True:
            self._give_up()
            left = [step for step in self.steps if not step.over]
            if not left:
                return None
            now = asyncio.get_running_loop().time()
            ready = next((step for step in left if self._is_ready(step, now)), None)
            if ready is not None:
                if ready.results:
                    self._count(ready)
                return ready
            await self._wait(left, now)

    def take(self, step: Step) -> Blame | None:
        """It is tried now; or whom to blame if it is not worth while, because what it reads failed."""
        return None if step.results else self.work.take(step.index)

    def skipped(self, step: Step, results: Sequence[RefreshResult], blame: Blame) -> None:
        """Leave it out of this slot."""
        self.began_at = self.began_at or results[0].started_at
        step.results = results
        self._end(step, blame)

    def seconds_for_a_place(self, step: Step) -> float | None:
        """How long the step may wait for a place: a slot is begun in time, and what waits again is not left hanging."""
        if step.kind is RetryClass.LADDER or (self.began_at is None and self._slot.request is None):
            return self._until(self._slot.deadline)
        return self._until(self._ends_at) if step.results and self._ends_at is not None else None

    def ended(self, step: Step, results: Sequence[RefreshResult]) -> None:
        """Take up what came of an attempt, and decide about the next one."""
        if self.began_at is None:
            self.began_at = results[0].started_at
        step.tries += any(result.outcome is not RefreshOutcome.SKIPPED_LOCK_HELD for result in results)
        # The ledger counts as well, and over restarts; but it has no row of what never reached the server.
        step.results = [result.model_copy(update={"attempts": max(result.attempts, step.tries)}) for result in results]
        step.kind = retry_class(results)
        pause = self._pause(step)
        if pause is None:
            self._end(step)
            return
        step.due = asyncio.get_running_loop().time() + pause

    def no_place(self, step: Step) -> None:
        """Leave it at the newest results: no place became free for another attempt in time."""
        self._end(step)

    @property
    def cut_short(self) -> bool:
        """Whether a step that has told something would have been tried again."""
        return any(not step.over and step.tells for step in self.steps)

    async def _wait(self, left: Sequence[Step], now: float) -> None:
        """Until something may have changed. Raises NoPlace when that is too late."""
        if self._pauses.closed or (self.began_at is None and self._is_late()):
            raise NoPlace
        again = {step: step.due for step in left if step.due is not None}
        soonest = min(again, key=again.__getitem__, default=None)
        seconds = None if soonest is None else again[soonest] - now
        if soonest is None and self.began_at is None and self._slot.request is None:
            seconds = self._until(self._slot.deadline)
        elif soonest is not None and seconds is not None and soonest.kind is not RetryClass.LADDER:
            self._waits(soonest, seconds)
        if await self._sleep(seconds, for_a_turn=len(again) < len(left)):
            for step in again:
                if step.kind is not RetryClass.LADDER:
                    step.due = now

    def _is_ready(self, step: Step, now: float) -> bool:
        return self.work.is_turn(step.index) if step.due is None else step.due <= now

    def _is_late(self) -> bool:
        return self._slot.request is None and self._until(self._slot.deadline) <= 0

    async def _sleep(self, seconds: float | None, *, for_a_turn: bool) -> bool:
        self._turns.waiting += for_a_turn
        try:
            return await self._pauses.sleep(self._policy.key, seconds=seconds, stirred=self.work.stirred)
        finally:
            self._turns.waiting -= for_a_turn

    def _end(self, step: Step, blame: Blame | None = None) -> None:
        step.over = True
        self.work.ended(step.index, step.results, blame=blame)

    def _pause(self, step: Step) -> float | None:
        match step.kind:
            case None:
                return None
            case RetryClass.LADDER:
                remaining = self._until(self._slot.deadline)
                if remaining <= 0:
                    return None
                step.rungs += 1
                # The rival's run may cover this slot; the ledger then says so.
                return min(remaining, lock_held_pause(step.rungs, random=self._random))
            case kind:
                pause = retry_pause(
                    kind,
                    retries=step.retries,
                    retry=self._retry,
                    requested=self._slot.request is not None,
                    random=self._random,
                )
                if pause is None or (self._ends_at is not None and pause >= self._until(self._ends_at)):
                    return None
                step.retries += 1
                return pause

    def _count(self, step: Step) -> None:
        failed = next(result for result in step.results if retry_class([result]) is step.kind)
        assert failed.error_type is not None  # else it would be of no class that is tried again
        self._metrics.retried(self._policy.key, failed.error_type)
        log.info(
            "%s is tried again",
            failed.view_name,
            extra={
                "action": "retry",
                "policy": str(self._policy.key),
                "correlation_id": failed.correlation_id,
                "view_name": failed.view_name,
                "reason": failed.error_type.value,
                "retry": step.retries,
                "limit": self._retry.limit,
            },
        )

    def _give_up(self) -> None:
        """End what failed and is left to newer work, or to the policy as it is now."""
        changed = self._registry.policies.get(self._policy.key) is not self._policy
        newer = self._newer()
        for step in self.steps:
            if step.over or step.due is None or step.kind is RetryClass.LADDER:
                continue
            if changed or (newer and (self._slot.request is None or step.hurried)):
                self._end(step)
            elif newer:
                # The slot that waits behind a request would try the same now. It is not kept from it for longer.
                step.hurried, step.due = True, 0.0

    def _until(self, instant: datetime) -> float:
        return (instant - self._clock.now()).total_seconds()


def _together(spec: MatviewRefreshPolicySpec) -> list[Sequence[ViewSpec]]:
    """The views in the steps in which they are refreshed: all in one, or each in its own."""
    match spec.consistency:
        case Consistency.GROUP:
            return [spec.views]
        case Consistency.VIEW:
            return [[view] for view in spec.views]
        case _:
            assert_never(spec.consistency)
