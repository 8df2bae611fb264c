"""Places for refreshes: per database and in all, whoever is cancelled, changed or hung."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest
from tests.unit.world import key, until

from matview_operator.engine.budget import LONG_SECONDS, Budget
from matview_operator.engine.ports import Key
from matview_operator.engine.queue import NoPlace

pytestmark = pytest.mark.looptime(noop_cycles=3)

A, B, C = key("a"), key("b"), key("c")


class Places:
    """A budget and who holds its places."""

    def __init__(self, *, in_all: int = 100, **limits: int) -> None:
        self.limits: defaultdict[Key, int] = defaultdict(lambda: 2)
        self.limits.update({key(name): limit for name, limit in limits.items()})
        self.budget = Budget(limit_of=lambda database: self.limits[database], limit_in_all=in_all)
        self.running: Counter[Key] = Counter()
        self.most: Counter[Key] = Counter()
        self.most_in_all = 0
        self.began: list[tuple[float, str]] = []

    async def work(
        self,
        database: Key,
        *,
        seconds: float = 1,
        name: str = "",
        tenant: str | None = None,
        patience: float | None = None,
    ) -> None:
        async with self.budget.place(self.budget.queue(database, tenant=tenant), seconds=patience):
            self.began.append((asyncio.get_running_loop().time(), name))
            self.running[database] += 1
            self.most[database] = max(self.most[database], self.running[database])
            self.most_in_all = max(self.most_in_all, self.running.total())
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running[database] -= 1

    def start(self, database: Key, **work: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self.work(database, **work))

    @property
    def is_empty(self) -> bool:
        return not (
            self.budget._queues
            or self.budget._ready
            or self.budget._idle
            or self.budget._recent
            or self.budget._alarm
            or self.budget._ready._databases
            or self.budget._ready._namespaces._had
            or self.budget._taken
            or self.budget.waiting
        )


async def test_each_database_has_its_own_limit_and_first_come_is_first_served() -> None:
    places = Places(a=2, b=1)
    tasks = [places.start(A, name=f"a{n}") for n in range(5)] + [places.start(B, name=f"b{n}") for n in range(2)]
    await until(0.5)
    assert (places.running, places.budget.waiting) == ({A: 2, B: 1}, 4)
    await asyncio.gather(*tasks)
    assert places.began == [(0, "a0"), (0, "a1"), (0, "b0"), (1, "a2"), (1, "a3"), (1, "b1"), (2, "a4")]
    assert places.is_empty


async def test_in_all_there_are_no_more_than_the_operators_limit() -> None:
    places = Places(in_all=4, a=3, b=3, c=3)
    await asyncio.gather(*(places.start(database) for database in [A, B, C] * 4))
    assert places.most_in_all == 4
    assert places.is_empty


async def test_a_hung_database_holds_half_of_all_places_at_most_and_delays_nobody_else() -> None:
    places = Places(in_all=4, a=100, b=100)
    hung = [places.start(A, seconds=3600) for _ in range(10)]
    await until(1)
    others = [places.start(B, name=f"b{n}") for n in range(4)]
    await asyncio.gather(*others)
    assert [began for began, name in places.began if name] == [1, 1, 2, 2]
    assert places.most[A] == 2
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    assert places.is_empty


async def test_the_only_place_of_all_can_be_had() -> None:
    places = Places(in_all=1, a=5)
    await asyncio.gather(places.start(A), places.start(A))
    assert places.most_in_all == 1


async def test_a_raised_limit_lets_all_in_whom_it_has_room_for_at_once() -> None:
    places = Places(a=1)
    tasks = [places.start(A, seconds=100) for _ in range(5)]
    await until(10)
    places.limits[A] = 4
    places.budget.limit_changed(A)
    places.budget.limit_changed(B)  # nobody is there
    await until(11)
    assert places.running[A] == 4
    await asyncio.gather(*tasks)
    assert places.is_empty


async def test_nobody_overtakes_who_waits_though_a_limit_was_raised() -> None:
    places = Places(a=1)
    holder, first = places.start(A, seconds=10), places.start(A, name="first")
    await until(1)
    places.limits[A] = 2  # not told yet
    second = places.start(A, name="second")
    await asyncio.gather(holder, first, second)
    assert [name for _, name in places.began] == ["", "first", "second"]


async def test_a_lowered_limit_lets_nobody_in_until_enough_have_left() -> None:
    places = Places(a=3)
    tasks = [places.start(A, name=f"{n}") for n in range(5)]
    await until(0.5)
    places.limits[A] = 1
    places.budget.limit_changed(A)
    await asyncio.gather(*tasks)
    assert [began for began, _ in places.began] == [0, 0, 0, 1, 2]


async def test_waiting_longer_than_one_will_is_no_place_and_leaves_none_behind() -> None:
    places = Places(a=1)
    holder = places.start(A, seconds=10)
    await until(1)
    with pytest.raises(NoPlace):
        async with places.budget.place(places.budget.queue(A), seconds=3):
            pytest.fail("there is no place")
    assert asyncio.get_running_loop().time() == 4
    await holder
    assert places.is_empty


async def test_waiting_for_a_place_in_all_is_bounded_too() -> None:
    places = Places(in_all=2, a=1, b=1, c=1)
    holders = [places.start(database, seconds=10) for database in (A, B)]
    await until(1)
    with pytest.raises(NoPlace):
        async with places.budget.place(places.budget.queue(C), seconds=3):
            pytest.fail("there is no place")
    await asyncio.gather(*holders)
    assert places.is_empty


async def test_a_free_place_is_given_however_little_time_is_left() -> None:
    places = Places(a=1)
    async with places.budget.place(places.budget.queue(A), seconds=0):
        pass
    async with places.budget.place(places.budget.queue(A), seconds=-5):
        await asyncio.sleep(100)  # the time is for the waiting, not for the work
    assert places.is_empty


async def test_an_error_of_the_work_passes_through_and_frees_the_place() -> None:
    places = Places(a=1)
    with pytest.raises(TimeoutError, match="the work's own"):
        async with places.budget.place(places.budget.queue(A), seconds=5):
            raise TimeoutError("the work's own")
    assert places.is_empty


async def test_cancelled_waiters_lose_nobodys_place() -> None:
    places = Places(a=1)
    holder = places.start(A, seconds=5)
    waiters = [places.start(A, name=f"{n}") for n in range(4)]
    await until(1)
    waiters[0].cancel()
    waiters[2].cancel()
    await until(1.5)
    assert places.budget.waiting == 2
    await asyncio.gather(holder, *waiters, return_exceptions=True)
    assert [name for _, name in places.began] == ["", "1", "3"]
    assert places.is_empty


async def test_a_place_given_in_the_moment_of_a_cancellation_goes_to_the_next() -> None:
    places = Places(a=1)
    async with places.budget.place(places.budget.queue(A)):
        first, second = places.start(A, name="first"), places.start(A, name="second")
        await until(1)
    first.cancel()  # the place was handed on to it, but it has not woken up yet
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert [name for _, name in places.began] == ["second"]
    assert places.is_empty


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_cancelled_whenever_no_place_leaks_and_no_limit_breaks(seed: int) -> None:
    random = Random(seed)  # noqa: S311 - a test's choice
    places = Places(in_all=5, a=1, b=2, c=9)
    tasks = []
    for _ in range(200):
        tasks.append(places.start(random.choice([A, B, C]), seconds=random.choice([0, 0, 1, 3])))
        if random.random() < 0.4:
            random.choice(tasks).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(random.choice([0, 0, 0.5, 1]))
        assert places.running.total() <= 5
    await asyncio.gather(*tasks, return_exceptions=True)
    assert places.is_empty
    assert (places.most[A], places.most[B], places.most[C]) == (1, 2, 3)


async def test_closed_it_gives_no_more_places_and_sends_waiters_away() -> None:
    places = Places(in_all=2, a=1, b=1, c=1)
    holders = [places.start(database, seconds=10) for database in (A, B)]
    await until(1)
    waiters = [places.start(database) for database in (A, C)]
    await until(2)
    places.budget.close()
    assert [type(end) for end in await asyncio.gather(*waiters, return_exceptions=True)] == [NoPlace, NoPlace]
    with pytest.raises(NoPlace):
        await places.work(key("d"))
    await asyncio.gather(*holders)
    assert places.is_empty


# Fairness.


@pytest.mark.parametrize("places_of_a", [1, 3])
async def test_a_tenant_with_a_thousand_due_views_delays_another_by_one_refresh_per_place(places_of_a: int) -> None:
    places = Places(a=places_of_a)
    many = [places.start(A, tenant="many", name="many") for _ in range(1000)]
    await until(0.5)
    single = places.start(A, tenant="single", name="single")
    await single
    assert [name for _, name in places.began].index("single") == places_of_a  # the next that came free
    await asyncio.gather(*many)
    assert places.is_empty


async def test_tenants_take_turns_and_each_ones_views_go_in_order() -> None:
    places = Places(a=1)
    holder = places.start(A)
    await until(0.5)
    work = [("x", 4), ("y", 2), (None, 3)]
    tasks = [places.start(A, tenant=tenant, name=f"{tenant}{n}") for tenant, count in work for n in range(count)]
    await asyncio.gather(holder, *tasks)
    assert [name for _, name in places.began][1:] == ["x0", "y0", "None0", "x1", "y1", "None1", "x2", "None2", "x3"]


async def test_who_comes_again_and_again_takes_no_more_turns_than_who_waits() -> None:
    """One view at a time of each of three tenants, beside one who has many waiting."""
    places = Places(a=1)

    async def again(tenant: str) -> None:
        for _ in range(30):
            await places.work(A, tenant=tenant, name=tenant)

    many = [places.start(A, tenant="many", name="many") for _ in range(30)]
    await asyncio.gather(*(again(tenant) for tenant in "xyz"), *many)
    turns = [name for _, name in places.began]
    for place in range(4, 100, 4):
        assert Counter(turns[place : place + 4]) == Counter(["many", "x", "y", "z"]), place


async def test_a_namespace_with_many_databases_takes_no_more_turns_than_one_with_one() -> None:
    places = Places(in_all=2)
    many = [places.start(key(f"db{n}", "many"), name="many") for n in range(100)]
    await until(0.5)
    single = places.start(key("db", "single"), name="single")
    await asyncio.gather(single, *many)
    assert [name for _, name in places.began].index("single") == 2
    assert places.is_empty


async def test_databases_of_a_namespace_take_turns_for_the_places_in_all() -> None:
    places = Places(in_all=2, a=1, b=1, c=1)
    tasks = [places.start(database, name=database.name) for database in [A] * 6 + [B, C]]
    await asyncio.gather(*tasks)
    assert [name for _, name in places.began] == ["a", "b", "c", "a", "a", "a", "a", "a"]
    assert places.is_empty


# Servers that hang.


async def test_however_many_databases_hang_another_gets_its_first_place_soon() -> None:
    places = Places(in_all=8)
    hung = [places.start(key(f"hung{n % 50}", f"n{n % 50}"), seconds=3600) for n in range(100)]
    await until(1)
    assert places.most_in_all == 8
    fine = places.start(key("fine", "f"), name="fine")
    await fine
    # 50 databases in turns, eight at first and eight more every ten seconds.
    (began,) = [began for began, name in places.began if name]
    assert began <= 50 / 8 * (LONG_SECONDS + 0.01)
    await until(100)
    began = asyncio.get_running_loop().time()
    for n in range(20):
        await places.work(key(f"other{n}", "f"), name=f"{n}")
    assert asyncio.get_running_loop().time() == began + 20  # nobody waits any more: one after another, a second each
    assert places.most_in_all <= 8 + 51
    assert all(places.most[key(f"hung{n}", f"n{n}")] <= 2 for n in range(50))
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    assert places.is_empty


async def test_beyond_all_places_a_database_gets_one_and_only_while_it_runs_nothing() -> None:
    places = Places(in_all=4)
    hung = [places.start(key(f"hung{n}"), seconds=3600) for n in (0, 0, 1, 1)]
    fine = [places.start(A, name="a") for _ in range(3)]
    await asyncio.gather(*fine)
    first = LONG_SECONDS + 0.001
    assert [began for began, name in places.began if name] == pytest.approx([first, first + 1, first + 2])
    assert places.most[A] == 1
    assert places.most_in_all == 5
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    assert places.is_empty


async def test_places_that_come_and_go_are_never_more_than_all() -> None:
    places = Places(in_all=4)
    await asyncio.gather(*(places.start(key(f"db{n % 30}"), seconds=LONG_SECONDS - 1) for n in range(300)))
    assert places.most_in_all == 4
    assert places.is_empty


# Nothing is left behind.


async def test_ten_thousand_who_wait_and_go_leave_nothing_behind() -> None:
    places = Places(in_all=4)
    work = [(key(f"db{n % 100}", f"n{n % 10}"), f"t{n % 1000}") for n in range(10_000)]
    holders = [places.start(key(f"holder{n}"), seconds=50) for n in range(4)]
    await until(1)
    waiters = [
        places.start(database, tenant=tenant, patience=5 if n % 2 else None)
        for n, (database, tenant) in enumerate(work)
    ]
    await until(2)
    assert places.budget.waiting == 10_000
    await until(7)
    assert places.budget.waiting == 5_000
    for waiter in waiters:
        waiter.cancel()
    ends = Counter(type(end) for end in await asyncio.gather(*waiters, return_exceptions=True))
    assert ends == {NoPlace: 5_000, asyncio.CancelledError: 5_000}
    assert set(places.budget._queues) == {key(f"holder{n}") for n in range(4)}
    await asyncio.gather(*holders)
    assert places.is_empty


async def test_no_wait_is_slower_for_how_many_wait() -> None:
    """Ten thousand tenants at one database take no longer each than one thousand, give or take a noisy machine."""

    async def seconds_for(count: int) -> float:
        places = Places(in_all=4)
        began = time.process_time()
        await asyncio.gather(*(places.start(A, tenant=f"t{n}", seconds=0) for n in range(count)))
        assert places.is_empty
        return (time.process_time() - began) / count

    few = min([await seconds_for(1000) for _ in range(3)])
    assert await seconds_for(10_000) < 4 * few
