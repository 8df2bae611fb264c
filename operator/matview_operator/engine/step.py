"""The steps of a slot: views that are refreshed together, or one, and how far each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Consistency, MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry_class import RetryClass
from matview_operator.domain.slot import is_fresh
from matview_operator.domain.view import ViewName
from matview_operator.engine.lines import Blame


class Stage(Enum):
    """How far an attempt is."""

    RESTS = auto()
    """None is under way."""
    ASKS = auto()
    """It is about to have a place, or waits for one."""
    FOLLOWS = auto()
    """It waits for another policy's run, which may cover it."""
    WORKS = auto()
    """The server was asked."""


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """Views that are refreshed together, or one, and what came of it so far."""

    index: int
    views: Sequence[ViewSpec]
    stage: Stage = Stage.RESTS
    blame: Blame | None = None
    """Whom to blame that it is not worth while to wait for what it reads."""
    alone: bool = False
    """Whether it waited for another policy's run for long enough, and has the server say who is at work there."""
    due: float | None = None
    """When it is tried once more, in the loop's time, which nobody sets back; None if it waits for no time."""
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
    def names(self) -> tuple[ViewName, ...]:
        """Its views by name."""
        return tuple(ViewName(view.schema_name, view.name) for view in self.views)

    def recall(self, former: Mapping[ViewName, RefreshResult]) -> bool:
        """Take up how the slot's run before ended. Returns whether nothing of it is left to be tried."""
        known = [former[name] for name in self.names if name in former]
        self.tries = max((result.attempts for result in known), default=0)
        if len(known) < len(self.views) or not all(is_fresh(result.outcome) for result in known):
            return False
        self.results = known
        return True

    @property
    def tells(self) -> bool:
        """Whether it has ended, or its newest attempt came to anything: one that found the lock held did not."""
        return self.over or any(result.outcome is not RefreshOutcome.SKIPPED_LOCK_HELD for result in self.results)


def steps_of(spec: MatviewRefreshPolicySpec) -> list[Step]:
    """The views in the steps in which they are refreshed, in the policy's order: all in one, or each in its own."""
    match spec.consistency:
        case Consistency.GROUP:
            return [Step(index=0, views=spec.views)]
        case Consistency.VIEW:
            return [Step(index=index, views=[view]) for index, view in enumerate(spec.views)]
        case _:
            assert_never(spec.consistency)
