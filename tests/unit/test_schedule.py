"""When a policy is due: anchored to the epoch or to a zone's local time, whatever its clocks do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.api.policy import Schedule
from matview_operator.domain.schedule import Due, Timetable

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

CHANGES = {
    # Forward and back again, in UTC, by an hour but for Lord Howe; from there to Santiago they live in the south.
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    "America/Havana": ("2026-03-08T05:00", "2026-11-01T05:00"),  # at midnight
    "America/St_Johns": ("2026-03-08T05:30", "2026-11-01T04:30"),  # half an hour beside UTC's hours
    "Australia/Adelaide": ("2026-10-03T16:30", "2026-04-04T16:30"),  # half an hour, too
    "Australia/Lord_Howe": ("2026-10-03T15:30", "2026-04-04T15:00"),  # by half an hour
    "Pacific/Auckland": ("2026-09-26T14:00", "2026-04-04T14:00"),
    "America/Santiago": ("2026-09-06T04:00", "2026-04-05T03:00"),
    "Africa/Cairo": ("2026-04-23T22:00", "2026-10-29T21:00"),
}
CRONS = (
    "30 2 * * *",
    "0 2 * * *",
    "0,30 1,2 * * *",
    "15 0 * * *",
    "45 23 * * *",
    "7 0-3 * * SUN",
    "*/15 * * * *",
    "0 * * * *",
    "20 */2 * * *",
    "*/20 1-3 * * *",
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cron(expression: str, zone: str = "Etc/UTC") -> Timetable:
    return Timetable(schedule=Schedule(cron=expression, time_zone=zone))


def every(seconds: int) -> Timetable:
    return Timetable(schedule=Schedule(every_seconds=seconds))


def slots_minute_by_minute(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Work out the slots by looking at every minute's local time.

    Jobs at fixed times run once: in an hour that is left out at its end, in a repeated one the first time.
    Jobs with a wildcard for minutes or hours run whenever the local time matches.
    """
    sim, local = CronSim(expression, datetime(2026, 1, 1)), ZoneInfo(zone)  # noqa: DTZ001 - for its parsed fields only

    def matches(shown: datetime) -> bool:
        fields = shown.minute in sim.minutes and shown.hour in sim.hours and shown.month in sim.months
        return fields and sim.match_day(shown.date())

    fixed = not any(field.startswith("*") for field in expression.split()[:2])
    found: list[datetime] = []
    before = (start - MINUTE).astimezone(local).replace(tzinfo=None)
    moment = start
    while moment <= end:
        shown = moment.astimezone(local)
        naive, fold = shown.replace(tzinfo=None, fold=0), shown.fold
        left_out = (before + MINUTE * n for n in range(1, (naive - before) // MINUTE))
        if (matches(naive) and not (fixed and fold)) or (fixed and any(matches(minute) for minute in left_out)):
            found.append(moment)
        before = naive
        moment += MINUTE
    return found


@pytest.mark.parametrize("zone", CHANGES)
@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "back"])
def test_changes_of_clocks_neither_lose_nor_repeat_a_slot(zone: str, direction: int) -> None:
    change = utc(CHANGES[zone][direction])
    before, after = ((change + hours).astimezone(ZoneInfo(zone)).utcoffset() for hours in (-MINUTE, MINUTE))
    assert before is not None
    assert after is not None
    by = timedelta(minutes=30 if zone == "Australia/Lord_Howe" else 60)
    assert after - before == (by, -by)[direction]  # else the table above is wrong
    start, end = change - timedelta(hours=5), change + timedelta(hours=5)
    for expression in CRONS:
        timetable = cron(expression, zone)
        expected = slots_minute_by_minute(expression, zone, start, end)
        found = []
        slot = timetable.next_after(start - SECOND)
        while slot <= end:
            found.append(slot)
            following = timetable.next_after(slot)
            assert following > slot, expression
            slot = following
        assert found == expected, expression
        # From every instant both ways, also from within the hour that is repeated.
        for minutes in range(60, 600, 11):
            now = start + minutes * MINUTE
            past = [slot for slot in expected if slot <= now]
            future = [slot for slot in expected if slot > now]
            assert not past or timetable.newest_at(now) == past[-1], (expression, now)
            assert not future or timetable.next_after(now) == future[0], (expression, now)


def test_a_slot_in_the_repeated_hour_is_never_ahead_of_its_own_past() -> None:
    """The next slot once lay before the instant it was asked for: timers that believe it never come to an end."""
    nightly = cron("30 2 * * *", "Europe/Berlin")
    again = utc("2026-10-25T01:10")  # 02:10 for the second time
    assert nightly.next_after(again) == utc("2026-10-26T01:30")
    assert nightly.newest_at(again) == utc("2026-10-25T00:30")
    assert nightly.due_between(utc("2026-10-25T00:29:59"), again) == Due(
        1, utc("2026-10-25T00:30"), utc("2026-10-26T01:30")
    )


def test_every_seconds_is_anchored_to_the_epoch_not_to_any_process() -> None:
    assert every(30).next_after(utc("2026-11-22T12:00:07.25")) == utc("2026-11-22T12:00:30")
    assert every(30).next_after(utc("2026-11-22T12:00:30")) == utc("2026-11-22T12:01:00")
    assert every(30).newest_at(utc("2026-11-22T12:00:30")) == utc("2026-11-22T12:00:30")
    assert every(30).newest_at(utc("2026-11-22T12:00:29.999999")) == utc("2026-11-22T12:00:00")
    # An interval that divides no day goes on through midnight and through years.
    assert every(7000).newest_at(utc("2026-11-22T12:00")).timestamp() % 7000 == 0
    assert every(7000).next_after(utc("2026-12-31T23:59:59")).timestamp() % 7000 == 0


def test_cron_means_the_local_time_of_its_zone() -> None:
    assert cron("0 8 * * *", "Europe/Berlin").next_after(utc("2026-01-10T00:00")) == utc("2026-01-10T07:00")
    assert cron("0 8 * * *", "Europe/Berlin").next_after(utc("2026-07-10T00:00")) == utc("2026-07-10T06:00")
    assert cron("0 8 * * *", "Asia/Kolkata").next_after(utc("2026-07-10T00:00")) == utc("2026-07-10T02:30")
    assert cron("0 8 * * *", "Asia/Kathmandu").next_after(utc("2026-07-10T00:00")) == utc("2026-07-10T02:15")
    assert cron("0 8 * * *").next_after(utc("2026-07-10T08:00")) == utc("2026-07-11T08:00")


def test_leap_days_and_the_ends_of_months_and_years() -> None:
    leap = cron("0 0 29 2 *")
    assert leap.next_after(utc("2026-11-22T12:00")) == utc("2028-02-29T00:00")
    assert leap.newest_at(utc("2026-11-22T12:00")) == utc("2024-02-29T00:00")
    last = cron("59 23 31 12 *", "Pacific/Auckland")
    assert last.next_after(utc("2026-12-31T10:58:59")) == utc("2026-12-31T10:59")
    assert last.next_after(utc("2026-12-31T10:59")) == utc("2027-12-31T10:59")
    assert cron("0 0 31 * *").next_after(utc("2026-03-31T00:00")) == utc("2026-05-31T00:00")
    assert cron("0 9 * * MON-FRI").next_after(utc("2026-12-31T09:00")) == utc("2027-01-01T09:00")


def test_the_schedule_in_words() -> None:
    assert every(30).describe() == "every 30s"
    assert cron("*/5 * * * *", "Europe/Berlin").describe() == "*/5 * * * * Europe/Berlin"


TIMETABLES = st.one_of(
    st.builds(every, st.integers(5, 31_536_000)),
    st.builds(cron, st.sampled_from(CRONS), st.sampled_from([*CHANGES, "Etc/UTC", "Asia/Kolkata"])),
)
INSTANTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)).map(  # noqa: DTZ001 - made aware below
    lambda naive: naive.replace(tzinfo=UTC)
)


@given(TIMETABLES, INSTANTS)
def test_the_newest_slot_is_not_after_now_the_next_one_is_and_there_is_none_between(
    timetable: Timetable, now: datetime
) -> None:
    newest, following = timetable.newest_at(now), timetable.next_after(now)
    assert newest <= now < following
    assert timetable.next_after(newest) == following
    assert timetable.newest_at(newest) == newest
    assert timetable.newest_at(following) == following
    assert timetable.newest_at(following - timedelta(microseconds=1)) == newest


@given(TIMETABLES, INSTANTS, st.integers(0, 40))
def test_what_is_due_is_every_slot_since(timetable: Timetable, after: datetime, number: int) -> None:
    walked = [timetable.next_after(after)]
    for _ in range(number):
        walked.append(timetable.next_after(walked[-1]))
    newest, following = ([None, *walked][-2], walked[-1])
    until = following - timedelta(microseconds=1)
    assert timetable.due_between(after, until) == Due(number, newest, following)


def test_a_clock_that_was_set_back_owes_nothing_until_it_has_caught_up() -> None:
    taken_until = utc("2026-11-22T12:00:00")
    for timetable in (cron("* * * * *"), every(60)):
        due = timetable.due_between(taken_until, taken_until - timedelta(hours=1))
        assert due == Due(0, None, utc("2026-11-22T12:01"))
