"""Whose turn it is: everybody once in a round, and who comes new before those who had theirs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from matview_operator.engine.ports import Key

T = TypeVar("T", bound=Hashable)


class Rounds(Generic[T]):
    """Members who take turns, each operation in constant time.

    A member waits for one turn of each other member at most, whatever those have left to do, and a newcomer for none
    of those who had theirs. Who leaves and comes again within a round has not gained a turn.
    """

    def __init__(self) -> None:
        self._now: OrderedDict[T, None] = OrderedDict()
        self._later: OrderedDict[T, None] = OrderedDict()
        self._had: set[T] = set()
        """Who had a turn in this round, gone or not."""

    def __bool__(self) -> bool:
        return bool(self._now or self._later)

    def add(self, member: T) -> None:
        """Let it take part; nothing happens if it does already."""
        if member not in self._now and member not in self._later:
            (self._later if member in self._had else self._now)[member] = None

    def discard(self, member: T) -> None:
        """Let it take part no more; nothing happens if it does not."""
        self._now.pop(member, None)
        self._later.pop(member, None)

    def turn(self) -> T:
        """Give the next one its turn. It takes part in the next round until it is discarded."""
        if not self._now:
            self._now, self._later = self._later, self._now
            self._had.clear()
        member, _ = self._now.popitem(last=False)
        self._later[member] = None
        self._had.add(member)
        return member


class NamespaceRounds:
    """Databases that take turns by their namespaces: one with a hundred of them has no more turns than one with one."""

    def __init__(self) -> None:
        self._namespaces: Rounds[str] = Rounds()
        self._databases: dict[str, Rounds[Key]] = {}

    def __bool__(self) -> bool:
        return bool(self._namespaces)

    def add(self, database: Key) -> None:
        """Let it take part; nothing happens if it does already."""
        self._databases.setdefault(database.namespace, Rounds()).add(database)
        self._namespaces.add(database.namespace)

    def discard(self, database: Key) -> None:
        """Let it take part no more; nothing happens if it does not."""
        databases = self._databases.get(database.namespace)
        if databases is not None:
            databases.discard(database)
            if not databases:
                del self._databases[database.namespace]
                self._namespaces.discard(database.namespace)

    def turn(self) -> Key:
        """Give the next one its turn."""
        return self._databases[self._namespaces.turn()].turn()
