"""A cron expression as a calendar of local dates and times, which are searched and counted, never walked."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise

from cronsim import CronSim

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_MINUTES_OF_HOUR = 60
_FEW_DAYS = 7
"""So many are looked at one by one: the usual gap needs no table of a year for each of ten thousand policies."""


@dataclass(frozen=True, slots=True, eq=False)
class Calendar:
    """The local times, without a zone, that an expression matches."""

    fields: CronSim
    minutes: tuple[int, ...]
    """Of a day that matches, counted from midnight."""
    is_fixed: bool
    """Whether it names its times of day, like `30 2 * * *`: such a one is run once when clocks change. One with a
    wildcard for minutes or hours runs whenever its local time is shown. So does Debian's cron."""
    shortest_gap: timedelta
    """Between two times of a day, or the last of one and the first of the next."""
    longest_gap: timedelta

    def matches(self, day: date) -> bool:
        """Whether it has times on this day."""
        return day.month in self.fields.months and self.fields.match_day(day)

    def first_from(self, local: datetime) -> datetime:
        """The first match at or after a local time."""
        day = local.date()
        if self.matches(day):
            place = bisect_left(self.minutes, _minutes_until(local))
            if place < len(self.minutes):
                return self._at(day, place)
        day += _DAY
        while not self.matches(day):
            is_other_month = day.month not in self.fields.months
            day = (day.replace(day=1) + 32 * _DAY).replace(day=1) if is_other_month else day + _DAY
        return self._at(day, 0)

    def last_to(self, local: datetime) -> datetime:
        """The last match at or before a local time."""
        day = local.date()
        if self.matches(day):
            place = bisect_right(self.minutes, (local - _midnight(day)) // _MINUTE)
            if place > 0:
                return self._at(day, place - 1)
        day -= _DAY
        while not self.matches(day):
            is_other_month = day.month not in self.fields.months
            day = day.replace(day=1) - _DAY if is_other_month else day - _DAY
        return self._at(day, len(self.minutes) - 1)

    def count(self, start: datetime, end: datetime) -> int:
        """How many matches there are from the one local time on, before the other."""
        if end <= start:
            return 0
        days = self._days(start.date(), end.date())
        return days * len(self.minutes) - self._earlier_that_day(start) + self._earlier_that_day(end)

    def _days(self, start: date, end: date) -> int:
        """How many days match from the one on, before the other."""
        if (end - start).days <= _FEW_DAYS:
            return sum(self.matches(start + number * _DAY) for number in range((end - start).days))
        return sum(
            bisect_left(days, end.toordinal()) - bisect_left(days, start.toordinal())
            for days in (_matching_days(self, year) for year in range(start.year, end.year + 1))
        )

    def _earlier_that_day(self, local: datetime) -> int:
        return bisect_left(self.minutes, _minutes_until(local)) if self.matches(local.date()) else 0

    def _at(self, day: date, place: int) -> datetime:
        return _midnight(day) + self.minutes[place] * _MINUTE


@lru_cache(maxsize=1024)
def calendar(expression: str) -> Calendar:
    """Read an expression of five fields. It has passed check_policy."""
    fields = CronSim(expression, datetime(2024, 1, 1))  # noqa: DTZ001 - only its fields are used, which have no zone
    minutes = tuple(sorted(_MINUTES_OF_HOUR * hour + minute for hour in fields.hours for minute in fields.minutes))
    gaps = [later - earlier for earlier, later in pairwise((*minutes, minutes[0] + _DAY // _MINUTE))]
    return Calendar(
        fields=fields,
        minutes=minutes,
        is_fixed=not any(field.startswith("*") for field in fields.parts[1:3]),
        shortest_gap=min(gaps) * _MINUTE,
        longest_gap=max(gaps) * _MINUTE,
    )


@lru_cache(maxsize=512)
def _matching_days(of: Calendar, year: int) -> tuple[int, ...]:
    """Ordinals, in order; only long gaps are counted by them."""
    first = date(year, 1, 1)
    days = (first + number * _DAY for number in range(366))
    return tuple(day.toordinal() for day in days if day.year == year and of.matches(day))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


def _minutes_until(local: datetime) -> int:
    """Minutes from midnight, rounded up."""
    return -((_midnight(local.date()) - local) // _MINUTE)
