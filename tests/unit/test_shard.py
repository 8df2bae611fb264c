"""Several operators share the databases out: each is one's alone, and few move when there is one operator more."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

import pytest
from pydantic import ValidationError
from tests.unit.memory_api import Body
from tests.unit.ports import EPOCH
from tests.unit.world import World, key, until

from matview_operator.domain.reading import read_database_name
from matview_operator.domain.shard import Shard, ordinal_of
from matview_operator.settings import Settings

PLACES = [(f"team-{number % 100}", f"db-{number}") for number in range(3000)]


def owners(count: int) -> list[int]:
    """The shard of each place; exactly one owns it."""
    shards = [Shard(index=index, count=count) for index in range(count)]
    found = []
    for namespace, name in PLACES:
        (owner,) = (shard.index for shard in shards if shard.owns(namespace=namespace, database=name))
        found.append(owner)
    return found


def test_each_database_is_in_exactly_one_shard_and_they_are_equally_large() -> None:
    for count in (1, 2, 3, 7):
        sizes = Counter(owners(count))
        assert len(sizes) == count
        assert max(sizes.values()) < 1.2 * len(PLACES) / count


def test_with_one_shard_more_no_database_moves_but_to_the_new_one() -> None:
    before, after = owners(3), owners(4)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {3}
    assert 0.2 < len(moved) / len(PLACES) < 0.3


def test_the_shard_of_a_database_is_the_same_in_every_version() -> None:
    of_a_and_d = [Shard(index=1, count=2).owns(namespace="a", database=name) for name in "abcdef"]
    assert of_a_and_d == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("pod", "ordinal"),
    [("matview-operator-0", 0), ("matview-operator-12", 12), ("laptop", None), ("3", None), ("op-7d9f8-x2x4z", None)],
)
def test_a_statefulsets_pod_knows_its_number(pod: str, ordinal: int | None) -> None:
    assert ordinal_of(pod) == ordinal


def test_the_index_is_the_pods_number_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "matview-operator-2")
    assert Settings(shard_count=3).shard == Shard(index=2, count=3)
    assert Settings(shard_count=3, shard_index=1).shard == Shard(index=1, count=3)
    assert Settings().shard == Shard()
    assert [Settings().lease, Settings(shard_count=3).lease] == ["matview-operator", "matview-operator-2"]


def test_a_shard_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    with pytest.raises(ValidationError, match="does not end with a number"):
        Settings(shard_count=3)
    with pytest.raises(ValidationError, match="shard 3 is none of 3"):
        Settings(shard_count=3, shard_index=3)
    monkeypatch.setattr(socket, "gethostname", lambda: "matview-operator-3")
    with pytest.raises(ValidationError, match="shard 3 is none of 3"):
        Settings(shard_count=3)


@pytest.mark.parametrize("body", [None, 3, {}, {"spec": None}, {"spec": {"databaseRef": {"name": 7}}}])
def test_a_policy_that_names_no_database_belongs_to_one_shard_too(body: object) -> None:
    assert read_database_name(body) == ""
    shards = [Shard(index=index, count=3) for index in range(3)]
    assert [shard.owns(namespace="a", database="") for shard in shards].count(True) == 1


def names(count: int) -> list[str]:
    """A database's name for each shard."""
    return [
        next(
            f"db{number}"
            for number in range(1000)
            if Shard(index=index, count=count).owns(namespace="analytics", database=f"db{number}")
        )
        for index in range(count)
    ]


def apply(world: World, databases: list[str]) -> None:
    """A policy for each of these databases, by its name."""
    for name in databases:
        world.database(name)
        world.policy(f"of-{name}", databaseRef={"name": name}, views=[{"name": f"of_{name}"}])


@pytest.mark.looptime(noop_cycles=3)
async def test_a_shard_knows_runs_and_tells_of_its_own_databases_only() -> None:
    own, other = names(2)
    async with World(shard=Shard(index=0, count=2)) as world:
        apply(world, [own, other])
        await until(100)
        assert set(world.supervisor.registry.policies) == {key(f"of-{own}")}
        assert set(world.supervisor.registry.databases) == {key(own)}
        assert set(world.executor.views) == {f"of_{own}"}
        assert {ref.key for _, ref, _ in world.api.writes} == {key(own), key(f"of-{own}")}


@pytest.mark.looptime(noop_cycles=3)
async def test_a_policy_that_names_another_shards_database_now_goes_there_with_all_its_slots() -> None:
    own, other = names(2)
    async with World(shard=Shard(index=0, count=2)) as one:
        apply(one, [own, other])
        async with World(former=one, shard=Shard(index=1, count=2)) as two:
            one.api.tell = both(one, two)
            await until(45)
            one.policy(f"of-{own}", databaseRef={"name": other}, views=[{"name": "moved"}])
            await until(135)
            assert key(f"of-{own}") not in one.supervisor.registry.policies
            assert times(one, "moved") == [60, 90, 120]


@pytest.mark.looptime(noop_cycles=3)
@pytest.mark.parametrize("overlap", [True, False])
async def test_another_number_of_shards_loses_no_slot_and_repeats_one_of_a_policy_at_most(*, overlap: bool) -> None:
    """The new owner begins before the old one ends, or after."""
    moving = next(
        f"db{number}"
        for number in range(1000)
        if not Shard(index=0, count=2).owns(namespace="analytics", database=f"db{number}")
    )
    old = World(shard=Shard())
    await old.__aenter__()
    apply(old, [moving])
    await until(45)
    if not overlap:
        await old.__aexit__(None, None, None)
        await until(70)
    new = World(former=old, shard=Shard(index=1, count=2))
    await new.__aenter__()
    if overlap:
        old.api.tell = both(old, new)
        await until(65)
        old.api.tell = new._tell
        await old.supervisor.stop(grace_seconds=0)
    await until(135)
    slots = [call.run.slot_id for call in old.executor.calls]
    assert len(set(slots)) == 4
    assert len(slots) - len(set(slots)) <= 1
    await new.__aexit__(None, None, None)


def both(*worlds: World) -> Callable[[str, Body], None]:
    """What tells every one of them."""

    def tell(news: str, body: Body) -> None:
        for world in worlds:
            world._tell(news, body)

    return tell


def times(world: World, view: str) -> list[int]:
    """When a view was refreshed, in seconds after the beginning."""
    return [round((call.at - EPOCH).total_seconds()) for call in world.executor.calls if str(call.run.view) == view]
