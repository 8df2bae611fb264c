"""When a policy is due: slots are instants that cron or a fixed interval determine, never a process's start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from matview_operator.api.policy import Schedule
from matview_operator.domain.cron import Calendar, calendar
from matview_operator.domain.local_time import changes, first_change, last_change, offset_at

_DAY = timedelta(days=1)
"""No change of clocks leaves out or repeats more."""
_INSTANT = timedelta(microseconds=1)
_FEW = 3
_REMEMBERED = 1024


class Due(NamedTuple):
    """What a schedule owes at an instant."""

    slots: int
    newest: datetime | None
    """None if nothing is due."""
    following: datetime
    """The first slot that is not due yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """The slots of one schedule, all in UTC. The schedule has passed check_policy."""

    schedule: Schedule
    jitter_seconds: int = 0
    delay: timedelta = timedelta()
    """The policy's part of the jitter, by which all its slots come later than the schedule's instants."""
    begins_after: timedelta = timedelta()
    """How long after a slot, which is a whole second, it is begun; less than a second."""

    def next_after(self, instant: datetime) -> datetime:
        """The first slot strictly after this instant."""
        return self._next_after(instant - self.delay) + self.delay

    def newest_at(self, instant: datetime) -> datetime:
        """The newest slot at or before this instant."""
        return self._newest_at(instant - self.delay) + self.delay

    def due_between(self, after: datetime, until: datetime) -> Due:
        """What became due after the one instant, up to and including the other, and what will be next."""
        following = self.next_after(max(after, until))
        newest = self.newest_at(until)
        if newest <= after:
            return Due(0, None, following)
        return Due(self._count(after - self.delay, until - self.delay), newest, following)

    def least_gap(self, instant: datetime) -> timedelta:
        """How soon one of the next few slots follows on another."""
        slots = [self.next_after(instant)]
        while len(slots) < _FEW:
            slots.append(self.next_after(slots[-1]))
        return min(later - sooner for sooner, later in pairwise(slots))

    def describe(self) -> str:
        """The schedule in words, for `kubectl get`."""
        every, jitter = self.schedule.every_seconds, f" jitter {self.jitter_seconds}s" if self.jitter_seconds else ""
        return (f"{self.schedule.cron} {self.schedule.time_zone}" if every is None else f"every {every}s") + jitter

    @property
    def _cron(self) -> tuple[str, str]:
        return self.schedule.cron or "", self.schedule.time_zone

    def _next_after(self, instant: datetime) -> datetime:
        every = self.schedule.every_seconds
        if every is not None:
            return _multiple(instant, every) + timedelta(seconds=every)
        return _cron_next(*self._cron, whole_second(instant))

    def _newest_at(self, instant: datetime) -> datetime:
        every = self.schedule.every_seconds
        if every is not None:
            return _multiple(instant, every)
        return _cron_newest(*self._cron, whole_second(instant))

    def _count(self, after: datetime, until: datetime) -> int:
        every = self.schedule.every_seconds
        if every is not None:
            return (_multiple(until, every) - _multiple(after, every)) // timedelta(seconds=every)
        return _cron_count(*self._cron, whole_second(after), whole_second(until))


def whole_second(instant: datetime) -> datetime:
    """The newest whole second: all slots are, so that nothing is due between two of them."""
    return instant.replace(microsecond=0)


# A thousand policies of one schedule ask the same within one second, and each of them more than once.
@lru_cache(maxsize=_REMEMBERED)
def _cron_next(cron: str, zone: str, instant: datetime) -> datetime:
    fields = calendar(cron)
    begin = instant
    offset, low = _from(fields, zone, instant)
    while True:
        slot = max(begin, _utc(fields.first_from(low), offset))
        change = first_change(zone, after=begin, until=slot)
        if change is None:
            return slot
        begin, offset = change.at, change.after
        low = _local(begin, change.before if fields.is_fixed else change.after)


@lru_cache(maxsize=_REMEMBERED)
def _cron_newest(cron: str, zone: str, instant: datetime) -> datetime:
    fields = calendar(cron)
    end, offset = instant, offset_at(zone, instant)
    high = _local(end, offset)
    while True:
        local = fields.last_to(high)
        slot = _utc(local, offset)
        change = last_change(zone, after=slot - _DAY, until=end)
        if change is None:
            return slot
        if local >= _local(change.at, change.before if fields.is_fixed else change.after):
            return max(change.at, slot)
        end, offset = change.at - _INSTANT, change.before
        high = _local(end, offset)


@lru_cache(maxsize=_REMEMBERED)
def _cron_count(cron: str, zone: str, after: datetime, until: datetime) -> int:
    fields, slots = calendar(cron), 0
    offset, low = _from(fields, zone, after)
    for change in changes(zone, after=after, until=until):
        slots += fields.count(low, _local(change.at, offset))
        offset, low = change.after, _local(change.at, change.after)
        if fields.is_fixed:
            left_out_from, low = _local(change.at, change.before), max(low, _local(change.at, change.before))
            if left_out_from < low and fields.count(left_out_from, low + _INSTANT):
                # All that is left out, and what is at its end, is one slot.
                slots, low = slots + 1, low + _INSTANT
    return slots + fields.count(low, _local(until, offset) + _INSTANT)


def _from(fields: Calendar, zone: str, instant: datetime) -> tuple[timedelta, datetime]:
    """Where slots after an instant begin: by this offset, from this local time on."""
    offset = offset_at(zone, instant)
    low = _local(instant, offset) + _INSTANT
    change = last_change(zone, after=instant - _DAY, until=instant)
    if change is not None and fields.is_fixed:
        low = max(low, _local(change.at, change.before))  # what is shown for the second time had its slot
    return offset, low


def _local(instant: datetime, offset: timedelta) -> datetime:
    return instant.astimezone(UTC).replace(tzinfo=None) + offset


def _utc(local: datetime, offset: timedelta) -> datetime:
    return (local - offset).replace(tzinfo=UTC)


def _multiple(instant: datetime, seconds: int) -> datetime:
    """The newest multiple of the interval since the epoch, so that restarts move nothing."""
    return datetime.fromtimestamp(int(instant.timestamp()) // seconds * seconds, UTC)
