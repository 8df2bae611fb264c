"""The books of each policy: every slot was run, covered or counted as missed; every request answered once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tests.simulation.ground import Ground

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.clock_jump import BELIEVED_AHEAD
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.engine.ports import ObjectRef, Status

_LOCKED_OUT = RefreshOutcome.SKIPPED_LOCK_HELD


class Answer(NamedTuple):
    """What the executor said of a view in a slot."""

    outcome: RefreshOutcome
    process: str
    """Who was told."""
    is_again: bool
    """Whether the slot had been told by then."""


@dataclass(slots=True)
class Book:
    """What one policy's stored statuses have told."""

    is_plain: bool = True
    """Whether it owes every slot since its creation: its schedule never changed, and was never suspended."""
    last: MatviewRefreshPolicyStatus | None = None
    handled: set[datetime] = field(default_factory=set)
    """Slots whose end was stored."""
    missed_too: set[datetime] = field(default_factory=set)
    """Those of them that count as missed as well: a lock was held until the deadline."""
    told: set[tuple[str, datetime, RefreshOutcome]] = field(default_factory=set)
    """Correlation id, start, to the second, and outcome of each entry of the history."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """By correlation id and view: the executor's last one."""
    requests: list[str] = field(default_factory=list)
    """Tokens that were answered, in order."""


class Accounts:
    """Keeps a book for each UID."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.books: defaultdict[str, Book] = defaultdict(Book)

    def answered(self, process: str, uid: str, run: Run, result: RefreshResult) -> None:
        """The executor's last word on a view in a slot."""
        book = self.books[uid]
        answer = Answer(result.outcome, process, is_again=run.due_at in book.handled)
        book.answers[f"{run.correlation_id} {run.view}"] = answer

    def stored(self, ref: ObjectRef, status: Status) -> None:
        """A status was written: it must not fall back behind the one before."""
        if not isinstance(status, MatviewRefreshPolicyStatus):
            return
        ground, book = self._ground, self.books[ref.uid]
        ground.tell(
            f"stored {ref.key} {status.last_slot_time} missed {status.missed_slots} {status.last_handled_request}"
        )
        self._compare(ref, book.last, status)
        book.last = status
        token = status.last_handled_request
        if token is not None and (not book.requests or book.requests[-1] != token):
            if token in book.requests:
                ground.violate(f"the request {token} of {ref.key} is answered once more")
            book.requests.append(token)
        self._read_history(book, status)

    def _compare(
        self, ref: ObjectRef, before: MatviewRefreshPolicyStatus | None, status: MatviewRefreshPolicyStatus
    ) -> None:
        if before is None:
            return
        last = before.last_slot_time
        if last is not None and last - self._ground.clock.now() > BELIEVED_AHEAD:
            self.books[ref.uid].is_plain = False  # it was a wrong clock's
        elif _less(status.last_slot_time, last):
            self._ground.violate(f"lastSlotTime of {ref.key} falls back to {status.last_slot_time}")
        if (status.missed_slots or 0) < (before.missed_slots or 0):
            self._ground.violate(f"missedSlots of {ref.key} falls from {before.missed_slots} to {status.missed_slots}")
        if _less(status.observed_generation, before.observed_generation):
            self._ground.violate(f"observedGeneration of {ref.key} falls back to {status.observed_generation}")

    def _read_history(self, book: Book, status: MatviewRefreshPolicyStatus) -> None:
        for index, entry in enumerate(status.history):
            told = entry.correlation_id or "", entry.started_at.replace(microsecond=0), entry.outcome
            if told in book.told:
                break
            book.told.add(told)
            if entry.slot_time is None or status.last_slot_time is None or entry.slot_time > status.last_slot_time:
                continue  # a request, or a slot that a shutdown stopped: it stays due
            book.handled.add(entry.slot_time)
            if entry.outcome is _LOCKED_OUT or any(
                view.outcome is _LOCKED_OUT and view.correlation_id == entry.correlation_id for view in status.views
            ):
                book.missed_too.add(entry.slot_time)
            elif index > 0:
                book.is_plain = False  # its views are not told any more: it may count as missed, or not


def _less(now: datetime | int | None, before: datetime | int | None) -> bool:
    return before is not None and (now is None or now < before)  # type: ignore[operator]
