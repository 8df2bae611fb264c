"""When a policy is due: slots are instants that cron or a fixed interval determine, never a process's start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from matview_operator.api.policy import Schedule

COUNTED_SLOTS = 1000
"""A gap is counted up to here; a cron expression has to be walked slot by slot."""

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """The slots of one schedule, all in UTC. The schedule has passed check_policy."""

    schedule: Schedule

    def next_after(self, instant: datetime) -> datetime:
        """The first slot strictly after this instant."""
        if self.schedule.every_seconds is not None:
            return _multiple(instant, self.schedule.every_seconds) + timedelta(seconds=self.schedule.every_seconds)
        return self._walk(instant, reverse=False)

    def newest_at(self, instant: datetime) -> datetime:
        """The newest slot at or before this instant."""
        if self.schedule.every_seconds is not None:
            return _multiple(instant, self.schedule.every_seconds)
        return self._walk(instant.replace(microsecond=0) + _SECOND, reverse=True)

    def count_between(self, after: datetime, until: datetime) -> int:
        """How many slots lie after the one instant, up to and including the other; at most COUNTED_SLOTS."""
        if self.schedule.every_seconds is not None:
            every = timedelta(seconds=self.schedule.every_seconds)
            gap = _multiple(until, self.schedule.every_seconds) - _multiple(after, self.schedule.every_seconds)
            return min(max(0, gap // every), COUNTED_SLOTS)
        count, slot = 0, self.next_after(after)
        while slot <= until and count < COUNTED_SLOTS:
            count, slot = count + 1, self.next_after(slot)
        return count

    def describe(self) -> str:
        """The schedule in words, for `kubectl get`."""
        if self.schedule.every_seconds is not None:
            return f"every {self.schedule.every_seconds}s"
        return f"{self.schedule.cron} {self.schedule.time_zone}"

    def _walk(self, start: datetime, *, reverse: bool) -> datetime:
        local = start.astimezone(ZoneInfo(self.schedule.time_zone))
        # cronsim, not croniter: at the autumn change of clocks a job at 02:30 is due once.
        return next(CronSim(self.schedule.cron or "", local, reverse=reverse)).astimezone(UTC)


def _multiple(instant: datetime, seconds: int) -> datetime:
    """The newest multiple of the interval since the epoch, so that restarts move nothing."""
    return datetime.fromtimestamp(int(instant.timestamp()) // seconds * seconds, UTC)
