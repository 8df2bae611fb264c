"""In which order views are refreshed that read each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter

from matview_operator.domain.errors import MatviewError
from matview_operator.domain.view import ViewName


class InvalidDependencies(MatviewError):
    """Views for which there is no order. The text names them."""


def dependency_order(reads: Mapping[ViewName, Collection[ViewName]]) -> list[ViewName]:
    """Return the views so that each comes after those it reads; by name where that leaves a choice.

    `reads` has every view as a key. Raises InvalidDependencies, which names a cycle's views or the missing one.
    """
    for view in sorted(reads):
        for missing in sorted(set(reads[view]) - reads.keys()):
            raise InvalidDependencies(f"{view} reads {missing}, which is not among the views.")
    sorter = TopologicalSorter(reads)
    try:
        sorter.prepare()
    except CycleError as error:
        # graphlib lists it against the direction of reading, the first view once more at the end.
        cycle = " → ".join(str(view) for view in reversed(error.args[1]))
        raise InvalidDependencies(f"These materialized views read each other in a cycle: {cycle}.") from None
    order: list[ViewName] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return order
