"""GATE-2C, fault 23: the order of managed views, and which policies make one impossible."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.domain.dependencies import dependency_order, knots
from matview_operator.domain.precedence import Managed, managed, precedence
from matview_operator.domain.view import ViewName

Graph = dict[int, set[int]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 12))
    node = st.integers(0, size - 1)
    return {each: draw(st.sets(node, max_size=3)) for each in range(size)}


def named(name: object) -> ViewName:
    return ViewName("public", str(name))


def names(text: str) -> tuple[ViewName, ...]:
    return tuple(map(named, text.split()))


def policy(text: str, *, grouped: bool = False, **depends_on: str) -> Managed:
    return Managed(
        depends_on={view: names(depends_on.get(str(view), "")) for view in names(text)},
        grouped=grouped,
    )


def reachable(graph: Graph, start: int) -> set[int]:
    seen: set[int] = set()
    ahead = list(graph[start])
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += graph[node]
    return seen


# Knots.


@given(graphs())
def test_fault_23_knots_are_exactly_what_lies_on_cycles(graph: Graph) -> None:
    reach = {node: reachable(graph, node) for node in graph}
    found = knots(graph)
    assert {node for knot in found for node in knot} == {node for node in graph if node in reach[node]}
    for knot in found:
        for node in knot:
            assert {other for other in graph if other in reach[node] and node in reach[other]} == set(knot)


@given(graphs())
def test_fault_23_the_cycle_that_is_named_is_one_and_its_policies_alone_have_the_problem(graph: Graph) -> None:
    order = precedence(
        {node: policy(str(node)) for node in graph},
        catalogue={named(node): {named(other) for other in others} for node, others in graph.items()},
    )
    assert set(order.problems) == {node for node in graph if node in reachable(graph, node)}
    for node, problem in order.problems.items():
        assert problem.reason is RefreshReason.DEPENDENCY_CYCLE
        text = problem.message.partition("first: ")[2].partition(".")[0]
        cycle = [int(name) for name in text.split(" → ")]
        assert cycle[0] == cycle[-1]
        assert len(cycle) > 1
        assert all(after in graph[before] for before, after in pairwise(cycle))
        assert cycle[0] in reachable(graph, node)


@given(graphs())
def test_gate_2c_without_the_policies_that_have_a_problem_there_is_an_order(graph: Graph) -> None:
    catalogue = {named(node): {named(other) for other in others} for node, others in graph.items()}
    first = precedence({node: policy(str(node)) for node in graph}, catalogue=catalogue)
    rest = precedence({node: policy(str(node)) for node in graph if node not in first.problems}, catalogue=catalogue)
    assert rest.problems == {}
    views = {named(node) for node in graph if node not in first.problems}
    place = {view: at for at, view in enumerate(dependency_order({view: rest.reads.get(view, ()) for view in views}))}
    assert all(place[other] < place[view] for view, others in rest.reads.items() for other in others)
    assert all(other in rest.reads.get(view, ()) for view in views for other in catalogue[view] & views)


# What policies say.


def test_gate_2c_the_catalogue_and_the_policies_are_joined_and_views_of_nobody_left_out() -> None:
    order = precedence(
        {"p": policy("a b", b="a"), "q": policy("c", c="b")},
        catalogue={named("c"): {named("a"), named("unmanaged")}, named("unmanaged"): {named("b")}},
    )
    assert order.problems == {}
    assert order.reads == {named("b"): {named("a")}, named("c"): {named("a"), named("b")}}


def test_fault_23_a_missing_name_is_the_problem_of_the_policy_that_names_it_alone() -> None:
    order = precedence({"p": policy("a b", b="gone a"), "q": policy("c", c="b")}, catalogue={})
    assert order.problems.keys() == {"p"}
    assert order.problems["p"].reason is RefreshReason.DEPENDENCY_MISSING
    assert order.problems["p"].message.startswith("b depends on gone (spec.views[].dependsOn), which no policy")
    assert order.reads == {named("b"): {named("a")}, named("c"): {named("b")}}


@pytest.mark.parametrize("grouped", [False, True])
def test_fault_23_a_view_that_depends_on_itself_is_a_cycle(*, grouped: bool) -> None:
    order = precedence({"p": policy("a b", a="a", grouped=grouped)}, catalogue={})
    assert "first: a → a." in order.problems["p"].message


def test_fault_23_every_policy_that_names_a_view_on_a_cycle_has_the_problem_and_who_reads_one_has_not() -> None:
    order = precedence(
        {
            "p": policy("a x", a="b"),
            "q": policy("b", b="a"),
            "r": policy("a"),
            "s": policy("y", y="a"),
            "t": policy("z"),
        },
        catalogue={},
    )
    assert order.problems.keys() == {"p", "q", "r"}


def test_fault_23_two_cycles_are_told_apart() -> None:
    order = precedence(
        {"p": policy("a b", a="b", b="a"), "q": policy("c d", c="d", d="c")}, catalogue={named("a"): {named("c")}}
    )
    assert "a → b → a" in order.problems["p"].message
    assert "c → d → c" in order.problems["q"].message


def test_fault_23_a_view_between_those_of_a_group_is_the_groups_problem() -> None:
    policies = {"g": policy("k z", grouped=True), "m": policy("m", m="k")}
    assert precedence(policies, catalogue={}).problems == {}
    order = precedence(policies, catalogue={named("z"): {named("m")}})
    assert order.problems.keys() == {"g"}
    assert "(k, z) → m → (k, z)" in order.problems["g"].message


def test_fault_23_two_groups_that_wait_for_each_other_have_no_order() -> None:
    order = precedence(
        {
            "g": policy("a b", a="c", grouped=True),
            "h": policy("c d", d="b", grouped=True),
            "same": policy("b a", grouped=True),
            "v": policy("a"),
        },
        catalogue={},
    )
    assert order.problems.keys() == {"g", "h", "same"}
    assert "(a, b) → (c, d) → (a, b)" in order.problems["h"].message


def test_gate_2c_a_group_keeps_its_own_order_inside() -> None:
    assert precedence({"g": policy("a b c", b="a", c="b", grouped=True)}, catalogue={}).problems == {}


def test_gate_2c_a_spec_says_what_its_views_depend_on() -> None:
    spec = MatviewRefreshPolicySpec.model_validate(
        {
            "databaseRef": {"name": "db"},
            "views": [{"name": "a", "dependsOn": [{"name": "b"}, {"schema": "S", "name": "B"}]}, {"name": "b"}],
            "schedule": {"everySeconds": 30},
            "consistency": "Group",
        }
    )
    assert managed(spec) == Managed(
        depends_on={named("a"): (named("b"), ViewName("S", "B")), named("b"): ()}, grouped=True
    )


# Size.


def calls_to_order(reads: dict[str, str]) -> int:
    """How many calls of functions it takes, the same on every machine."""
    policies = {view: Managed(depends_on={named(view): names(others)}) for view, others in reads.items()}
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    former = sys.getprofile()
    sys.setprofile(count)
    try:
        order = precedence(policies, catalogue={})
    finally:
        sys.setprofile(former)
    assert order.problems == {}
    assert len(order.reads) == len(reads) - 1
    return calls


def chain(size: int) -> dict[str, str]:
    order = [f"v{number}" for number in range(size)]
    shuffled = random.Random(1).sample(range(size), size)  # noqa: S311 - the shape of a graph
    return {order[number]: order[number - 1] if number else "" for number in shuffled}


def fan_out(size: int) -> dict[str, str]:
    return {f"v{number}": "v0" if number else "" for number in range(size)}


@pytest.mark.parametrize("shape", [chain, fan_out], ids=["chain", "fan"])
def test_gate_2c_the_work_for_500_views_is_in_proportion_to_their_number(
    shape: Callable[[int], dict[str, str]],
) -> None:
    small, large = calls_to_order(shape(500)), calls_to_order(shape(1000))
    assert small < 500 * 100  # a tenth of a second would be 2 µs for each
    assert large < 2.1 * small
