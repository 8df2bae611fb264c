"""The demo's books: what counts as due, and what became of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.demo.policies import Policy
from sandbox.demo.summary import totals, verdict
from sandbox.demo.tally import Tally, percentile

if TYPE_CHECKING:
    from sandbox.demo.tally import Line

CREATED = datetime(2026, 3, 29, 0, 59, 50, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return CREATED + timedelta(seconds=seconds)


def entry(seconds: float | None, outcome: str = "SUCCESS", *, late_ms: float = 3, took_ms: int = 20) -> dict[str, Any]:
    slot = None if seconds is None else at(seconds)
    started = (slot or CREATED) + timedelta(milliseconds=late_ms)
    return {
        **({"slotTime": slot.isoformat()} if slot else {"request": "now"}),
        "outcome": outcome,
        "startedAt": started.isoformat(),
        "durationMs": took_ms,
        "views": 1,
        "failed": 0,
    }


def policy(*history: dict[str, Any], name: str = "revenue", generation: int = 1, **spec: Any) -> Policy:
    """A policy as the API server tells it; `spec` may hold suspend and schedule."""
    return Policy.read(
        {
            "metadata": {
                "uid": f"uid-of-{name}",
                "namespace": "tenant-a",
                "name": name,
                "generation": generation,
                "creationTimestamp": CREATED.isoformat(),
            },
            "spec": {"schedule": {"everySeconds": 5}, **spec},
            "status": {"history": list(history)},
        }
    )


def only(tally: Tally) -> Line:
    (line,) = tally.lines()
    return line


def test_every_slot_after_the_creation_counts_once_however_often_it_is_seen() -> None:
    tally = Tally()
    tally.observe([policy()], now=at(4.9))
    assert only(tally).due == 0
    assert not only(tally).good  # due every few seconds, and nothing was seen
    tally.observe([policy(entry(5))], now=at(5.1))
    tally.observe([policy(entry(5))], now=at(5.6))
    tally.observe([policy(entry(15, "SKIPPED_COVERED"), entry(10), entry(5))], now=at(15.2))
    line = only(tally)
    assert (line.due, line.refreshed, line.covered, line.failed, line.missed) == (3, 2, 1, 0, 0)
    assert line.good
    assert totals([line]) == "Slots: 2 refreshed, 1 covered by another policy's run, 0 failed."


def test_history_that_is_cut_off_was_seen_before() -> None:
    tally = Tally()
    for number in range(1, 9):
        tally.observe([policy(entry(5 * number))], now=at(5 * number + 1))
    assert (only(tally).due, only(tally).refreshed) == (8, 8)


@pytest.mark.parametrize("outcome", ["FAILED", "REJECTED_BY_GUARD", "UNKNOWN"])
def test_a_failed_slot_is_not_good(outcome: str) -> None:
    tally = Tally()
    tally.observe([policy(entry(10), entry(5, outcome))], now=at(10))
    line = only(tally)
    assert (line.due, line.refreshed, line.failed, line.missed, line.good) == (2, 1, 1, 0, False)
    assert verdict([line]) == "Not every slot that became due was refreshed or covered: see tenant-a/revenue."


@pytest.mark.parametrize("history", [[], [entry(5, "SKIPPED_LOCK_HELD")], [entry(5, "INTERRUPTED")], [entry(None)]])
def test_a_slot_that_nothing_came_of_is_missed_and_a_request_is_no_slot(history: list[dict[str, Any]]) -> None:
    tally = Tally()
    tally.observe([policy(*history)], now=at(5))
    line = only(tally)
    assert (line.due, line.refreshed + line.covered + line.failed, line.missed, line.good) == (1, 0, 1, False)


def test_what_is_due_at_the_end_may_end_a_little_later_and_nothing_new_becomes_due() -> None:
    tally = Tally()
    tally.observe([policy()], now=at(5))
    assert not tally.settle([policy()])
    assert tally.settle([policy(entry(10), entry(5))])
    assert (only(tally).due, only(tally).refreshed) == (1, 1)


def test_nothing_is_due_while_a_policy_is_suspended_or_just_changed() -> None:
    tally = Tally()
    tally.observe([policy()], now=at(1))
    tally.observe([policy(generation=2, suspend=True)], now=at(6))
    tally.observe([policy(generation=2, suspend=True)], now=at(21))
    tally.observe([policy(generation=3)], now=at(26))
    assert only(tally).due == 0
    tally.observe([policy(generation=3)], now=at(31))
    assert only(tally).due == 1


def test_a_policy_that_a_visitor_adds_is_not_judged() -> None:
    tally = Tally()
    tally.observe([policy(entry(5))], now=at(5))
    tally.observe([policy(entry(5)), policy(name="visitor")], now=at(9))
    assert only(tally).policy.name == "revenue"


def test_cron_slots_are_those_of_the_time_zone() -> None:
    # At 01:00 UTC of this day Berlin's clocks go from 02:00 to 03:00.
    berlin = policy(schedule={"cron": "0 3 * * *", "timeZone": "Europe/Berlin"})
    slots = list(berlin.slots(after=CREATED, until=CREATED + timedelta(days=1, hours=1)))
    assert slots == [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 30, 1, tzinfo=UTC)]
    tally = Tally()
    tally.observe([berlin], now=at(1))
    assert only(tally).good  # no slot yet, and none was promised


def test_lags_and_durations_are_of_the_slots_that_counted() -> None:
    tally = Tally()
    tally.observe(
        [policy(entry(10, late_ms=40, took_ms=30), entry(5, "SKIPPED_COVERED", late_ms=2), entry(None, took_ms=900))],
        now=at(10),
    )
    assert sorted(only(tally).lags) == [2, 40]
    assert only(tally).durations == (30,)
    assert percentile([7.0], 95) == 7.0
    assert percentile([float(value) for value in range(101)], 95) == 95.0
