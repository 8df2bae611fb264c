"""When refreshes may start: what windows say at any instant, whatever clocks do, against a walk minute by minute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from matview_operator.api.window import Window
from matview_operator.domain.reading import read_database
from matview_operator.domain.windows import SEARCHED, never_open, outlook

MINUTE = timedelta(minutes=1)
HOUR = 3600
CHANGES = {
    # An hour forward, an hour back, in UTC; in Havana at midnight, two are half an hour beside UTC's hours.
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/Havana": ("2026-03-08T05:00", "2026-11-01T05:00"),
    "America/St_Johns": ("2026-03-08T05:30", "2026-11-01T04:30"),
    "Australia/Adelaide": ("2026-10-03T16:30", "2026-04-04T16:30"),
    "Asia/Kathmandu": ("2026-01-01T00:00", "2026-06-30T12:00"),  # none, but a quarter of an hour beside the others
}


def is_open(windows: Sequence[Window], at: datetime) -> bool:
    return outlook(windows, at).is_open


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def window(kind: str, cron: str, seconds: int, zone: str = "Etc/UTC") -> Window:
    return Window.model_validate({"kind": kind, "cron": cron, "durationSeconds": seconds, "timeZone": zone})


def deny(cron: str, seconds: int, zone: str = "Etc/UTC") -> Window:
    return window("Deny", cron, seconds, zone)


def allow(cron: str, seconds: int, zone: str = "Etc/UTC") -> Window:
    return window("Allow", cron, seconds, zone)


@cache
def fields_of(cron: str) -> CronSim:
    return CronSim(cron, datetime(2026, 1, 1))  # noqa: DTZ001 - for its fields


def looked(windows: Sequence[Window], at: datetime) -> tuple[bool, datetime]:
    found = outlook(windows, at)
    assert found.since == at
    return found.is_open, found.until


def opens_at(each: Window, moment: datetime) -> bool:
    """Whether the window opens in this minute: its local time matches, or it was left out a moment ago."""
    sim, local = fields_of(each.cron), ZoneInfo(each.time_zone)

    def matches(shown: datetime) -> bool:
        fields = shown.minute in sim.minutes and shown.hour in sim.hours and shown.month in sim.months
        return fields and sim.match_day(shown.date())

    shown, before = (instant.astimezone(local) for instant in (moment, moment - MINUTE))
    naive, naive_before = shown.replace(tzinfo=None, fold=0), before.replace(tzinfo=None, fold=0)
    if any(field.startswith("*") for field in each.cron.split()[:2]):
        return matches(naive)
    left_out = (naive_before + MINUTE * n for n in range(1, max(0, (naive - naive_before) // MINUTE)))
    return (matches(naive) and not shown.fold) or any(matches(minute) for minute in left_out)


def walk(windows: Sequence[Window], start: datetime, minutes: int) -> list[bool]:
    """Whether a refresh may start, minute by minute."""
    ends: dict[int, datetime] = {}
    longest = max((each.duration_seconds for each in windows), default=0) // 60
    told = []
    for number in range(-longest, minutes):
        moment = start + number * MINUTE
        for index, each in enumerate(windows):
            if opens_at(each, moment):
                ends[index] = moment + timedelta(seconds=each.duration_seconds)
        covering = {windows[index].kind.value for index, end in ends.items() if end > moment}
        allows = any(each.kind.value == "Allow" for each in windows)
        if number >= 0:
            told.append("Deny" not in covering and ("Allow" in covering or not allows))
    return told


CRONS = (
    "0 8 * * MON-FRI",
    "30 2 * * *",
    "0 0 * * *",
    "15,45 1-3 * * *",
    "0 */6 * * *",
    "*/20 * * * *",
    "7 22 1,25 * *",
)
WINDOWS = st.lists(
    st.builds(
        window,
        st.sampled_from(["Allow", "Deny"]),
        st.sampled_from(CRONS),
        st.sampled_from([1, 19, 20, 45, 60, 240, 600]).map(lambda minutes: minutes * 60),
        st.sampled_from([*CHANGES, "Etc/UTC"]),
    ),
    max_size=3,
)
STARTS = st.builds(
    lambda change, hours: utc(change) - timedelta(hours=hours),
    st.sampled_from([change for both in CHANGES.values() for change in both]),
    st.integers(0, 16),
)
_WALKED = 60 * 20


@settings(max_examples=40)
@given(WINDOWS, STARTS)
def test_windows_are_open_when_a_walk_minute_by_minute_finds_them_so(windows: list[Window], start: datetime) -> None:
    walked = walk(windows, start, _WALKED)
    assert [is_open(windows, start + number * MINUTE) for number in range(0, _WALKED, 13)] == walked[::13]
    for number in range(0, _WALKED, 301):
        at, told = start + number * MINUTE, walked[number]
        found = outlook(windows, at)
        assert found.is_open is told
        # Until then nothing changes, and of closed windows it is when they open.
        certain = walked[number : max(number, (found.until - start) // MINUTE)]
        assert certain == [told] * len(certain)
        if not told and found.until < start + _WALKED * MINUTE:
            assert walked[(found.until - start) // MINUTE]


def test_the_documents_example_means_what_the_document_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "windows.md").read_text()
    body = yaml.safe_load(text.split("```yaml\n", 1)[1].split("```", 1)[0])
    windows = read_database(body | {"metadata": {"name": "a", "namespace": "b", "uid": "c"}}).spec.windows
    # A Monday in November; Berlin is an hour ahead.
    assert looked(windows, utc("2026-11-23T06:59")) == (True, utc("2026-11-23T07:00"))
    assert looked(windows, utc("2026-11-23T07:00")) == (False, utc("2026-11-23T17:00"))
    assert looked(windows, utc("2026-11-30T23:00")) == (False, utc("2026-12-01T05:00"))


def test_without_windows_everything_may_start_always() -> None:
    at = utc("2026-11-22T12:00")
    assert is_open([], at)
    assert outlook([], at) == (True, at, at + SEARCHED)
    assert not never_open([], at)


def test_a_window_opens_with_its_instant_and_is_closed_at_its_end() -> None:
    nine_to_five = [deny("0 9 * * *", 8 * HOUR)]
    assert is_open(nine_to_five, utc("2026-11-22T08:59:59.999999"))
    assert not is_open(nine_to_five, utc("2026-11-22T09:00"))
    assert not is_open(nine_to_five, utc("2026-11-22T16:59:59.999999"))
    assert is_open(nine_to_five, utc("2026-11-22T17:00"))
    assert looked(nine_to_five, utc("2026-11-22T12:34:56")) == (False, utc("2026-11-22T17:00"))
    assert looked(nine_to_five, utc("2026-11-22T17:00")) == (True, utc("2026-11-23T09:00"))


def test_deny_wins_over_allow_and_one_allow_of_several_is_enough() -> None:
    windows = [
        allow("0 1 * * *", 4 * HOUR),
        allow("0 22 * * *", HOUR),
        deny("0 2 * * *", HOUR),
    ]
    hours = [hour for hour in range(24) if is_open(windows, utc("2026-11-22T00:30") + timedelta(hours=hour))]
    assert hours == [1, 3, 4, 22]
    assert looked(windows, utc("2026-11-22T02:30")) == (False, utc("2026-11-22T03:00"))
    assert looked(windows, utc("2026-11-22T05:00")) == (False, utc("2026-11-22T22:00"))
    assert looked(windows, utc("2026-11-22T23:00")) == (False, utc("2026-11-23T01:00"))


@pytest.mark.parametrize(
    ("date", "utc_end"),
    [("2026-03-28", "2026-03-29T04:00"), ("2026-10-24", "2026-10-25T04:00"), ("2026-06-30", "2026-07-01T04:00")],
    ids=["spring", "autumn", "summer"],
)
def test_a_window_lasts_as_long_as_it_says_though_clocks_are_changed(date: str, utc_end: str) -> None:
    """From 22:00 in Berlin eight hours pass, whatever the clock then shows: 07:00 in spring, 05:00 in autumn."""
    night = [deny("0 22 * * *", 8 * HOUR, "Europe/Berlin")]
    begins = datetime.fromisoformat(f"{date}T22:00").replace(tzinfo=ZoneInfo("Europe/Berlin"))
    ends = begins.astimezone(UTC) + timedelta(hours=8)
    assert looked(night, begins.astimezone(UTC)) == (False, ends)
    assert ends - utc(utc_end) in (timedelta(), timedelta(hours=1))


def test_windows_that_overlap_or_touch_are_one() -> None:
    windows = [deny("0 8 * * *", 4 * HOUR), deny("0 10 * * *", 3 * HOUR), deny("0 13 * * *", HOUR)]
    assert looked(windows, utc("2026-11-22T08:00")) == (False, utc("2026-11-22T14:00"))
    weekdays = [deny("0 0 * * MON-FRI", 24 * HOUR)]
    assert looked(weekdays, utc("2026-11-23T09:00")) == (False, utc("2026-11-28T00:00"))


@pytest.mark.parametrize(
    "windows",
    [
        [deny("* * * * *", 60)],
        [deny("*/5 * * * *", 300)],
        [deny("0 * * * *", HOUR)],
        [deny("0 0 * * *", 24 * HOUR)],
        [deny("0 8 * * *", 12 * HOUR), deny("0 20 * * *", 12 * HOUR)],
        [allow("0 2 * * *", 2 * HOUR), deny("0 1 * * *", 4 * HOUR)],
        [allow("0 2 * * MON", 2 * HOUR, "Europe/Berlin"), deny("0 0 * * MON", 24 * HOUR, "Europe/Berlin")],
    ],
    ids=repr,
)
def test_windows_that_leave_no_moment_open_are_found_out(windows: list[Window]) -> None:
    assert never_open(windows, utc("2024-01-01T00:00"))


@pytest.mark.parametrize(
    ("windows", "opens"),
    [
        ([deny("0 0 * * MON-SAT", 24 * HOUR)], "2026-11-29T00:00"),
        ([deny("0 0 1-30 * *", 24 * HOUR)], "2026-12-31T00:00"),
        ([allow("0 0 31 10 *", 60)], "2027-10-31T00:00"),
        # Of the two gaps in each hour, 40 and 20 minutes, it fills the one.
        ([deny("0,40 * * * *", 20 * 60)], "2026-11-23T12:20"),
        # In Berlin's day of 25 hours a window of 24 ends an hour before it opens again.
        ([deny("0 0 * * *", 24 * HOUR, "Europe/Berlin")], "2027-10-31T22:00"),
    ],
    ids=repr,
)
def test_a_rare_opening_is_found(windows: list[Window], opens: str) -> None:
    at = utc("2026-11-23T12:00")
    assert looked(windows, at) == (False, utc(opens))
    assert not never_open(windows, at)


def test_hostile_windows_cost_little_and_are_not_said_to_be_closed_for_ever() -> None:
    """Fifty that open every minute or hardly ever: the search ends early, and its end is when to look again."""
    hostile = [deny("0-58 * * * *", 60), deny("1-59 * * * *", 60), *[allow("59 23 29 2 *", 60, "Asia/Kathmandu")] * 49]
    at, begun = utc("2026-11-22T12:00:30"), time.process_time()
    found = outlook(hostile, at)
    dense = outlook([deny("*/2 * * * *", 60), allow("*/2 * * * *", 60)], at)
    assert time.process_time() - begun < 2
    assert not found.is_open
    assert found.until > at
    assert not dense.is_open
    assert at + timedelta(hours=12) < dense.until < at + timedelta(days=30)
    assert not never_open([deny("*/2 * * * *", 60), allow("*/2 * * * *", 60)], at)
