"""Which views of each database come before which others: what the preflights read and the policies say, joined."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from matview_operator.domain.errors import Problem
from matview_operator.domain.precedence import Managed, Precedence, managed, precedence
from matview_operator.domain.view import ViewName
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy, Registry

FIRST_LOOK_SECONDS = 2.0
"""So long slots wait after a start, at most, until it is known what their database's views read: all of them may be due
then."""


@dataclass(slots=True)
class _Known:
    """What is known of one database."""

    reads: Mapping[ViewName, Collection[ViewName]] = field(default_factory=dict)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    revision: int | None = None
    """Of the registry, when `precedence` was worked out."""
    precedence: Precedence[Key] = field(default_factory=Precedence)
    stirred: set[Key] = field(default_factory=set)


class Order:
    """Works it out anew when a policy changed, and only when somebody asks."""

    def __init__(self, *, registry: Registry) -> None:
        self._registry = registry
        self._known: defaultdict[Key, _Known] = defaultdict(_Known)

    def learn(self, database: Key, reads: Mapping[ViewName, Collection[ViewName]] | None) -> None:
        """Take what a look at a database found of its managed views; None if the look failed."""
        known = self._known[database]
        if reads is not None and reads != known.reads:
            known.reads, known.revision = reads, None
        known.looked.set()

    def precedence(self, database: Key) -> Precedence[Key]:
        """The order of a database's views; the same object until it is another order."""
        known = self._known[database]
        revision = self._registry.revisions.get(database, 0)
        if known.revision != revision:
            found = precedence(self._concerned(database, known.reads), catalogue=known.reads)
            before, after = _told(known.precedence), _told(found)
            known.stirred |= {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            if found.reads != known.precedence.reads or before != after:
                known.precedence = found
            known.revision = revision
        return known.precedence

    def problem(self, policy: Policy) -> Problem | None:
        """Why there is no order for the policy's views."""
        return None if policy.database_key is None else self.precedence(policy.database_key).problems.get(policy.key)

    def stirred(self, database: Key | None) -> set[Key]:
        """The policies for which `problem` came to say something else; each is told once."""
        if database is None:
            return set()
        self.precedence(database)
        keys, self._known[database].stirred = self._known[database].stirred, set()
        if database not in self._registry.revisions:
            del self._known[database]
        return keys

    async def looked(self, database: Key) -> None:
        """Wait for the first look at a database; not for long, and not where one view alone is managed."""
        known = self._known[database]
        if not known.looked.is_set() and len(self._registry.views.get(database, ())) > 1:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await known.looked.wait()

    def _concerned(self, database: Key, reads: Mapping[ViewName, Collection[ViewName]]) -> dict[Key, Managed]:
        """The policies whose views read others or are read: few, though the database may have ten thousand."""
        says = {key: self._managed(key) for key in self._registry.dependent.get(database, ())}
        depended = [named for each in says.values() for named in each.depends_on.values()]
        views = set(reads).union(*reads.values(), *depended)
        return says | {key: self._managed(key) for view in views for key in self._registry.naming(database, view)}

    def _managed(self, key: Key) -> Managed:
        spec = self._registry.policies[key].spec
        assert spec is not None  # it names a view
        return managed(spec)


def _told(order: Precedence[Key]) -> dict[Key, tuple[str, str]]:
    return {key: (problem.reason, problem.message) for key, problem in order.problems.items()}
