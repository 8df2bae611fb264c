"""When the clocks of a time zone change. Between two changes local time is UTC and an offset."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_NOTHING = timedelta()


class Change(NamedTuple):
    """Clocks go from one offset to another."""

    at: datetime
    """UTC; the first second of the new offset."""
    before: timedelta
    after: timedelta


def offset_at(zone: str, instant: datetime) -> timedelta:
    """How far the zone's clocks are ahead of UTC."""
    return instant.astimezone(ZoneInfo(zone)).utcoffset() or _NOTHING


def first_change(zone: str, *, after: datetime, until: datetime) -> Change | None:
    """The first change after the one instant, up to and including the other."""
    return next(changes(zone, after=after, until=until), None)


def last_change(zone: str, *, after: datetime, until: datetime) -> Change | None:
    """The last change after the one instant, up to and including the other."""
    for year in range(until.year, after.year - 1, -1):
        for change in reversed(_changes_in(zone, year)):
            if change.at <= until:
                return change if change.at > after else None
    return None


def changes(zone: str, *, after: datetime, until: datetime) -> Iterator[Change]:
    """The changes after the one instant, up to and including the other."""
    for year in range(after.year, until.year + 1):
        yield from (change for change in _changes_in(zone, year) if after < change.at <= until)


@lru_cache(maxsize=1024)
def _changes_in(zone: str, year: int) -> tuple[Change, ...]:
    """The changes of a year of UTC. No zone's clocks have ever changed twice within a day."""
    found: list[Change] = []
    day = datetime(year, 1, 1, tzinfo=UTC) - _SECOND if year > 1 else datetime(1, 1, 2, tzinfo=UTC)
    before = offset_at(zone, day)
    while day.year <= year and day < _LAST_DAY:
        after = offset_at(zone, day + _DAY)
        if after != before:
            at = _turn(zone, day, day + _DAY, before)
            if at.year == year:
                found.append(Change(at, before, after))
        day, before = day + _DAY, after
    return tuple(found)


_LAST_DAY = datetime(9999, 12, 30, tzinfo=UTC)


def _turn(zone: str, early: datetime, late: datetime, before: timedelta) -> datetime:
    """The first whole second without the offset of before, by halving."""
    while late - early > _SECOND:
        middle = early + (late - early) // 2
        middle = middle.replace(microsecond=0)
        if offset_at(zone, middle) == before:
            early = middle
        else:
            late = middle
    return late
