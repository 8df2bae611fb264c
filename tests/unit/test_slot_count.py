"""Slots of a gap are counted as walking would count them, and a gap of ten years as fast as one of a minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import perf_counter
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.test_schedule import MINUTE, SECOND, cron, every, slots_minute_by_minute, utc

from matview_operator.domain.local_time import Change, changes
from matview_operator.domain.schedule import Due, Timetable

ZONES = (
    "Etc/UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Auckland",
    "America/Havana",  # at midnight
    "Africa/Casablanca",  # not in winter and summer, but around Ramadan
    "Africa/Cairo",  # no changes for years, then again
    "Antarctica/Troll",  # by two hours
    "Pacific/Apia",  # left out a whole day in 2011
    "Asia/Kathmandu",
)


def field(lowest: int, highest: int) -> st.SearchStrategy[str]:
    """One field: all, a step, a number, a range, a range with a step, a list."""
    number = st.integers(lowest, highest)
    ends = st.tuples(number, number).map(sorted)
    return st.one_of(
        st.just("*"),
        st.integers(1, highest).map("*/{}".format),
        number.map(str),
        ends.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(ends, st.integers(1, 20)).map(lambda each: f"{each[0][0]}-{each[0][1]}/{each[1]}"),
        st.lists(number, min_size=2, max_size=6).map(lambda numbers: ",".join(map(str, numbers))),
    )


EXPRESSIONS = st.tuples(
    field(0, 59),
    field(0, 23),
    st.one_of(st.just("*"), field(1, 31), st.sampled_from(["L", "LW", "1,L"])),
    st.one_of(st.just("*"), field(1, 12)),
    st.one_of(st.just("*"), field(0, 7), st.sampled_from(["MON-FRI", "SUN#2", "5L"])),
).map(" ".join)
INSTANTS = st.integers(int(utc("1975-01-01").timestamp()), int(utc("2060-01-01").timestamp())).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC)
)


def by_cronsim(expression: str, after: datetime) -> Iterator[datetime]:
    """Slots in UTC as the library walks them; nothing for an expression that it refuses."""
    try:
        yield from CronSim(expression, after)
    except CronSimError:
        return


def by_walking(timetable: Timetable, after: datetime, until: datetime, *, most: int) -> Due | None:
    """What is due by taking one slot after the other; None if that are too many."""
    count, newest, following = 0, None, timetable.next_after(after)
    while following <= until:
        count, newest, following = count + 1, following, timetable.next_after(following)
        if count > most:
            return None
    return Due(count, newest, following)


@given(EXPRESSIONS, INSTANTS, st.integers(1, 300))
@settings(max_examples=300)
def test_without_changes_of_clocks_slots_are_the_ones_that_cronsim_walks(
    expression: str, after: datetime, number: int
) -> None:
    walk = by_cronsim(expression, after)
    slots = [slot for slot, _ in zip(walk, range(number + 1), strict=False)]
    assume(len(slots) == number + 1)
    assert cron(expression).next_after(after) == slots[0]
    assert cron(expression).newest_at(slots[-1] - SECOND) == slots[-2]
    assert cron(expression).due_between(after, slots[-1] - SECOND) == Due(number, slots[-2], slots[-1])


@given(EXPRESSIONS, st.sampled_from(ZONES), INSTANTS, st.integers(0, 20 * 366 * 86_400))
@settings(max_examples=300)
def test_a_gap_in_any_zone_is_counted_as_walking_counts_it(
    expression: str, zone: str, after: datetime, seconds: int
) -> None:
    assume(next(by_cronsim(expression, after), None) is not None)
    timetable = cron(expression, zone)
    walked = by_walking(timetable, after, after + timedelta(seconds=seconds), most=3000)
    if walked is None:
        # Too many to walk: a gap of some days at its end, where clocks may have changed in between.
        after += timedelta(seconds=max(0, seconds - 3 * 86_400))
        seconds = min(seconds, 3 * 86_400)
        walked = by_walking(timetable, after, after + timedelta(seconds=seconds), most=6000)
    assert timetable.due_between(after, after + timedelta(seconds=seconds)) == walked


def all_changes(zone: str) -> list[Change]:
    return list(changes(zone, after=utc("2005-01-01"), until=utc("2040-01-01")))


@given(st.data(), EXPRESSIONS, st.sampled_from([zone for zone in ZONES if all_changes(zone)]))
@settings(max_examples=300)
def test_around_a_change_slots_are_the_ones_that_each_minutes_local_time_says(
    data: st.DataObject, expression: str, zone: str
) -> None:
    change = data.draw(st.sampled_from(all_changes(zone)))
    minute, hour, *_ = expression.split()
    expression = f"{minute} {hour} * * *"  # else hardly one falls on this day
    start, end = change.at - timedelta(hours=6), change.at + timedelta(hours=7)
    expected = slots_minute_by_minute(expression, zone, start, end)
    after = start + data.draw(st.integers(-1, 700)) * MINUTE
    until = after + data.draw(st.integers(0, (end - after) // MINUTE)) * MINUTE
    due = cron(expression, zone).due_between(after, until)
    slots = [slot for slot in expected if after < slot <= until]
    assert (due.slots, due.newest) == (len(slots), max(slots, default=None))
    later = [slot for slot in expected if slot > until]
    assert due.following == later[0] if later else due.following > end


@pytest.mark.parametrize("zone", ZONES)
def test_changes_are_found_where_the_clocks_really_change(zone: str) -> None:
    moment, found = utc("2011-12-01T00:00"), []
    while moment < utc("2013-01-01T00:00"):
        before, after = ((moment + step).astimezone(ZoneInfo(zone)).utcoffset() for step in (-SECOND, SECOND * 0))
        if before != after:
            found.append((moment, before, after))
        moment += 15 * MINUTE
    assert [*changes(zone, after=utc("2011-12-01T00:00"), until=utc("2013-01-01T00:00"))] == found


@pytest.mark.parametrize("zone", ["Etc/UTC", "Europe/Berlin"])
def test_ten_years_of_every_minute_are_counted_exactly_and_as_fast_as_one_minute(zone: str) -> None:
    timetable, until = cron("* * * * *", zone), utc("2026-11-22T12:00:30")
    took = {}
    for gap in (MINUTE, timedelta(days=365), timedelta(days=3653)):
        due = timetable.due_between(until - gap, until)
        assert due == Due(gap // MINUTE, utc("2026-11-22T12:00"), utc("2026-11-22T12:01"))
        took[gap] = min(_seconds(timetable, until - gap, until) for _ in range(50))
    # Walking ten years takes a million times as long as walking a minute.
    assert took[timedelta(days=3653)] < 20 * took[MINUTE]
    assert took[timedelta(days=365)] < 10 * took[MINUTE]


def test_a_long_gap_of_a_fixed_interval_is_counted_exactly() -> None:
    until = utc("2026-11-22T12:00:30")
    due = every(60).due_between(until - timedelta(days=3653), until)
    assert due == Due(3653 * 1440, utc("2026-11-22T12:00"), utc("2026-11-22T12:01"))


def _seconds(timetable: Timetable, after: datetime, until: datetime) -> float:
    begun = perf_counter()
    timetable.due_between(after, until)
    return perf_counter() - begun
