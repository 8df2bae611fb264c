"""When a policy is due: slots are instants that cron or a fixed interval determine, never a process's start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from matview_operator.api.policy import Schedule

COUNTED_SLOTS = 1000
"""A gap is counted up to here; a cron expression has to be walked slot by slot."""

_SECOND = timedelta(seconds=1)
_NOTHING = timedelta()


class Due(NamedTuple):
    """What a schedule owes at an instant."""

    slots: int
    """At most COUNTED_SLOTS."""
    newest: datetime | None
    """None if nothing is due."""
    following: datetime
    """The first slot that is not due yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """The slots of one schedule, all in UTC. The schedule has passed check_policy."""

    schedule: Schedule

    def next_after(self, instant: datetime) -> datetime:
        """The first slot strictly after this instant."""
        if self.schedule.every_seconds is not None:
            return _multiple(instant, self.schedule.every_seconds) + timedelta(seconds=self.schedule.every_seconds)
        return next(self._after(instant))

    def newest_at(self, instant: datetime) -> datetime:
        """The newest slot at or before this instant."""
        if self.schedule.every_seconds is not None:
            return _multiple(instant, self.schedule.every_seconds)
        local = instant.astimezone(self._zone)
        # In the second passing of an hour that autumn repeats, cronsim would not look at the first one's end.
        repeated = (local.replace(fold=0).utcoffset() or _NOTHING) - (local.utcoffset() or _NOTHING)
        start = (instant.replace(microsecond=0) + _SECOND + repeated).astimezone(self._zone)
        slots = (slot.astimezone(UTC) for slot in CronSim(self.schedule.cron or "", start, reverse=True))
        return next(slot for slot in slots if slot <= instant)

    def due_between(self, after: datetime, until: datetime) -> Due:
        """What became due after the one instant, up to and including the other, and what will be next."""
        every = self.schedule.every_seconds
        if every is not None:
            newest = _multiple(until, every)
            gap = (newest - _multiple(after, every)) // timedelta(seconds=every)
            following = max(newest, _multiple(after, every)) + timedelta(seconds=every)
            return Due(min(gap, COUNTED_SLOTS), newest, following) if gap > 0 else Due(0, None, following)
        count, newest_yet = 0, None
        for slot in self._after(after):
            if slot > until:
                return Due(count, newest_yet, slot)
            count, newest_yet = count + 1, slot
            if count == COUNTED_SLOTS:
                break
        return Due(count, self.newest_at(until), self.next_after(until))

    def describe(self) -> str:
        """The schedule in words, for `kubectl get`."""
        if self.schedule.every_seconds is not None:
            return f"every {self.schedule.every_seconds}s"
        return f"{self.schedule.cron} {self.schedule.time_zone}"

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.schedule.time_zone)

    def _after(self, instant: datetime) -> Iterator[datetime]:
        # cronsim, not croniter: at the autumn change of clocks a job at 02:30 is due once.
        for slot in CronSim(self.schedule.cron or "", instant.astimezone(self._zone)):
            due = slot.astimezone(UTC)
            # In the hour's second passing cronsim begins with slots of the first one, which are over.
            if due > instant:
                yield due


def _multiple(instant: datetime, seconds: int) -> datetime:
    """The newest multiple of the interval since the epoch, so that restarts move nothing."""
    return datetime.fromtimestamp(int(instant.timestamp()) // seconds * seconds, UTC)
