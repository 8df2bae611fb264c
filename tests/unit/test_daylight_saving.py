"""Daylight saving in both directions, leap days and the end of the year, against tables that were checked by hand."""

from __future__ import annotations

import shutil
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.ports import at
from tests.unit.test_schedule import SECOND, cron, utc
from tests.unit.world import World, until

GOLDEN = """
Europe/Berlin | 30 2 * * * | 2026-03-27T23:00 | 28T01:30 29T01:00 30T00:30
Europe/Berlin | 45 1,2 * * * | 2026-03-27T23:00 | 28T00:45 28T01:45 29T00:45 29T01:00 29T23:45 30T00:45
Europe/Berlin | */30 1-2 * * * | 2026-03-28T23:00 | 29T00:00 29T00:30
Europe/Berlin | 30 2 * * * | 2026-10-23T23:00 | 24T00:30 25T00:30 26T01:30
Europe/Berlin | 45 1,2 * * * | 2026-10-23T23:00 | 23T23:45 24T00:45 24T23:45 25T00:45 26T00:45 26T01:45
Europe/Berlin | */30 1-2 * * * | 2026-10-24T23:00 | 24T23:00 24T23:30 25T00:00 25T00:30 25T01:00 25T01:30
America/New_York | 30 2 * * * | 2026-03-07T05:00 | 07T07:30 08T07:00 09T06:30
America/New_York | 45 1,2 * * * | 2026-03-07T05:00 | 07T06:45 07T07:45 08T06:45 08T07:00 09T05:45 09T06:45
America/New_York | */30 1-2 * * * | 2026-03-08T05:00 | 08T06:00 08T06:30
America/New_York | 30 2 * * * | 2026-10-31T04:00 | 31T06:30 01T07:30 02T07:30
America/New_York | 45 1,2 * * * | 2026-10-31T04:00 | 31T05:45 31T06:45 01T05:45 01T07:45 02T06:45 02T07:45
America/New_York | */30 1-2 * * * | 2026-11-01T04:00 | 01T05:00 01T05:30 01T06:00 01T06:30 01T07:00 01T07:30
America/St_Johns | 30 2 * * * | 2026-03-07T03:30 | 07T06:00 08T05:30 09T05:00
America/St_Johns | 45 1,2 * * * | 2026-03-07T03:30 | 07T05:15 07T06:15 08T05:15 08T05:30 09T04:15 09T05:15
America/St_Johns | */30 1-2 * * * | 2026-03-08T03:30 | 08T04:30 08T05:00
America/St_Johns | 30 2 * * * | 2026-10-31T02:30 | 31T05:00 01T06:00 02T06:00
America/St_Johns | 45 1,2 * * * | 2026-10-31T02:30 | 31T04:15 31T05:15 01T04:15 01T06:15 02T05:15 02T06:15
America/St_Johns | */30 1-2 * * * | 2026-11-01T02:30 | 01T03:30 01T04:00 01T04:30 01T05:00 01T05:30 01T06:00
Australia/Lord_Howe | 30 2 * * * | 2026-10-02T13:30 | 02T16:00 03T15:30 04T15:30
Australia/Lord_Howe | 45 1,2 * * * | 2026-10-02T13:30 | 02T15:15 02T16:15 03T15:15 03T15:45 04T14:45 04T15:45
Australia/Lord_Howe | */30 1-2 * * * | 2026-10-03T13:30 | 03T14:30 03T15:00 03T15:30
Australia/Lord_Howe | 30 2 * * * | 2026-04-03T13:00 | 03T15:30 04T16:00 05T16:00
Australia/Lord_Howe | 45 1,2 * * * | 2026-04-03T13:00 | 03T14:45 03T15:45 04T14:45 04T16:15 05T15:15 05T16:15
Australia/Lord_Howe | */30 1-2 * * * | 2026-04-04T13:00 | 04T14:00 04T14:30 04T15:00 04T15:30 04T16:00
Pacific/Auckland | 30 2 * * * | 2026-09-25T12:00 | 25T14:30 26T14:00 27T13:30
Pacific/Auckland | 45 1,2 * * * | 2026-09-25T12:00 | 25T13:45 25T14:45 26T13:45 26T14:00 27T12:45 27T13:45
Pacific/Auckland | */30 1-2 * * * | 2026-09-26T12:00 | 26T13:00 26T13:30
Pacific/Auckland | 30 2 * * * | 2026-04-03T12:00 | 03T13:30 04T13:30 05T14:30
Pacific/Auckland | 45 1,2 * * * | 2026-04-03T12:00 | 03T12:45 03T13:45 04T12:45 04T13:45 05T13:45 05T14:45
Pacific/Auckland | */30 1-2 * * * | 2026-04-04T12:00 | 04T12:00 04T12:30 04T13:00 04T13:30 04T14:00 04T14:30
"""
"""Zone, expression, from when on, slots in UTC. A fixed time that is left out is run as soon as the clocks have
changed, one that is repeated the first time; a wildcard is run whenever the clocks show it, twice where they do so."""


@pytest.mark.parametrize("row", GOLDEN.strip().splitlines())
def test_the_day_on_which_clocks_change(row: str) -> None:
    zone, expression, start, slots = (part.strip() for part in row.split("|"))
    begin, timetable = utc(start) - SECOND, cron(expression, zone)
    expected = [utc(f"{_month(start, slot)}-{slot}") for slot in slots.split()]
    found = [begin]
    while len(found) <= len(expected):
        found.append(timetable.next_after(found[-1]))
    assert found[1:] == expected
    for number, slot in enumerate(expected, 1):
        assert timetable.newest_at(slot) == timetable.newest_at(slot + 59 * SECOND) == slot
        assert timetable.due_between(begin, slot).slots == number


CALENDAR = {
    "0 0 29 2 *": ("2026-11-22T12:00", ["2028-02-29T00:00", "2032-02-29T00:00", "2036-02-29T00:00"]),
    "0 12 L * *": ("2027-12-31T12:00", ["2028-01-31T12:00", "2028-02-29T12:00", "2028-03-31T12:00"]),
    "0 12 28-30 2 *": ("2028-02-01T00:00", ["2028-02-28T12:00", "2028-02-29T12:00", "2029-02-28T12:00"]),
    "30 23 31 12 *": ("2026-11-22T12:00", ["2026-12-31T23:30", "2027-12-31T23:30", "2028-12-31T23:30"]),
    "*/30 * * * *": ("2026-12-31T23:00", ["2026-12-31T23:30", "2027-01-01T00:00", "2027-01-01T00:30"]),
    "0 0 * * MON": ("2026-12-29T00:00", ["2027-01-04T00:00", "2027-01-11T00:00", "2027-01-18T00:00"]),
    "0 0 1 1 *": ("2099-06-01T00:00", ["2100-01-01T00:00", "2101-01-01T00:00", "2102-01-01T00:00"]),
    "0 6 29 2 MON": ("2099-02-20T00:00", ["2099-02-23T06:00", "2100-02-01T06:00", "2100-02-08T06:00"]),
}


@pytest.mark.parametrize("expression", CALENDAR)
def test_leap_days_and_the_end_of_the_year(expression: str) -> None:
    start, slots = CALENDAR[expression]
    expected = [utc(slot) for slot in slots]
    timetable = cron(expression)
    found = [timetable.next_after(utc(start))]
    found += [timetable.next_after(found[-1])]
    found += [timetable.next_after(found[-1])]
    assert found == expected
    assert timetable.newest_at(expected[-1] - SECOND) == expected[-2]
    assert timetable.due_between(utc(start), expected[-1]).slots == 3


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/St_Johns"])
def test_the_year_ends_when_it_ends_in_the_zone(zone: str) -> None:
    ends = {"Pacific/Auckland": utc("2026-12-31T11:00"), "America/St_Johns": utc("2027-01-01T03:30")}
    yearly = cron("0 0 1 1 *", zone)
    assert yearly.next_after(utc("2026-06-01T00:00")) == ends[zone]
    assert yearly.newest_at(ends[zone] + timedelta(days=1)) == ends[zone]
    assert yearly.due_between(utc("2026-06-01T00:00"), ends[zone]).slots == 1


@pytest.fixture
def lose_zone(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A time zone of the name Test/City; call this, and it is removed."""

    def lose() -> None:
        city.unlink()
        zoneinfo.ZoneInfo.clear_cache()

    (tmp_path / "Test").mkdir()
    city = tmp_path / "Test" / "City"
    berlin = next(path for each in zoneinfo.TZPATH if (path := Path(each, "Europe", "Berlin")).exists())
    shutil.copy(berlin, city)
    paths = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=[str(tmp_path), *paths])
    yield lose
    zoneinfo.reset_tzpath(to=paths)
    zoneinfo.ZoneInfo.clear_cache()


@pytest.mark.looptime(noop_cycles=3)
async def test_a_zone_that_this_process_does_not_know_is_the_error_of_that_policy_alone(
    lose_zone: Callable[[], None],
) -> None:
    former = await World().__aenter__()
    former.database()
    moved = former.policy("moved", schedule={"cron": "* * * * *", "timeZone": "Test/City"})
    other = former.policy("other", schedule={"cron": "* * * * *", "timeZone": "Europe/Berlin"})
    await until(65)
    assert sorted(former.executor.views) == ["moved", "other"]
    assert former.condition(moved, "Ready") == ("True", "Scheduled")
    await former.crash()

    lose_zone()
    async with World(former=former) as world:
        await until(185)
        assert world.condition(moved, "Stalled") == ("True", "InvalidSpec")
        said = next(each for each in world.api.status(moved)["conditions"] if each["type"] == "Stalled")
        assert "spec.schedule.timeZone: no such time zone" in said["message"]
        assert "nextSlotTime" not in world.api.status(moved)
        assert [call.at for call in world.executor.calls if str(call.run.view) == "other"] == [at(60), at(120), at(180)]
        assert world.executor.views.count("moved") == 1
        assert world.condition(other, "Fresh") == ("True", "Refreshed")
        assert world.supervisor.healthy()


@pytest.mark.looptime(noop_cycles=3)
async def test_a_zone_that_is_lost_while_the_operator_runs_stops_no_timers(lose_zone: Callable[[], None]) -> None:
    async with World() as world:
        world.database()
        world.policy("moved", schedule={"cron": "* * * * *", "timeZone": "Test/City"})
        world.policy("other", schedule={"cron": "* * * * *", "timeZone": "Europe/Berlin"})
        await until(65)
        lose_zone()
        await until(605)
        assert world.executor.views.count("other") == 10
        assert world.supervisor.healthy()


def _month(start: str, slot: str) -> str:
    """The month of a day that is at most three after the start."""
    first = utc(start)
    day = next(day for n in range(4) if f"{(day := first + timedelta(days=n)):%d}" == slot[:2])
    return f"{day:%Y-%m}"
