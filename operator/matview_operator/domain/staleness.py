"""When a policy with maxStalenessSeconds is due: so early that its rows are never older than that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import HistoryEntry, MatviewRefreshPolicyStatus, ViewStatus
from matview_operator.domain.conditions import RUN_FAILED, RUN_TOO_LONG, TARGET_MISSED, Statement
from matview_operator.domain.schedule import Due, whole_second

MEASURED_RUNS = 5
"""The longest of so many counts, so that one that was slow by chance is forgotten."""
_SECOND = timedelta(seconds=1)
_BETWEEN_STARTS = timedelta(seconds=5)
"""As everySeconds allows, too: what cannot be met must not become a busy loop."""
_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(seconds=300)
_DOUBLINGS = 6
_NEVER = datetime.min.replace(tzinfo=UTC)
_NOTHING = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessTarget:
    """The next slot, as it follows from what has ended. Slots are whole seconds of UTC.

    While one is at work, what it will end with is not known, and `due_between` has nothing to say.
    """

    seconds: int
    starting_deadline: timedelta
    data_as_of: datetime | None
    """What the policy's oldest rows reflect; None while a view has none."""
    expected: timedelta
    """How long a run takes, as measured."""
    not_before: datetime
    has_failed: bool
    history: tuple[HistoryEntry, ...]
    begins_after: ClassVar = timedelta()
    """Its slots are begun at once."""

    @property
    def _target(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    @property
    def _lead(self) -> timedelta:
        """How long before the rows are too old a run is begun."""
        return self.expected + max(_SECOND, self.expected / 4)

    @property
    def _due(self) -> datetime:
        wished = _NEVER if self.data_as_of is None else whole_second(self.data_as_of + self._target - self._lead)
        return max(wished, self.not_before)

    def next_after(self, instant: datetime) -> datetime:
        """The first instant after this one at which it is due."""
        following = whole_second(instant) + _SECOND
        # Further ahead than rows of now are good for: somebody's clock was wrong.
        is_believed = self._due - instant <= self._target + _LONGEST_PAUSE
        return max(self._due, following) if is_believed else following

    def newest_at(self, instant: datetime) -> datetime:
        """The newest instant that may be a slot: any whole second may."""
        return whole_second(instant)

    def due_between(self, after: datetime, until: datetime) -> Due:
        """Whether it became due after the one instant, up to and including the other: one slot, however long ago."""
        due = self.next_after(after)
        if due > until:
            return Due(0, None, due)
        # What is too late to be begun is not missed but due now: the rows grow older all the time.
        newest = due if until - due < self.starting_deadline else whole_second(until)
        return Due(1, self._unused(newest), self.after_run(until))

    def _unused(self, instant: datetime) -> datetime:
        """The first second from then on by which no slot of the history is named.

        A clock that was set back shows them anew, and the ledger would take a second slot of that name for done.
        """
        used = {entry.slot_time for entry in self.history}
        while instant in used:
            instant += _SECOND
        return instant

    def after_run(self, begun_at: datetime) -> datetime:
        """When it will be due again if a run begins now and goes as expected."""
        return whole_second(begun_at + max(_BETWEEN_STARTS, self._target - self._lead))

    def describe(self) -> str:
        """The target in words, for `kubectl get`."""
        return f"at most {self.seconds}s old"

    def missed(self) -> Statement | None:
        """What TargetMissed says, if the rows will be older than the target before the next ones are there."""
        if self.data_as_of is None:
            return None
        age = self._due + self.expected - self.data_as_of
        if age <= self._target:
            return None
        old, took = _seconds(age), _seconds(self.expected)
        said = f"The rows will be {old} s old before the next ones are there, {old - self.seconds} s more than"
        if self.has_failed:
            why = "the last run failed, and the next one begins after a pause; Fresh says why"
            return Statement(TARGET_MISSED, "True", RUN_FAILED, f"{said} maxStalenessSeconds: {why}.")
        why = f"a run takes {took} s, and the rows are as old as its beginning"
        return Statement(TARGET_MISSED, "True", RUN_TOO_LONG, f"{said} maxStalenessSeconds: {why}.")


def staleness_target(
    seconds: int, *, spec: MatviewRefreshPolicySpec, status: MatviewRefreshPolicyStatus
) -> StalenessTarget:
    """The policy's target, and how far it is from it by its status."""
    known = {(view.schema_name, view.name): view for view in status.views}
    views = [known.get((view.schema_name, view.name)) for view in spec.views]
    rows = [None if view is None else _rows_of(view) for view in views]
    has = [time for time in rows if time is not None]
    failures = status.consecutive_failures or 0
    return StalenessTarget(
        seconds=seconds,
        starting_deadline=timedelta(seconds=spec.starting_deadline_seconds),
        data_as_of=min(has) if len(has) == len(rows) else None,
        expected=_expected(status),
        not_before=_not_before([view for view in views if view is not None], failures),
        has_failed=failures > 0,
        history=status.history,
    )


def _rows_of(view: ViewStatus) -> datetime | None:
    """What the rows reflect, on the server's clock; never later than the end of the run that told it."""
    ended_at = _ended_at(view)
    return view.data_as_of if view.data_as_of is None or ended_at is None else min(view.data_as_of, ended_at)


def _ended_at(view: ViewStatus) -> datetime | None:
    return None if view.started_at is None else view.started_at + timedelta(milliseconds=view.duration_ms or 0)


def _expected(status: MatviewRefreshPolicyStatus) -> timedelta:
    """The longest of the last slots that refreshed all views; without a history, of the views' own runs."""
    slots = [entry.duration_ms for entry in status.history if entry.outcome is RefreshOutcome.SUCCESS]
    views = [view.duration_ms or 0 for view in status.views if view.outcome is RefreshOutcome.SUCCESS]
    return timedelta(milliseconds=max(slots[:MEASURED_RUNS], default=sum(views)))


def _not_before(views: list[ViewStatus], failures: int) -> datetime:
    started = [view.started_at for view in views if view.started_at is not None]
    ended = [ended_at for view in views if (ended_at := _ended_at(view)) is not None]
    if not started:
        return _NEVER
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, _DOUBLINGS)) if failures else _NOTHING
    # A whole second that is not before: slots are named by the second.
    return whole_second(max(max(started) + _BETWEEN_STARTS, max(ended) + pause)) + _SECOND


def _seconds(duration: timedelta) -> int:
    """Rounded up."""
    return -(-duration // _SECOND)
