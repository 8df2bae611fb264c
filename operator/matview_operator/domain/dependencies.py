"""In which order views are refreshed that read each other."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Generic, TypeVar

from matview_operator.domain.errors import MatviewError
from matview_operator.domain.view import ViewName

Node = TypeVar("Node", bound=Hashable)


class InvalidDependencies(MatviewError):
    """Views for which there is no order. The text names them."""


def dependency_order(reads: Mapping[ViewName, Collection[ViewName]]) -> list[ViewName]:
    """Return the views so that each comes after those it reads; by name where that leaves a choice.

    `reads` has every view as a key. Raises InvalidDependencies, which names a cycle's views or the missing one.
    """
    for view in sorted(reads):
        for missing in sorted(set(reads[view]) - reads.keys()):
            raise InvalidDependencies(f"{view} reads {missing}, which is not among the views.")
    cycle = cycle_of(reads)
    if cycle:
        raise InvalidDependencies(f"These materialized views read each other in a cycle: {arrows(cycle)}.")
    sorter = TopologicalSorter(reads)
    sorter.prepare()
    order: list[ViewName] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return order


def cycle_of(reads: Mapping[Node, Collection[Node]]) -> list[Node]:
    """One cycle in the direction of reading, its first node once more at the end; empty if there is none."""
    try:
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib lists it against the direction of reading
    return []


def arrows(cycle: Collection[object]) -> str:
    """A cycle in words."""
    return " → ".join(map(str, cycle))


def knots(reads: Mapping[Node, Collection[Node]]) -> list[list[Node]]:
    """The largest sets of nodes that all reach each other: each cycle lies in one of them, each node in one at most.

    `reads` has every node as a key. Takes as long as there are nodes and edges (Tarjan 1972, without recursion).
    """
    search = _KnotSearch(reads)
    for root in reads:
        search.look_from(root)
    return search.found


class _KnotSearch(Generic[Node]):
    """Depth first, without recursion: a chain of views may be longer than Python's stack."""

    def __init__(self, reads: Mapping[Node, Collection[Node]]) -> None:
        self._reads = reads
        self.found: list[list[Node]] = []
        self._number: dict[Node, int] = {}
        self._lowest: dict[Node, int] = {}
        """The lowest number on the path that a node is known to reach."""
        self._path: dict[Node, None] = {}
        self._stack: list[tuple[Node, Iterator[Node]]] = []

    def look_from(self, root: Node) -> None:
        """Look at all that is reached from here and was not looked at."""
        if root not in self._number:
            self._enter(root)
        while self._stack:
            node, others = self._stack[-1]
            for other in others:
                if other not in self._number:
                    self._enter(other)
                    break
                if other in self._path:
                    self._lowest[node] = min(self._lowest[node], self._number[other])
            else:
                self._leave(node)

    def _enter(self, node: Node) -> None:
        self._number[node] = self._lowest[node] = len(self._number)
        self._path[node] = None
        self._stack.append((node, iter(self._reads[node])))

    def _leave(self, node: Node) -> None:
        self._stack.pop()
        if self._stack:
            above = self._stack[-1][0]
            self._lowest[above] = min(self._lowest[above], self._lowest[node])
        if self._lowest[node] == self._number[node]:
            knot = [self._path.popitem()[0]]
            while knot[-1] != node:
                knot.append(self._path.popitem()[0])
            if len(knot) > 1 or node in self._reads[node]:
                self.found.append(knot)
