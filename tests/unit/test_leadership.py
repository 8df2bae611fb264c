"""One leads at a time, whatever clocks, network and processes do; and soon another one, when it does not any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest
from tests.unit.memory_lease import MemoryLease, Process, process
from tests.unit.ports import EPOCH
from tests.unit.world import until

from matview_operator.domain.lease import Lease, LeaseTiming
from matview_operator.engine.ports import ApiUnavailable

pytestmark = pytest.mark.looptime(noop_cycles=3)

TIMING = LeaseTiming()


def now() -> float:
    return asyncio.get_running_loop().time()


async def leads(one: Process, *, within: float) -> float:
    """Wait until this one leads; return how long that took."""
    began = now()
    while not one.leadership.holds():
        assert now() - began < within, f"{one.name} does not lead"
        await asyncio.sleep(0.05)
    return now() - began


async def stops(one: Process, *, while_not: Process) -> float:
    """Wait until this one leads no more, the other never meanwhile; return how long that took."""
    began = now()
    for _ in range(2000):
        assert not while_not.leadership.holds()
        if not one.leadership.holds():
            break
        await asyncio.sleep(0.02)
    assert not one.leadership.holds()
    return now() - began


async def pair() -> tuple[MemoryLease, Process, Process]:
    """One that leads and one that stands by."""
    lease = MemoryLease()
    first, second = process("first", lease), process("second", lease, skew=5000)
    first.start()
    await leads(first, within=1)
    second.start()
    await asyncio.sleep(0.5)
    return lease, first, second


async def test_the_first_leads_and_the_second_stands_by_as_long_as_it_renews() -> None:
    lease, first, second = await pair()
    for _ in range(600):
        await asyncio.sleep(1)
        assert (first.leadership.holds(), second.leadership.holds()) == (True, False)
    assert lease.stored is not None
    assert (lease.stored.holder, lease.stored.transitions) == ("first", 0)
    assert lease.stored.acquired_at is not None
    assert lease.stored.acquired_at < EPOCH + timedelta(seconds=1)
    assert second.line.writes == 0
    assert 280 <= first.line.writes <= 310  # one request every two seconds


async def test_another_leads_within_15_seconds_of_a_leaders_sudden_death() -> None:
    lease, first, second = await pair()
    await first.kill()
    assert await leads(second, within=13) >= TIMING.duration_seconds - TIMING.renew_seconds - 1
    assert lease.stored is not None
    assert (lease.stored.holder, lease.stored.transitions) == ("second", 1)


async def test_another_leads_within_a_second_of_a_release() -> None:
    lease, first, second = await pair()
    await first.leadership.release()
    assert not first.leadership.holds()
    assert lease.stored is not None
    assert lease.stored.holder is None
    await leads(second, within=1.1)
    await asyncio.sleep(5)
    assert first.task is not None
    assert first.task.done()
    assert not first.lost  # it was not lost, but given


async def test_a_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    _, first, second = await pair()
    await asyncio.sleep(30)
    first.line.cut = True
    assert await stops(first, while_not=second) <= TIMING.deadline_seconds
    stopped_at = now()
    await asyncio.sleep(0.1)
    assert first.lost
    await leads(second, within=15)
    assert now() - stopped_at >= TIMING.duration_seconds - TIMING.deadline_seconds
    first.line.cut = False
    await asyncio.sleep(60)
    assert not first.leadership.holds()


async def test_requests_that_arrive_and_are_never_answered_prolong_nothing() -> None:
    _, first, second = await pair()
    first.line.back = lambda: 3600.0
    assert await stops(first, while_not=second) <= TIMING.deadline_seconds


async def test_a_slow_api_server_is_no_loss() -> None:
    _, first, second = await pair()
    first.line.there = first.line.back = lambda: 0.9
    for _ in range(120):
        await asyncio.sleep(0.5)
        assert first.leadership.holds()
        assert not second.leadership.holds()


async def test_one_answer_lost_is_no_loss() -> None:
    _, first, second = await pair()
    answers = iter([0.01, 3600.0])
    first.line.back = lambda: next(answers, 0.01)
    for _ in range(60):
        await asyncio.sleep(0.5)
        assert first.leadership.holds()
        assert not second.leadership.holds()


async def test_who_slept_past_its_lease_knows_it_in_its_first_moment() -> None:
    lease = MemoryLease()
    slept = 0.0
    first, second = process("first", lease), process("second", lease)
    first.leadership._seconds = lambda: now() + slept
    first.start()
    second.start()
    await leads(first, within=2)
    slept = 60.0  # its tasks have not had a turn since
    assert not first.leadership.holds()
    await asyncio.sleep(3)
    assert first.lost
    writes = first.line.writes
    await asyncio.sleep(30)
    assert first.line.writes == writes  # it does not try again


async def test_an_answer_that_comes_after_the_sleep_prolongs_nothing() -> None:
    lease = MemoryLease()
    slept = 0.0
    first = process("first", lease)
    first.leadership._seconds = lambda: now() + slept
    first.start()
    await leads(first, within=1)
    first.line.back = lambda: 1.0
    await asyncio.sleep(TIMING.renew_seconds)
    assert first.line.writes == 2
    slept = 60.0  # the request was sent before it slept, the answer was there when it woke
    await asyncio.sleep(1.5)
    assert not first.leadership.holds()


async def test_clocks_that_differ_by_years_and_run_unequally_fast_change_nothing() -> None:
    lease = MemoryLease()
    first, second = process("first", lease, skew=1e9, rate=0.9), process("second", lease, skew=-1e9, rate=1.1)
    first.leadership._clock.set_by = timedelta(days=3650)  # type: ignore[attr-defined]
    first.start()
    await leads(first, within=1)
    second.start()
    await asyncio.sleep(60)
    assert (first.leadership.holds(), second.leadership.holds()) == (True, False)
    first.line.cut = True
    await stops(first, while_not=second)
    await leads(second, within=15)


async def test_of_two_that_see_it_free_at_once_one_gets_it() -> None:
    for seed in range(50):
        lease = MemoryLease()
        both = [process(name, lease, seed=seed) for name in ("a", "b")]
        for one in both:
            one.start()
        await asyncio.sleep(0.5)
        assert [one.leadership.holds() for one in both].count(True) == 1
        for one in both:
            await one.kill()


async def test_a_deleted_lease_is_still_its_holders() -> None:
    lease, first, second = await pair()
    await asyncio.sleep(3)
    lease.stored = None
    first.line.there = lambda: 0.6  # time enough for the other to see it gone
    for _ in range(60):
        await asyncio.sleep(0.5)
        assert first.leadership.holds()
        assert not second.leadership.holds()
    await first.kill()
    lease.stored = None
    await leads(second, within=13)


async def test_a_lease_that_another_took_is_given_up_at_once() -> None:
    lease, first, _ = await pair()
    lease.put(Lease(holder="somebody with kubectl", duration_seconds=10))
    await asyncio.sleep(4)
    assert first.lost
    assert lease.stored is not None
    assert lease.stored.holder == "somebody with kubectl"


async def test_who_wants_more_time_than_we_give_gets_it() -> None:
    lease = MemoryLease()
    lease.put(Lease(holder="another version", duration_seconds=40))
    first = process("first", lease)
    first.start()
    await until(39)
    assert not first.leadership.holds()
    await until(43)
    assert first.leadership.holds()


async def test_standing_by_goes_on_through_an_outage() -> None:
    lease = MemoryLease()
    first = process("first", lease)
    first.line.cut = True
    first.start()
    await until(600)
    assert not first.leadership.holds()
    first.line.cut = False
    await leads(first, within=2)


async def test_a_release_that_the_api_server_does_not_hear_ends_nevertheless() -> None:
    _, first, _ = await pair()
    began = now()
    first.line.there = lambda: 3600.0
    await first.leadership.release()
    assert now() - began <= 2 * TIMING.request_seconds
    assert not first.leadership.holds()


@pytest.mark.parametrize("leading", [False, True], ids=["standing by", "leading"])
async def test_who_ends_in_the_middle_of_a_write_gives_the_lease_back(*, leading: bool) -> None:
    lease = MemoryLease()
    one = process("one", lease)
    one.start()
    if leading:
        await leads(one, within=1)
    one.line.back = lambda: 0.5
    written = one.line.writes
    for _ in range(500):
        if one.line.writes > written:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # it has arrived, and nobody has heard of it
    await one.kill()
    await one.leadership.release()
    assert lease.stored is not None
    assert lease.stored.holder is None


async def test_who_stood_by_gives_nobodys_lease_back() -> None:
    lease, _, second = await pair()
    await second.kill()
    await second.leadership.release()
    assert lease.stored is not None
    assert lease.stored.holder == "first"


class History:
    """Three processes, or their successors, and what befalls them."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)  # noqa: S311 - a replayable history
        self.lease = MemoryLease()
        self.slept: list[float] = []
        self.everybody: list[Process] = []

    def fill_up(self) -> None:
        """Start successors of those that have ended."""
        while sum(one.task is not None and not one.task.done() for one in self.everybody) < 3:
            self._start()

    def _start(self) -> None:
        number = len(self.everybody)
        one = process(f"p{number}", self.lease, seed=self.chance.randrange(1000))
        skew, rate = self.chance.uniform(-1e6, 1e6), self.chance.uniform(0.9, 1.1)
        self.slept.append(0.0)
        one.leadership._seconds = lambda: skew + self.slept[number] + rate * now()
        self.everybody.append(one)
        one.start()

    async def strike(self) -> None:
        """Have something happen to the leader, or to one of the youngest."""
        leaders = [one for one in self.everybody if one.leadership.holds()]
        one = self.chance.choice([*(2 * leaders), *self.everybody[-4:]])
        match self.chance.randrange(7):
            case 0:
                await one.kill()
                one.leadership._until = None
            case 1:
                one.line.cut = not one.line.cut
            case 2:
                there, back = self.chance.uniform(0, 4), self.chance.uniform(0, 4)
                one.line.there, one.line.back = lambda: there, lambda: back
            case 3 | 6:
                one.line.there = one.line.back = lambda: 0.01
                one.line.cut = False
            case 4:
                await one.leadership.release()
            case _ if one.leadership.holds():
                self.slept[self.everybody.index(one)] += self.chance.uniform(0, 60)


@pytest.mark.parametrize("seed", range(20))
async def test_never_two_at_once_in_random_histories(seed: int) -> None:
    history = History(seed)
    led: set[str] = set()
    for _ in range(4000):
        history.fill_up()
        await asyncio.sleep(0.1)
        holding = [one.name for one in history.everybody if one.leadership.holds()]
        assert len(holding) <= 1, holding
        led.update(holding)
        if history.chance.random() < 0.02:
            await history.strike()
    assert len(led) > 2
    for one in history.everybody:
        await one.kill()


async def test_why_it_stands_by_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _, first, second = await pair()
    await asyncio.sleep(30)
    told = [record.getMessage() for record in caplog.records]
    assert told.count("no Lease: first leads") == 1
    assert told.count("leading from now on") == 1
    second.line.cut = True
    await asyncio.sleep(30)
    told = [record.getMessage() for record in caplog.records]
    assert told.count(f"no Lease: {ApiUnavailable('the API server is out of reach')}") == 1
    assert first.leadership.holds()


async def test_a_surprise_ends_no_leadership_but_by_its_time() -> None:
    _, first, second = await pair()
    first.line.there = lambda: 1 / 0
    await asyncio.sleep(3)
    assert first.leadership.holds()
    first.line.there = lambda: 0.01
    await asyncio.sleep(30)
    assert first.leadership.holds()
    first.line.there = lambda: 1 / 0
    assert await stops(first, while_not=second) <= TIMING.deadline_seconds
    await asyncio.sleep(0.1)
    assert first.lost
