"""From a policy's databaseRef to a connection target, with one read of each Secret; for a slot, one for all views."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import InvalidTarget, Problem
from matview_operator.domain.secret import ca_from_secret, target_from_secret
from matview_operator.engine.ports import Key, Secrets, SecretUnread
from matview_operator.engine.registry import Database

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 900.0
_PATIENCE_SECONDS = 3.0
"""With the API server, where there is something to go on with."""
_SHARED_SECONDS = 1.0


def usable(database: Database | None, key: Key) -> MatviewDatabaseSpec:
    """The spec of a database that may be used; raises Problem."""
    if database is None:
        raise Problem(
            RefreshReason.DATABASE_NOT_FOUND,
            f"There is no MatviewDatabase {key.name} in namespace {key.namespace}. "
            "Create it, or correct spec.databaseRef.name.",
        )
    if database.spec is None:
        raise Problem(
            RefreshReason.DATABASE_NOT_READY,
            f"MatviewDatabase {key.name} has an invalid spec; see kubectl describe mvdb {key.name}.",
        )
    if database.spec.suspend:
        raise Problem(
            RefreshReason.DATABASE_SUSPENDED,
            f"MatviewDatabase {key.name} is suspended (spec.suspend); nothing runs there until it is resumed.",
        )
    return database.spec


async def resolve(
    spec: MatviewDatabaseSpec, key: Key, secrets: Secrets, destinations: Destinations
) -> ConnectionTarget:
    """Read the Secrets of the database's own namespace; raises Problem. Nothing of them is kept."""
    name, ref = spec.secret_ref.name, spec.ca_ref
    data = await secrets.read(namespace=key.namespace, name=name, field="spec.secretRef.name")
    ca = None
    if ref is not None:
        same = ref.name == name
        found = data if same else await secrets.read(namespace=key.namespace, name=ref.name, field="spec.caRef.name")
        with _problems_of(ref.name):
            ca = ca_from_secret(found, ref)
    with _problems_of(name):
        target = target_from_secret(data, secret=name, spec=spec, ca=ca)
    return replace(target, destinations=destinations, owner=str(key))


class Targets:
    """Reads the Secrets of databases, and remembers where they led for when the API server cannot be asked.

    Refreshes go on through an outage of ten minutes: at least every five, a preflight has read the Secrets before it.
    What is remembered serves nothing else, and is forgotten a quarter of an hour after it was read.
    """

    def __init__(self, *, secrets: Secrets, destinations: Destinations) -> None:
        self._secrets = secrets
        self._destinations = destinations
        self._remembered: dict[Key, tuple[MatviewDatabaseSpec, ConnectionTarget]] = {}
        self._expiries: dict[Key, asyncio.TimerHandle] = {}

    async def resolve(self, spec: MatviewDatabaseSpec, key: Key) -> ConnectionTarget:
        """Where the database is, as its Secrets say now; raises Problem."""
        known, remembered = self._remembered.get(key, (None, None))
        patience = _PATIENCE_SECONDS if remembered is not None and known == spec else None
        try:
            async with asyncio.timeout(patience):
                target = await resolve(spec, key, self._secrets, self._destinations)
        except (SecretUnread, TimeoutError):
            if remembered is None or known != spec:
                raise
            log.warning(
                "the API server cannot be asked for the Secret of %s; what it said last is used",
                key,
                extra={"action": "secret_unread", "database": str(key)},
            )
            return remembered
        except Problem:
            self._forget(key)
            raise
        self._forget(key)
        self._remembered[key] = spec, target
        loop = asyncio.get_running_loop()
        self._expiries[key] = loop.call_later(REMEMBERED_SECONDS, self._forget, key)
        return target

    def _forget(self, key: Key) -> None:
        self._remembered.pop(key, None)
        expiry = self._expiries.pop(key, None)
        if expiry is not None:
            expiry.cancel()


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Shared:
    """What the Secrets of a database said when a slot last read them, for all slots that work or wait meanwhile."""

    spec: MatviewDatabaseSpec | None = None
    target: ConnectionTarget | None = None
    read_at: float = 0.0
    """On the loop's clock."""

    def within_a_second(self, spec: MatviewDatabaseSpec) -> ConnectionTarget | None:
        fits = self.spec == spec and asyncio.get_running_loop().time() - self.read_at <= _SHARED_SECONDS
        return self.target if fits else None


class SlotTargets:
    """Makes the targets of slots. Those that are there at the same time share what one of them read within a second.

    Else a thousand policies of one database that are due at once would read its Secret a thousand times, which is as
    much work for the API server as their refreshes are for PostgreSQL. What was read goes with the last slot.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._shared: WeakValueDictionary[Key, _Shared] = WeakValueDictionary()

    def of_slot(self, key: Key) -> SlotTarget:
        """Return the target of one slot."""
        shared = self._shared.setdefault(key, _Shared())
        return SlotTarget(key=key, targets=self._targets, shared=shared)


class SlotTarget:
    """Where one slot's views are refreshed: the Secrets are read with the first view, and forgotten with the slot."""

    def __init__(self, *, key: Key, targets: Targets, shared: _Shared) -> None:
        self.key = key
        self._targets = targets
        self._shared = shared
        self._spec: MatviewDatabaseSpec | None = None
        self._kept: ConnectionTarget | Problem | None = None
        self._fresh = False
        self._read_again = False

    async def of(self, spec: MatviewDatabaseSpec) -> ConnectionTarget:
        """Return what was read in this slot, unless the MatviewDatabase changed since; raises Problem."""
        kept = self._kept if self._spec == spec else self._shared.within_a_second(spec)
        self._fresh = kept is None
        if kept is None:
            self.forget()
            kept = await self._read(spec)
        self._spec, self._kept = spec, kept
        if isinstance(kept, Problem):
            raise kept
        return kept

    async def instead_of(self, refused: ConnectionTarget, *, spec: MatviewDatabaseSpec) -> ConnectionTarget | None:
        """Read once more in a slot what was kept and leads nowhere; None if that changes nothing. Raises Problem."""
        if self._fresh or self._read_again:
            return None
        self._read_again = True
        self.forget()
        self._shared.target = None
        target = await self.of(spec)
        return None if target == refused else target

    def forget(self) -> None:
        """Have the next view, or the next attempt, read anew."""
        self._kept = None

    async def _read(self, spec: MatviewDatabaseSpec) -> ConnectionTarget | Problem:
        read_at = asyncio.get_running_loop().time()
        try:
            target = await self._targets.resolve(spec, self.key)
        except Problem as problem:
            # What a person must mend holds for the slot's other views; the next may find the API server well again.
            if problem.reason is RefreshReason.CONNECTION_FAILED:
                raise
            return problem
        self._shared.spec, self._shared.target, self._shared.read_at = spec, target, read_at
        return target


@contextmanager
def _problems_of(secret: str) -> Iterator[None]:
    try:
        yield
    except InvalidTarget as error:
        raise Problem(RefreshReason.SECRET_INVALID, f"Secret {secret}: {error}") from None
