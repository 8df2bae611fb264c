"""Whose turn it is: views that are due together are refreshed after those that they read, across policies.

A view waits for one that it reads, directly or through others, while that one is being refreshed, or is due no later.
One that failed and is to be tried again is under way, but not worth keeping newer work for.

So nobody waits for ever: a refresh that is under way waits for no other; what waits for another slot waits for one that
is due earlier, or is due at the same instant and comes before it; and there is a first one, because policies whose
views are on a cycle do not run. Whoever waits holds no place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.errors import MatviewError
from matview_operator.domain.result import FAILURES, RefreshResult
from matview_operator.domain.run import SlotId
from matview_operator.domain.slot import Slot, is_fresh, is_stopped
from matview_operator.domain.view import ViewName
from matview_operator.engine.lines import Blame, Due, Failure, Gathering, Line, Part, Step, Walk
from matview_operator.engine.order import Order
from matview_operator.engine.ports import Clock, Key
from matview_operator.engine.registry import Policy, Registry

_FAILED = FAILURES | {RefreshOutcome.SKIPPED_UPSTREAM}
_STALE_LINES = 1000


class StaysDue(MatviewError):
    """Raised by what is worked on: it ends for now, and will be begun anew."""


@dataclass(slots=True, eq=False, kw_only=True)
class Work(Due):
    """One slot or request of one policy, from when it is due until it is over."""

    turns: Turns
    policy: Policy
    database: Key
    holders: int = 0
    """How often it was submitted without being over."""
    failed: dict[ViewName, Blame] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    left: dict[int, list[Gathering]] = field(default_factory=dict)
    """The steps that were not taken yet, each with what it waits for."""

    def __enter__(self) -> Self:
        """Be worked on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nobody waits for it any more, unless it stays due."""
        if isinstance(error, StaysDue):
            self.turns.rest(self)
        else:
            self.turns.leave(self)

    def begin(self) -> None:
        """Find out what the steps wait for, when the order is known."""
        self.asked_at = self.turns.clock.now()
        self.left = {index: self.turns.ahead_of(self, step) for index, step in enumerate(self.steps)}

    def is_turn(self, index: int) -> bool:
        """Whether all has ended that a step waits for."""
        return not any(gathering.holds(self) for gathering in self.left.get(index, ()))

    def look_upstream(self, index: int) -> Blame | None:
        """Whom to blame if a refresh that the step waits for has failed, and is only to be tried again.

        Those who wait for this step are told of that.
        """
        if index not in self.left:
            return None
        faults = (gathering.fault(self) for gathering in self.left[index])
        fault = next((fault for fault in faults if fault is not None), None)
        for part in self.turns.parts(self, self.steps[index]):
            part.found(self, fault)
        return fault

    def rests(self, index: int) -> None:
        """The step has failed, and will be tried again."""
        for view in self.steps[index]:
            for part in self.turns.parts(self, (view,)):
                part.found(self, Blame(view=view, policy=self.policy.key.name))

    def begins(self, index: int) -> None:
        """The step is at work, for the first time or again."""
        for part in self.turns.parts(self, self.steps[index]):
            part.found(self, None)

    def take(self, index: int) -> Blame | None:
        """The step is worked on now, and waits for nothing any more. Return whom to blame if it is not worth while."""
        self.left.pop(index, None)
        return self.turns.take(self, self.steps[index])

    def ended(self, index: int, results: Sequence[RefreshResult], *, blame: Blame | None = None) -> None:
        """Let those have their turn who waited for this step: it is not tried again."""
        for view, result in zip(self.steps[index], results, strict=True):
            self.turns.ended(self, view, result, blame=blame or Blame(view=view, policy=self.policy.key.name))


class Turns:
    """Knows every slot that is due, from its submission on. Nobody is asked again and again: an end wakes who waits."""

    def __init__(self, *, registry: Registry, order: Order, clock: Clock) -> None:
        self.order = order
        self.clock = clock
        self.waiting = 0
        """How many slots and requests wait for another one's view."""
        self._registry = registry
        self._works: dict[tuple[Key, SlotId], Work] = {}
        self._lines: dict[tuple[Key, ViewName], Line] = {}

    def follows(self, key: Key) -> bool:
        """Whether a view of the policy comes after another one."""
        policy = self._registry.policies.get(key)
        if policy is None or policy.database_key is None:
            return False
        reads = self.order.precedence(policy.database_key).reads
        return bool(reads) and any(view in reads for view in policy.views)

    def upstreams(self, key: Key) -> set[Key]:
        """The other policies that name a view which one of the policy's comes after, directly or through others."""
        policy = self._registry.policies.get(key)
        if policy is None or policy.database_key is None:
            return set()
        found: set[Key] = set()
        walk = Walk(self.order.precedence(policy.database_key), policy.views)
        for view in walk:
            walk.go_on(view)
            found.update(self._registry.naming(policy.database_key, view))
        return found - {key}

    def taken(self, key: Key, slot: Slot) -> None:
        """A slot or request is due; `over` ends it, once for each time."""
        policy = self._registry.policies.get(key)
        if policy is None or policy.database_key is None:
            return
        work = self._works.get((key, slot.id))
        if work is None:
            work = Work(turns=self, policy=policy, slot=slot, database=policy.database_key)
            self._works[key, slot.id] = work
        work.holders += 1
        self._enter(work)

    def over(self, key: Key, slot: Slot) -> None:
        """It has ended, or will not run."""
        work = self._works.get((key, slot.id))
        if work is not None:
            work.holders -= 1
            if not work.holders:
                del self._works[key, slot.id]
                self.leave(work)

    def work(self, policy: Policy, slot: Slot, steps: Sequence[Step]) -> Work:
        """The slot or request, as it begins: by what the policy says now."""
        assert policy.database_key is not None  # it has a spec, else it would not begin
        work = self._works.get((policy.key, slot.id))
        if work is None:
            work = Work(turns=self, policy=policy, slot=slot, database=policy.database_key)
        elif work.policy is not policy:
            self._change(work, policy)
        work.policy, work.database, work.steps, work.asked_at = policy, policy.database_key, steps, None
        work.stirred = asyncio.Event()
        work.failed.clear()
        self._enter(work)
        return work

    def leave(self, work: Work) -> None:
        """Take what is left of it out of the lines."""
        for view in work.policy.views:
            self._close(work, view)

    def rest(self, work: Work) -> None:
        """Have it wait in its lines as if it had never been begun."""
        for view in work.policy.views:
            for part in self.parts(work, (view,)):
                part.waits, part.asked = True, None
                part.found(work, None)

    def ahead_of(self, work: Work, step: Step) -> list[Gathering]:
        """What a step waits for, as of now: what comes up later is not waited for, or it might never have its turn."""
        if self.order.problem(work.policy) is not None:
            return []
        order = self.order.precedence(work.database)
        for part in self.parts(work, step):
            part.asked = order
        ahead: list[Gathering] = []
        walk = Walk(order, step)
        for view in walk:
            line = self._lines.get((work.database, view)) or Line()
            gathering = line.gather(work, order)
            if gathering is not None:
                gathering.waiting.append(work)
                ahead.append(gathering)
            if not (gathering is not None and gathering.is_due_with_us) and not line.is_fresh_for(work):
                walk.go_on(view)
        return ahead

    def take(self, work: Work, step: Step) -> Blame | None:
        """It is this step's turn. Return whom to blame if views that it reads failed together with it."""
        for part in self.parts(work, step):
            part.waits = False
        if self.order.problem(work.policy) is not None:
            return None
        walk = Walk(self.order.precedence(work.database), step)
        for view in walk:
            line = self._lines.get((work.database, view)) or Line()
            blame = line.failed_with(work) if work.slot.request is None else work.failed.get(view)
            if blame is not None:
                return blame
            if not line.is_fresh_for(work):
                walk.go_on(view)
        return None

    def ended(self, work: Work, view: ViewName, result: RefreshResult, *, blame: Blame) -> None:
        """One view has ended in this slot for good. What a request fails at keeps no slot from trying."""
        if not self._close(work, view):
            return  # of a policy that was deleted
        line = self._lines[work.database, view]
        if is_fresh(result.outcome):
            line.refreshed(work.slot.due_at)
        elif result.outcome in _FAILED and not is_stopped(result):
            work.failed[view] = blame
            if work.slot.request is None:
                line.failed(Failure(due_at=work.slot.due_at, ended_at=self.clock.now(), blame=blame))

    def parts(self, work: Work, step: Step) -> Iterator[Part]:
        """The step's places in the lines of its views, as far as it still has them."""
        for view in step:
            line = self._lines.get((work.database, view))
            if line is not None and work in line.parts:
                yield line.parts[work]

    def _change(self, work: Work, policy: Policy) -> None:
        """Whoever waits for views that it still has goes on waiting."""
        kept = policy.views if policy.database_key == work.database else ()
        for view in work.policy.views:
            if view not in kept:
                self._close(work, view)

    def _enter(self, work: Work) -> None:
        if len(self._lines) > 2 * self._registry.view_count + _STALE_LINES:
            self._lines = {place: line for place, line in self._lines.items() if line.parts}
        for view in work.policy.views:
            line = self._lines.get((work.database, view))
            if line is None:
                line = self._lines[work.database, view] = Line()
            if work not in line.parts:
                line.parts[work] = Part()
                line.arrivals += 1

    def _close(self, work: Work, view: ViewName) -> bool:
        line = self._lines.get((work.database, view))
        part = None if line is None else line.parts.pop(work, None)
        for gathering in () if part is None else part.gatherings:
            gathering.ended(work)
        return part is not None
