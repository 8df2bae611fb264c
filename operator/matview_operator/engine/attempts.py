"""The attempts of one slot: which of its steps is tried next, when once more, and what ends the waiting for that."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
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
from matview_operator.engine.ports import Clock, Key, Metrics
from matview_operator.engine.registry import Policy, Registry

log = logging.getLogger(__name__)


class Pauses:
    """Who waits for another attempt; whoever knows better ends the waiting. Each then looks itself at what changed."""

    def __init__(self) -> None:
        self._waiting: dict[Key, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    async def sleep(self, policy: Key, *, seconds: float) -> bool:
        """Wait so long; returns whether the policy was woken before."""
        woken = asyncio.Event()
        self._waiting[policy].add(woken)
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting[policy].discard(woken)
            if not self._waiting[policy]:
                del self._waiting[policy]
        return True

    def wake(self, policy: Key) -> None:
        """End the policy's waiting: something changed that it may wait for, or newer work of it is due."""
        for woken in self._waiting.get(policy, ()):
            woken.set()

    def close(self) -> None:
        """End all waiting: the process ends."""
        self.closed = True
        for policy in self._waiting:
            self.wake(policy)


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """Views that are refreshed together, or one, and what came of it so far."""

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
    """The steps of one slot, in the policy's order. No step waits for another one's pause.

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
        self.steps = [Step(views=views) for views in _together(policy.spec)]
        for step in self.steps:
            told = [former.get(ViewName(view.schema_name, view.name)) for view in step.views]
            known = [result for result in told if result is not None]
            step.tries = max((result.attempts for result in known), default=0)
            if all(result is not None and is_fresh(result.outcome) for result in told):
                step.results, step.over = known, True
        timetable = policy.timetable
        self._ends_at = None if slot.request or timetable is None else timetable.next_after(slot.due_at)
        self.began_at: datetime | None = None
        """When the slot's first attempt began; None before it ended."""

    async def next(self) -> Step | None:
        """The first step that can be tried now, waiting for it; None when all have ended. Raises NoPlace."""
        while True:
            self._give_up()
            left = [step for step in self.steps if not step.over]
            if not left:
                return None
            now = asyncio.get_running_loop().time()
            ready = next((step for step in left if step.due is None or step.due <= now), None)
            if ready is not None:
                if ready.results:
                    self._count(ready)
                return ready
            if self._pauses.closed:
                raise NoPlace
            due, soonest = min(((step.due or now, step) for step in left), key=lambda each: each[0])
            if soonest.kind is not RetryClass.LADDER:
                self._waits(soonest, due - now)
            if await self._pauses.sleep(self._policy.key, seconds=due - now):
                for step in left:
                    if step.kind is not RetryClass.LADDER:
                        step.due = now

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
            step.over = True
            return
        step.due = asyncio.get_running_loop().time() + pause

    def no_place(self, step: Step) -> None:
        """Leave it at the newest results: no place became free for another attempt in time."""
        step.over = True

    @property
    def cut_short(self) -> bool:
        """Whether a step that has told something would have been tried again."""
        return any(not step.over and step.tells for step in self.steps)

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
                step.over = True
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
