"""The heap of due times, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from tests.unit.ports import VirtualClock, at
from tests.unit.world import key, until

from matview_operator.engine.ports import Key
from matview_operator.engine.timers import LEAD_SECONDS, LONGEST_SLEEP_SECONDS, Timers

pytestmark = pytest.mark.looptime(noop_cycles=3)

A, B, C = key("a"), key("b"), key("c")


class Fired:
    """Timers, and what they fired when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.timers = Timers(clock=self.clock, fire=self.fire, soon=self.soon)
        self.all: list[tuple[Key, datetime, datetime]] = []
        self.told: list[tuple[datetime, set[Key]]] = []
        """When, and what was said to be due soon."""

    def fire(self, place: Key, due: datetime) -> None:
        self.all.append((place, due, self.clock.now()))

    def soon(self, due: Iterable[Key]) -> None:
        self.told.append((self.clock.now(), {*due}))

    @property
    def keys(self) -> list[Key]:
        return [place for place, _, _ in self.all]

    @contextmanager
    def running(self) -> Iterator[None]:
        task = asyncio.create_task(self.timers.run())
        try:
            yield
        finally:
            task.cancel()


async def test_entries_fire_when_they_are_due_in_order_of_due_time() -> None:
    fired = Fired()
    fired.timers.set(B, at(5))
    fired.timers.set(C, at(2.5))
    fired.timers.set(A, at(5))
    with fired.running():
        await until(2.499)
        assert fired.all == []
        await until(10)
    assert fired.all == [(C, at(2.5), at(2.5)), (A, at(5), at(5)), (B, at(5), at(5))]


async def test_a_policy_has_one_entry_the_last_one_set() -> None:
    fired = Fired()
    with fired.running():
        fired.timers.set(A, at(3))
        fired.timers.set(A, at(6))
        fired.timers.set(B, at(6))
        fired.timers.set(B, at(4))
        assert fired.timers.due(A) == at(6)
        await until(20)
    assert [(place, due) for place, due, _ in fired.all] == [(B, at(4)), (A, at(6))]
    assert fired.timers.due(A) is None


async def test_the_same_time_set_twice_fires_once_also_after_a_cancellation() -> None:
    fired = Fired()
    with fired.running():
        for _ in range(3):
            fired.timers.set(A, at(3))
            fired.timers.set(A, at(3))
            fired.timers.cancel(A)
            assert fired.timers.due(A) is None
            fired.timers.set(A, at(3))
        await until(5)
    assert fired.keys == [A]


async def test_what_will_be_due_at_an_instant_is_told_a_moment_before() -> None:
    fired = Fired()
    many = {key(f"p{number}") for number in range(100)}
    with fired.running():
        for place in (C, *many, A, B):
            fired.timers.set(place, at(5))
        fired.timers.cancel(A)
        fired.timers.set(B, at(7))
        fired.timers.set(C, at(3))
        await until(6.5)
        fired.timers.set(A, at(6.6))
        await until(10)
    assert fired.told == [
        (at(3 - LEAD_SECONDS), {C}), (at(5 - LEAD_SECONDS), many), (at(7 - LEAD_SECONDS), {B}), (at(6.5), {A}),
        (at(6.6), {B}),
    ]  # fmt: skip


async def test_an_entry_fires_its_moment_after_it_is_due_and_is_late_until_then() -> None:
    fired = Fired()
    moments = {key(f"p{number}"): timedelta(milliseconds=37 * number) for number in range(27)}
    with fired.running():
        for place, moment in moments.items():
            fired.timers.set(place, at(5), begins_after=moment)
        fired.timers.set(A, at(6))
        fired.timers.set(B, at(5), begins_after=timedelta(milliseconds=990))
        fired.timers.cancel(B)
        await until(4.5)
        assert fired.timers.late(at(4)) == {}
        assert fired.timers.due(key("p1")) == at(5)
        await until(5.5)
        assert fired.timers.late(at(5)) == {
            place: at(5) + moment for place, moment in moments.items() if moment > timedelta(seconds=0.5)
        }
        assert A in fired.timers.late(at(6))
        await until(7)
    assert fired.all == [(place, at(5), at(5) + moment) for place, moment in moments.items()] + [(A, at(6), at(6))]


async def test_a_cancelled_entry_does_not_fire() -> None:
    fired = Fired()
    with fired.running():
        fired.timers.set(A, at(3))
        fired.timers.set(B, at(3))
        fired.timers.cancel(A)
        fired.timers.cancel(C)  # it has none
        await until(5)
    assert fired.keys == [B]


async def test_an_entry_set_while_the_loop_sleeps_is_not_waited_past() -> None:
    fired = Fired()
    fired.timers.set(A, at(60))
    with fired.running():
        await until(10.3)
        fired.timers.set(B, at(10.4))
        await until(11)
        assert fired.all == [(B, at(10.4), at(10.4))]


async def test_what_is_past_fires_at_once() -> None:
    fired = Fired()
    with fired.running():
        await until(10)
        fired.timers.set(A, at(3))
        await asyncio.sleep(0.001)
    assert [(place, due) for place, due, _ in fired.all] == [(A, at(3))]


async def test_a_clock_set_forward_delays_nothing_for_long() -> None:
    fired = Fired()
    fired.timers.set(A, at(3600))
    with fired.running():
        await until(10.5)
        fired.clock.set_by = timedelta(hours=1)
        await asyncio.sleep(LONGEST_SLEEP_SECONDS)
    assert fired.keys == [A]


async def test_a_clock_set_back_fires_nothing_before_its_time() -> None:
    fired = Fired()
    fired.timers.set(A, at(20))
    with fired.running():
        await until(10)
        fired.clock.set_by = timedelta(seconds=-15)
        await until(34.9)
        assert fired.all == []
        await until(35.1)
        assert fired.keys == [A]
        assert fired.timers.last_beat is not None
        assert fired.timers.last_beat <= fired.clock.now()


async def test_of_thousands_due_at_once_the_first_begin_before_the_last_are_fired() -> None:
    fired = 0
    fired_when_begun: list[int] = []

    async def begin() -> None:
        await asyncio.sleep(0)
        fired_when_begun.append(fired)

    def fire(_place: Key, _due: datetime) -> None:
        nonlocal fired
        fired += 1
        tasks.append(asyncio.create_task(begin()))

    tasks: list[asyncio.Task[None]] = []
    timers = Timers(clock=VirtualClock(), fire=fire)
    for number in range(1000):
        timers.set(key(f"p{number}"), at(1))
    loop = asyncio.create_task(timers.run())
    await until(2)
    loop.cancel()
    assert len(fired_when_begun) == 1000
    assert fired_when_begun[0] < 500


async def test_an_entry_that_is_due_again_and_again_does_not_block_the_loop() -> None:
    clock = VirtualClock()
    count = 0

    def fire(place: Key, due: datetime) -> None:
        nonlocal count
        count += 1
        timers.set(place, due)  # for ever in the past

    timers = Timers(clock=clock, fire=fire)
    timers.set(A, at(0))
    task = asyncio.create_task(timers.run())
    for _ in range(50):  # each of these would never come back
        await asyncio.sleep(0)
    task.cancel()
    assert count > 0


async def test_entries_that_are_moved_for_ever_do_not_pile_up() -> None:
    fired = Fired()
    for number in range(20_000):
        fired.timers.set(A, at(1_000_000 + number))
        fired.timers.set(B, at(5))
        fired.timers.cancel(B)
    fired.timers.set(B, at(5))
    assert len(fired.timers._heap) < 5000
    with fired.running():
        await until(10)
        assert fired.keys == [B]
        assert fired.timers.due(A) == at(1_019_999)


async def test_the_beat_goes_on_while_nothing_is_due() -> None:
    fired = Fired()
    with fired.running():
        await until(100)
        assert fired.timers.last_beat is not None
        assert fired.timers.last_beat > at(98)
