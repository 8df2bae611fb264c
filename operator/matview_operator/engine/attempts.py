"""The attempts of one slot: which of its steps is tried next, when once more, and what ends the waiting for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from random import Random

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry import lock_held_pause
from matview_operator.domain.retry_class import RetryClass, retry_class, retry_pause
from matview_operator.domain.slot import Slot
from matview_operator.domain.view import ViewName
from matview_operator.engine.lines import Blame
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.ports import Clock, Metrics
from matview_operator.engine.queue import NoPlace
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.step import Stage, Step, steps_of
from matview_operator.engine.turns import StaysDue, Turns

log = logging.getLogger(__name__)


class Attempts:
    """The steps of one slot. A step waits for those that it reads, and for no other one's refresh or pause.

    Given out in the policy's order, they ask for places one by one, so that a policy with many views lets others go in
    between.

    A lock that is held is tried again until the slot's deadline. What failed is tried again spec.retry.limit times, for
    a slot only before the next one. A changed policy, or newer work of it, ends that, and waiting for others' attempts.
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
        """`newer` says whether newer work of the policy is due; `waits` is told what waits for another attempt, and
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
        self.steps = steps_of(policy.spec)
        self.work = turns.work(policy, slot, [step.names for step in self.steps])
        """Its place among the slots that are due with it; to be entered."""
        self._turns = turns
        for step in self.steps:
            if step.recall(former):
                self._end(step)
        timetable = policy.timetable
        self._ends_at = None if slot.request or timetable is None else timetable.next_after(slot.due_at)
        self.began_at: datetime | None = None
        """When the first attempt began of those that have ended."""
        self._stop: NoPlace | StaysDue | None = None
        """Why no step is given out any more."""

    def has_begun(self, *, but: Step | None = None) -> bool:
        """Whether the slot has begun, with another step: then neither the deadline nor what holds slots binds it."""
        works = (step for step in self.steps if step.stage is Stage.WORKS and step is not but)
        return self.began_at is not None or any(works)

    async def next(self) -> Step | None:
        """The first step that can be tried now, waiting for it; None when all have ended. Raises NoPlace, StaysDue."""
        if self.work.asked_at is None:
            self.work.begin()
        while True:
            self._give_up()
            if self._stop is not None:
                raise self._stop
            left = [step for step in self.steps if not step.over]
            if not left:
                return None
            now = asyncio.get_running_loop().time()
            # Its deadline over, nothing that comes up may be its begin, though another's run may still be waited for.
            over = not self.has_begun() and self._slot.request is None and self._until(self._slot.deadline) < 0
            given = () if over or self._is_asking else left
            ready = next((step for step in given if self._is_ready(step, now)), None)
            if ready is not None:
                if ready.due is not None:
                    self._count(ready)
                ready.stage, ready.due = Stage.ASKS, None
                return ready
            await self._wait(left, now)

    def begins(self, step: Step) -> None:
        """The server is asked now."""
        self.work.begins(step.index)
        self._set(step, Stage.WORKS)

    def follows(self, step: Step) -> None:
        """It waits for another policy's run, which takes no place."""
        self._set(step, Stage.FOLLOWS)

    def followed_in_vain(self, step: Step, *, alone: bool) -> None:
        """Give it out once more, to ask for a place of its own."""
        step.alone = alone
        self._set(step, Stage.RESTS)

    def stopped(self, step: Step, stop: NoPlace | StaysDue) -> None:
        """Give out nothing more."""
        self._stop = stop
        self._set(step, Stage.RESTS)

    def left_out(self, step: Step, results: Sequence[RefreshResult], *, blame: Blame | None = None) -> None:
        """Leave it out of this slot, because of another one that is to blame, or because of a bug.

        For the former's sake the slot has not begun: what keeps a slot from its begin binds its other views still.
        """
        if blame is None:
            self._began(results)
        step.results = results
        self._end(step, blame)

    def interrupted(self, step: Step, results: Sequence[RefreshResult]) -> None:
        """Take up what a cancelled attempt told. Who waits for its views waits for the slot's end."""
        self._began(results)
        step.results, step.over = results, True

    def seconds_for_a_place(self, step: Step) -> float | None:
        """How long the step may wait for a place: a slot is begun in time, and what waits again is not left hanging."""
        if step.kind is RetryClass.LADDER or (not self.has_begun() and self._slot.request is None):
            return self._until(self._slot.deadline)
        return self._until(self._ends_at) if step.results and self._ends_at is not None else None

    def ended(self, step: Step, results: Sequence[RefreshResult]) -> None:
        """Take up what came of an attempt, and decide about the next one."""
        # Another policy's run covers one that waited for it, however late. The slot's other views have no part in that.
        covered = step.stage is not Stage.WORKS and results[0].outcome is RefreshOutcome.SKIPPED_COVERED
        if not (covered and self._is_late()):
            self._began(results)
        step.tries += any(result.outcome is not RefreshOutcome.SKIPPED_LOCK_HELD for result in results)
        # The ledger counts as well, and over restarts; but it has no row of what never reached the server.
        step.results = [result.model_copy(update={"attempts": max(result.attempts, step.tries)}) for result in results]
        step.kind, step.alone = retry_class(results), False
        pause = self._pause(step)
        if pause is None:
            self._end(step)
            return
        step.due = asyncio.get_running_loop().time() + pause
        if pause and step.kind is not RetryClass.LADDER:
            self.work.rests(step.index)
        self._set(step, Stage.RESTS)

    def no_place(self, step: Step, stop: NoPlace) -> None:
        """No place became free in time: leave it at the newest results, or the slot at its being late.

        It is not, if another policy's run has covered a view meanwhile.
        """
        self._set(step, Stage.RESTS)
        if step.results:
            self._end(step)
        elif not self.has_begun():
            self._stop = stop

    @property
    def cut_short(self) -> bool:
        """Whether a step that has told something would have been tried again."""
        return any(not step.over and step.tells for step in self.steps)

    async def _wait(self, left: Sequence[Step], now: float) -> None:
        """Until something may have changed. Raises NoPlace when that is too late."""
        under_way = self._is_under_way
        if not under_way and (self._pauses.closed or (not self.has_begun() and self._is_late())):
            raise NoPlace
        again = {step: step.due for step in left if step.due is not None}
        soonest = min(again, key=again.__getitem__, default=None)
        seconds = None if soonest is None else again[soonest] - now
        if soonest is not None and seconds is not None and soonest.kind is not RetryClass.LADDER:
            self._waits(soonest, seconds)
        if self._is_asking:
            seconds = None
        elif soonest is None and not under_way and not self.has_begun() and self._slot.request is None:
            seconds = self._until(self._slot.deadline)
        if await self._sleep(seconds, for_a_turn=not under_way and len(again) < len(left)):
            for step in again:
                if step.kind is not RetryClass.LADDER:
                    step.due = now

    @property
    def _is_under_way(self) -> bool:
        return any(step.stage is not Stage.RESTS for step in self.steps)

    @property
    def _is_asking(self) -> bool:
        return any(step.stage is Stage.ASKS for step in self.steps)

    def _is_ready(self, step: Step, now: float) -> bool:
        if step.stage is not Stage.RESTS:
            return False
        if step.due is not None:
            return step.due <= now
        return step.blame is not None or self.work.is_turn(step.index)

    def _is_late(self) -> bool:
        return self._slot.request is None and self._until(self._slot.deadline) <= 0

    async def _sleep(self, seconds: float | None, *, for_a_turn: bool) -> bool:
        self._turns.waiting += for_a_turn
        try:
            return await self._pauses.sleep(self._policy.key, seconds=seconds, stirred=self.work.stirred)
        finally:
            self._turns.waiting -= for_a_turn

    def _set(self, step: Step, stage: Stage) -> None:
        step.stage = stage
        self.work.stirred.set()

    def _began(self, results: Sequence[RefreshResult]) -> None:
        at = results[0].started_at
        self.began_at = at if self.began_at is None else min(self.began_at, at)

    def _end(self, step: Step, blame: Blame | None = None) -> None:
        step.over = True
        self._set(step, Stage.RESTS)
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
        """End what failed, itself or upstream, and is left to newer work, or to the policy as it is now."""
        changed = self._registry.policies.get(self._policy.key) is not self._policy
        newer = self._newer()
        for step in self.steps:
            if step.over or step.stage is not Stage.RESTS or step.kind is RetryClass.LADDER:
                continue
            if step.due is None:
                fault = self.work.look_upstream(step.index)
                step.blame = fault if self._slot.request is None and (changed or newer) else None
            elif changed or (newer and (self._slot.request is None or step.hurried)):
                self._end(step)
            elif newer:
                # The slot that waits behind a request would try the same now. It is not kept from it for longer.
                step.hurried, step.due = True, 0.0

    def _until(self, instant: datetime) -> float:
        return (instant - self._clock.now()).total_seconds()
