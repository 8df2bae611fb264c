"""Which views of one database are refreshed before which others, and which policies make that impossible."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Consistency, MatviewRefreshPolicySpec
from matview_operator.domain.dependencies import arrows, cycle_of, knots
from matview_operator.domain.errors import Problem
from matview_operator.domain.view import ViewName

Policy = TypeVar("Policy", bound=Hashable)
"""What a policy is known by."""

Reads = Mapping[ViewName, Collection[ViewName]]
"""Views, each with those that it reads; a view that reads none may be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """One policy's views, as far as their order goes."""

    depends_on: Mapping[ViewName, tuple[ViewName, ...]]
    """What it says that they read; every view is a key."""
    grouped: bool = False
    """Whether they are refreshed as one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Precedence(Generic[Policy]):
    """The order of one database's managed views. Equal only to itself."""

    reads: Mapping[ViewName, frozenset[ViewName]] = field(default_factory=dict)
    """By view: the managed views that it reads. Without a cycle but for the views of policies with a problem."""
    problems: Mapping[Policy, Problem] = field(default_factory=dict)
    """By policy: why there is no order for its views."""


def managed(spec: MatviewRefreshPolicySpec) -> Managed:
    """What a policy's spec says of its views."""
    return Managed(
        depends_on={
            ViewName(view.schema_name, view.name): tuple(
                ViewName(other.schema_name, other.name) for other in view.depends_on or ()
            )
            for view in spec.views
        },
        grouped=spec.consistency is Consistency.GROUP,
    )


def precedence(policies: Mapping[Policy, Managed], *, catalogue: Reads) -> Precedence[Policy]:
    """Join what the catalogue knows with what the policies say.

    A policy has a problem if it depends on a view that no policy names, or one of its views is on a cycle. Those that
    only read such views have none. Takes as long as there are views and edges.
    """
    reads: dict[ViewName, set[ViewName]] = {view: set() for each in policies.values() for view in each.depends_on}
    problems: dict[Policy, Problem] = {}
    for view, others in reads.items():
        others.update(other for other in catalogue.get(view, ()) if other in reads)
    for policy, each in policies.items():
        for view, named in each.depends_on.items():
            for other in named:
                if other in reads:
                    reads[view].add(other)
                elif policy not in problems:
                    problems[policy] = _missing(view, other)
    cycles, groups = _view_cycles(reads), _group_cycles(reads, policies.values())
    for policy, each in policies.items():
        found = [cycles[view] for view in each.depends_on if view in cycles]
        if each.grouped and not found:
            found = [groups[step] for step in (frozenset(each.depends_on),) if step in groups]
        if found:
            problems.setdefault(policy, found[0])
    return Precedence(reads={view: frozenset(others) for view, others in reads.items() if others}, problems=problems)


def _missing(view: ViewName, other: ViewName) -> Problem:
    return Problem(
        RefreshReason.DEPENDENCY_MISSING,
        f"{view} depends on {other} (spec.views[].dependsOn), which no policy of this MatviewDatabase names. "
        "Name it in one, or correct dependsOn.",
    )


def _view_cycles(reads: Mapping[ViewName, set[ViewName]]) -> dict[ViewName, Problem]:
    problems: dict[ViewName, Problem] = {}
    linked = {view for view, others in reads.items() if others}  # most views read no other
    for knot in knots({view: reads[view] & linked for view in reads if view in linked}):
        names = set(knot)
        cycle = cycle_of({view: sorted(reads[view] & names) for view in sorted(names)})
        problem = Problem(
            RefreshReason.DEPENDENCY_CYCLE,
            f"These views depend on each other in a cycle, so that none can be refreshed first: {arrows(cycle)}. "
            "Correct spec.views[].dependsOn, or the views.",
        )
        problems.update(dict.fromkeys(names, problem))
    return problems


def _group_cycles(
    reads: Mapping[ViewName, set[ViewName]], policies: Collection[Managed]
) -> dict[frozenset[ViewName], Problem]:
    """Groups that cannot be refreshed as one, because a view outside comes after one of their views and before another.

    Cycles of views inside one group are the views' own.
    """
    groups = {frozenset(each.depends_on) for each in policies if each.grouped}
    if not groups:
        return {}
    steps = groups | {frozenset((view,)) for each in policies if not each.grouped for view in each.depends_on}
    steps_of: dict[ViewName, list[frozenset[ViewName]]] = {}
    for step in steps:
        for view in step:
            steps_of.setdefault(view, []).append(step)
    after = {
        step: {before for view in step for other in reads[view] - step for before in steps_of[other]} for step in steps
    }
    problems: dict[frozenset[ViewName], Problem] = {}
    for knot in knots(after):
        among = set(knot)
        if among.isdisjoint(groups):
            continue  # views alone, which are told of as such
        cycle = cycle_of({step: sorted(after[step] & among, key=sorted) for step in sorted(among, key=sorted)})
        named = arrows([_shown(step) for step in cycle])
        problem = Problem(
            RefreshReason.DEPENDENCY_CYCLE,
            f"consistency: Group refreshes these views as one, and a view outside comes in between: {named}. "
            "Take it into the group, or make two policies.",
        )
        problems.update(dict.fromkeys(among & groups, problem))
    return problems


def _shown(step: frozenset[ViewName]) -> str:
    names = ", ".join(map(str, sorted(step)))
    return names if len(step) == 1 else f"({names})"
