"""A slot or a request on its way, and what came of it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import FAILURES, RefreshResult
from matview_operator.domain.run import SlotId, request_id, slot_id
from matview_operator.domain.view import ViewName

_NOTHING = timedelta()
_FRESH = frozenset({RefreshOutcome.SUCCESS, RefreshOutcome.SKIPPED_COVERED, RefreshOutcome.SKIPPED_UNCHANGED})
_OUR_OWN_STOPS = frozenset({RefreshReason.SHUTDOWN, RefreshReason.DATABASE_SUSPENDED})
_TOKEN = re.compile(r"[!-~]{1,128}")
_FROM_WORST = (
    RefreshOutcome.FAILED,
    RefreshOutcome.REJECTED_BY_GUARD,
    RefreshOutcome.UNKNOWN,
    RefreshOutcome.INTERRUPTED,
    RefreshOutcome.SKIPPED_UPSTREAM,
    RefreshOutcome.SKIPPED_LOCK_HELD,
    RefreshOutcome.SUCCESS,
    RefreshOutcome.SKIPPED_COVERED,
    RefreshOutcome.SKIPPED_UNCHANGED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A piece of work for one policy: a scheduled instant, or a request by its token."""

    due_at: datetime
    deadline: datetime
    """Not started later than this; a held lock is tried again until then."""
    request: str | None = None
    begins_after: timedelta = _NOTHING
    """How long after it is due it is to begin."""
    id: SlotId = field(init=False, compare=False)
    """The name of this work in the ledger."""

    def __post_init__(self) -> None:
        name = slot_id(self.due_at) if self.request is None else request_id(self.request)
        object.__setattr__(self, "id", name)  # it is frozen, and a dozen times asked for

    def correlation_id(self, policy_uid: uuid.UUID) -> str:
        """One per slot and the same after a restart; a request's is its token."""
        return self.request or str(uuid.uuid5(policy_uid, self.id))


def scheduled(slot_time: datetime, *, starting_deadline_seconds: int, begins_after: timedelta = _NOTHING) -> Slot:
    """The slot of a schedule at this instant, begun so long after it."""
    deadline = slot_time + begins_after + timedelta(seconds=starting_deadline_seconds)
    return Slot(due_at=slot_time, deadline=deadline, begins_after=begins_after)


def is_request_token(text: str) -> bool:
    """Whether an annotation's value can be a request: 1 to 128 printable ASCII characters without blanks."""
    return _TOKEN.fullmatch(text) is not None


def requested(token: str, *, now: datetime, starting_deadline_seconds: int) -> Slot:
    """The work that a request asks for, due now."""
    return Slot(due_at=now, deadline=now + timedelta(seconds=starting_deadline_seconds), request=token)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReport:
    """What came of one slot, all views ended, in the policy's order."""

    slot: Slot
    correlation_id: str
    started_at: datetime
    ended_at: datetime
    results: tuple[tuple[ViewName, RefreshResult], ...]
    cut_short: bool = False
    """Whether the process ended while a view that had failed waited for another attempt."""

    @property
    def worst(self) -> RefreshResult:
        """The result that stands for the slot."""
        return min((result for _, result in self.results), key=lambda result: _FROM_WORST.index(result.outcome))

    @property
    def failed(self) -> int:
        """How many views failed; a skip is no failure."""
        return sum(result.outcome in FAILURES for _, result in self.results)

    @property
    def stopped(self) -> bool:
        """Whether our own shutdown ended it."""
        return self.cut_short or any(result.error_type is RefreshReason.SHUTDOWN for _, result in self.results)

    @property
    def broken_off(self) -> bool:
        """Whether we ourselves ended it, which is no failure: by shutdown, or because its database was suspended."""
        return self.cut_short or any(is_stopped(result) for _, result in self.results)

    @property
    def lock_held(self) -> bool:
        """Whether a view's lock was held until the slot's deadline."""
        return any(result.outcome is RefreshOutcome.SKIPPED_LOCK_HELD for _, result in self.results)

    @property
    def fresh(self) -> bool:
        """Whether every view is known to be current as of this slot."""
        return all(is_fresh(result.outcome) for _, result in self.results)


def is_stopped(result: RefreshResult) -> bool:
    """Whether we ourselves stopped this run: by shutdown, or because its database was suspended."""
    return result.outcome is RefreshOutcome.INTERRUPTED and result.error_type in _OUR_OWN_STOPS


def is_fresh(outcome: RefreshOutcome) -> bool:
    """Whether after this outcome the rows are known to be current."""
    return outcome in _FRESH
