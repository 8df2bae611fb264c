"""GATE-2C: a real topological order, and problems told by name."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matview_operator.domain.dependencies import InvalidDependencies, dependency_order
from matview_operator.domain.view import ViewName


def named(name: str) -> ViewName:
    return ViewName("public", name)


def order(reads: dict[str, list[str]]) -> list[str]:
    result = dependency_order({named(view): [named(other) for other in others] for view, others in reads.items()})
    return [str(view) for view in result]


def test_gate_2c_each_view_comes_after_those_it_reads() -> None:
    assert order({"a": ["b"], "b": ["d"], "c": ["b", "a"], "d": []}) == ["d", "b", "a", "c"]


def test_gate_2c_independent_views_come_by_name() -> None:
    assert order({"c": [], "a": [], "b": []}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("reads", "cycle"),
    [
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": []}, ["a → b → c → a", "b → c → a → b", "c → a → b → c"]),
        ({"a": ["a"]}, ["a → a"]),
    ],
)
def test_gate_2c_a_cycle_is_named(reads: dict[str, list[str]], cycle: list[str]) -> None:
    with pytest.raises(InvalidDependencies) as caught:
        order(reads)
    assert any(f"in a cycle: {way}." in str(caught.value) for way in cycle)


def test_gate_2c_a_missing_dependency_is_named() -> None:
    with pytest.raises(InvalidDependencies, match=r"^b reads gone, which is not among the views"):
        order({"a": [], "b": ["a", "gone"]})


@given(size=st.integers(0, 60), seed=st.integers())
@example(size=500, seed=0)
def test_gate_2c_any_acyclic_graph_has_an_order(size: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the shape of a graph
    names = [named(f"v{number:03}") for number in range(size)]
    chance.shuffle(names)
    reads = {
        name: chance.sample(names[:position], k=min(position, chance.randrange(4)))
        for position, name in enumerate(names)
    }
    result = dependency_order(reads)
    place = {name: position for position, name in enumerate(result)}
    assert sorted(result) == sorted(names)
    assert all(place[other] < place[name] for name, others in reads.items() for other in others)
