"""Slots on their way to the runner: one of a policy in flight, the newest waiting one kept, requests first."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.unit.ports import VirtualClock, at
from tests.unit.world import key, until

from matview_operator.domain.slot import Slot, requested, scheduled
from matview_operator.engine.dispatcher import Dispatcher
from matview_operator.engine.ports import Key

pytestmark = pytest.mark.looptime(noop_cycles=3)

A, B = key("a"), key("b")


class Worked:
    """A dispatcher whose work takes 10 s, and what became of each slot."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.began: list[tuple[float, Key, str]] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.superseded: list[tuple[Key, str]] = []
        self.late: list[tuple[Key, str]] = []
        self.due: list[tuple[Key, str]] = []
        """Taken and not over."""
        self.fails: set[str] = set()
        self.held: set[str] = set()
        """What has to wait although it is due."""
        self.stubborn_seconds = 0.0
        self.dispatcher = Dispatcher(
            clock=self.clock,
            work=self.work,
            superseded=lambda place, slot: self.superseded.append((place, name(slot))),
            late=lambda place, slot: self.late.append((place, name(slot))),
            taken=lambda place, slot: self.due.append((place, name(slot))),
            over=lambda place, slot: self.due.remove((place, name(slot))),
            holds=lambda _, slot: name(slot) in self.held,
        )

    async def work(self, place: Key, slot: Slot) -> None:
        self.began.append((asyncio.get_running_loop().time(), place, name(slot)))
        try:
            await asyncio.sleep(10)
            if name(slot) in self.fails:
                raise RuntimeError("a bug")
        except asyncio.CancelledError:
            await asyncio.sleep(self.stubborn_seconds)
            self.cancelled.append(name(slot))
            raise
        self.ended.append(name(slot))

    def slot(self, seconds: float, place: Key = A, *, deadline: int = 300) -> None:
        self.dispatcher.submit(place, scheduled(at(seconds), starting_deadline_seconds=deadline))

    def request(self, token: str, place: Key = A) -> None:
        slot = requested(token, now=self.clock.now(), starting_deadline_seconds=300)
        self.dispatcher.submit(place, slot)


def name(slot: Slot) -> str:
    return slot.request or f"{slot.due_at:%H:%M:%S}"


async def test_a_slot_begins_at_once_and_two_policies_do_not_wait_for_each_other() -> None:
    worked = Worked()
    worked.slot(0, A)
    worked.slot(0, B)
    await until(1)
    assert worked.began == [(0, A, "12:00:00"), (0, B, "12:00:00")]
    assert worked.dispatcher.waiting == 0


async def test_one_slot_of_a_policy_is_in_flight_and_the_newest_waiting_one_is_kept() -> None:
    worked = Worked()
    for seconds in (0, 2, 4, 6):
        await until(seconds)
        worked.slot(seconds)
    assert worked.dispatcher.waiting == 1
    assert worked.superseded == [(A, "12:00:02"), (A, "12:00:04")]
    await until(40)
    assert worked.began == [(0, A, "12:00:00"), (10, A, "12:00:06")]
    assert worked.late == []


async def test_a_slot_that_comes_back_takes_no_newer_ones_place() -> None:
    worked = Worked()
    worked.slot(0)
    for seconds in (2, 4):
        await until(seconds)
        worked.slot(seconds)
    worked.slot(3)
    assert worked.superseded == [(A, "12:00:02"), (A, "12:00:03")]
    assert worked.due == [(A, "12:00:00"), (A, "12:00:04")]
    await until(60)
    assert worked.began == [(0, A, "12:00:00"), (10, A, "12:00:04")]


async def test_a_request_goes_before_the_waiting_slot_and_supersedes_an_older_request() -> None:
    worked = Worked()
    worked.slot(0)
    await until(1)
    worked.slot(1)
    worked.request("r1")
    worked.request("r2")
    assert worked.dispatcher.waiting == 2
    await until(60)
    assert worked.began == [(0, A, "12:00:00"), (10, A, "r2"), (20, A, "12:00:01")]
    assert worked.superseded == []  # requests are no slots


async def test_what_has_to_wait_begins_when_it_is_looked_at_again_and_of_slots_the_newest_is_kept() -> None:
    worked = Worked()
    worked.held = {"12:00:00", "12:00:02", "r1"}
    worked.slot(0)
    worked.slot(2)
    worked.request("r1")
    worked.slot(0, B, deadline=5)
    await until(1)
    worked.dispatcher.look(A)
    assert worked.began == []
    assert worked.dispatcher.waiting == 3
    worked.held = {"r1", "12:00:00"}
    worked.dispatcher.look(A)
    await until(20)
    worked.held = set()
    worked.dispatcher.look(A)
    worked.dispatcher.look(B)
    await until(40)
    assert worked.began == [(1, A, "12:00:02"), (20, A, "r1")]
    assert worked.superseded == [(A, "12:00:00")]
    assert worked.late == [(B, "12:00:00")]
    assert worked.dispatcher._lanes == {}


async def test_a_slot_that_waited_past_its_deadline_is_late_and_not_run() -> None:
    worked = Worked()
    worked.slot(0)
    await until(1)
    worked.slot(1, deadline=5)
    await until(60)
    assert worked.began == [(0, A, "12:00:00")]
    assert worked.late == [(A, "12:00:01")]


async def test_a_request_is_answered_however_long_it_waited() -> None:
    worked = Worked()
    worked.slot(0)
    worked.dispatcher.submit(A, requested("r1", now=at(0), starting_deadline_seconds=1))
    await until(60)
    assert [each for _, _, each in worked.began] == ["12:00:00", "r1"]


async def test_forgetting_the_slot_leaves_the_one_in_flight_and_the_request() -> None:
    worked = Worked()
    worked.slot(0)
    worked.slot(1)
    worked.request("r1")
    worked.dispatcher.forget_slot(A)
    worked.dispatcher.forget_slot(B)  # there is none
    await until(60)
    assert worked.ended == ["12:00:00", "r1"]


async def test_forgetting_a_policy_cancels_its_run_and_drops_what_waits() -> None:
    worked = Worked()
    worked.slot(0)
    worked.slot(0, B)
    await until(1)
    worked.slot(1)
    worked.request("r1")
    worked.dispatcher.forget(A)
    worked.dispatcher.forget(key("never-seen"))
    await until(60)
    assert worked.cancelled == ["12:00:00"]
    assert worked.began == [(0, A, "12:00:00"), (0, B, "12:00:00")]
    assert worked.ended == ["12:00:00"]
    assert worked.dispatcher._lanes == {}


async def test_a_policy_that_comes_again_is_a_new_one() -> None:
    worked = Worked()
    worked.slot(0)
    await until(1)
    worked.dispatcher.forget(A)
    worked.slot(1)
    await until(60)
    assert worked.cancelled == ["12:00:00"]
    assert worked.ended == ["12:00:01"]


async def test_a_bug_in_one_slot_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    worked = Worked()
    worked.fails.add("12:00:00")
    worked.slot(0)
    worked.slot(1)
    await until(60)
    assert worked.ended == ["12:00:01"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["policy"] == "analytics/a"


async def test_draining_lets_runs_end_within_the_grace_and_takes_nothing_more() -> None:
    worked = Worked()
    worked.slot(0)
    await until(5)
    worked.slot(5)
    await asyncio.gather(worked.dispatcher.drain(seconds=20), later(1, lambda: worked.slot(6)))
    assert asyncio.get_running_loop().time() == 10
    assert worked.ended == ["12:00:00"]
    worked.slot(20)
    await until(60)
    assert worked.cancelled == []
    assert len(worked.began) == 1


async def test_draining_cancels_what_does_not_end_and_waits_until_the_server_let_go() -> None:
    worked = Worked()
    worked.stubborn_seconds = 3
    worked.slot(0)
    await until(1)
    await worked.dispatcher.drain(seconds=2)
    assert asyncio.get_running_loop().time() == 6
    assert worked.cancelled == ["12:00:00"]


async def test_draining_waits_for_deleted_policies_runs_too() -> None:
    worked = Worked()
    worked.stubborn_seconds = 3
    worked.slot(0)
    await until(1)
    worked.dispatcher.forget(A)
    await worked.dispatcher.drain(seconds=0)
    assert worked.cancelled == ["12:00:00"]
    assert worked.dispatcher._stopping == set()


async def test_draining_with_nothing_in_flight_ends_at_once() -> None:
    await Worked().dispatcher.drain(seconds=100)
    assert asyncio.get_running_loop().time() == 0


async def test_lanes_end_with_their_work() -> None:
    worked = Worked()
    for number in range(50):
        worked.slot(0, key(f"p{number}"))
    await until(11)
    assert worked.dispatcher._lanes == {}


async def later(seconds: float, act: object) -> None:
    await asyncio.sleep(seconds)
    assert callable(act)
    act()


async def test_each_slot_that_was_taken_is_over_once_whatever_becomes_of_it() -> None:
    worked = Worked()
    worked.slot(0)
    worked.slot(0, B)
    await until(1)
    worked.slot(1)  # superseded by the next one
    worked.slot(2, deadline=5)  # late when its turn comes
    worked.request("r1")  # replaced by the next one
    worked.request("r2")
    assert worked.due == [(A, "12:00:00"), (B, "12:00:00"), (A, "12:00:02"), (A, "r2")]
    worked.dispatcher.forget(B)
    assert (B, "12:00:00") not in worked.due
    await until(21)
    assert worked.late == [(A, "12:00:02")]
    assert worked.ended == ["12:00:00", "r2"]
    assert worked.due == []
    worked.slot(21)
    await until(22)
    worked.slot(22)
    worked.request("r3")
    worked.dispatcher.forget_slot(A)
    assert worked.due == [(A, "12:00:21"), (A, "r3")]
    worked.dispatcher.forget(A)
    assert worked.due == []
    worked.slot(23)  # of another policy of that name
    await until(24)
    assert worked.due == [(A, "12:00:23")]  # the end of the former one's run is not its end
