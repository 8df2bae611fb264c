"""From a policy's databaseRef to a connection target, with one read of each Secret; for a slot, one for all views."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """Where the Secrets of a database led when they were read last."""

    spec: MatviewDatabaseSpec
    target: ConnectionTarget
    read_at: float
    """On the loop's clock."""
    expiry: asyncio.TimerHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A read of a database's Secrets that is under way."""

    spec: MatviewDatabaseSpec
    began_at: float
    """On the loop's clock."""
    ended: asyncio.Event


class Targets:
    """Reads the Secrets of databases, and remembers where they led.

    For a second that serves slots that were due before: a thousand policies of one database that are due at once would
    read its Secret a thousand times, which is as much work for the API server as their refreshes are for PostgreSQL.
    Who changes a Secret and asks for a refresh then has it by the new one. For a quarter of an hour it serves when the
    API server cannot be asked: refreshes go on through an outage of ten minutes, because at least every five a
    preflight has read the Secrets before it.
    """

    def __init__(self, *, secrets: Secrets, destinations: Destinations) -> None:
        self._secrets = secrets
        self._destinations = destinations
        self._known: dict[Key, _Known] = {}
        self._readings: dict[Key, _Reading] = {}

    def of_slot(self, key: Key, *, due_at: float) -> SlotTarget:
        """Return the target of one slot, which was due then on the loop's clock."""
        return SlotTarget(key=key, targets=self, due_at=due_at)

    async def resolve(
        self, spec: MatviewDatabaseSpec, key: Key, *, since: float | None = None, patiently: bool = False
    ) -> ConnectionTarget:
        """Where the database is, as its Secrets say now, or said when they were read `since` then; raises Problem.

        Not for long an API server is waited for that does not answer, unless `patiently`.
        """
        asked_at = asyncio.get_running_loop().time()
        if since is not None:
            shared = await self._shared(spec, key, since=since)
            if shared is not None:
                return shared
        known = self._known.get(key)
        if known is not None and known.spec != spec:
            known = None
        reading = _Reading(spec=spec, began_at=asyncio.get_running_loop().time(), ended=asyncio.Event())
        self._readings[key] = reading
        try:
            async with asyncio.timeout_at(None if known is None or patiently else asked_at + _PATIENCE_SECONDS):
                target = await resolve(spec, key, self._secrets, self._destinations)
        except (SecretUnread, TimeoutError):
            if known is None:
                raise
            log.warning(
                "the API server cannot be asked for the Secret of %s; what it said last is used",
                key,
                extra={"action": "secret_unread", "database": str(key)},
            )
            return known.target
        except Problem:
            self._forget(key)
            raise
        else:
            self._remember(key, reading, target)
            return target
        finally:
            reading.ended.set()
            if self._readings.get(key) is reading:
                del self._readings[key]

    def read_since(self, spec: MatviewDatabaseSpec, key: Key, *, moment: float) -> ConnectionTarget | None:
        """What the Secrets of this very spec said when they were read, if that began then or later."""
        known = self._known.get(key)
        if known is None or known.spec != spec or known.read_at < moment:
            return None
        return known.target

    async def _shared(self, spec: MatviewDatabaseSpec, key: Key, *, since: float) -> ConnectionTarget | None:
        """Who comes while somebody reads waits for that, for a second, rather than to read the same."""
        reading = self._readings.get(key)
        if reading is not None and reading.spec == spec and reading.began_at >= since:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SHARED_SECONDS):
                    await reading.ended.wait()
        return self.read_since(spec, key, moment=since)

    def _remember(self, key: Key, reading: _Reading, target: ConnectionTarget) -> None:
        self._forget(key)
        expiry = asyncio.get_running_loop().call_later(REMEMBERED_SECONDS, self._forget, key)
        self._known[key] = _Known(spec=reading.spec, target=target, read_at=reading.began_at, expiry=expiry)

    def _forget(self, key: Key) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            known.expiry.cancel()


class SlotTarget:
    """Where one slot's views are refreshed: the Secrets are read with the first view, and forgotten with the slot."""

    def __init__(self, *, key: Key, targets: Targets, due_at: float) -> None:
        self.key = key
        self._targets = targets
        self._due_at = due_at
        self._spec: MatviewDatabaseSpec | None = None
        self._kept: ConnectionTarget | Problem | None = None
        self._fresh = False
        """Whether the Secrets were read for this very attempt, so that reading them again would tell the same."""
        self._read_again = False
        self._rereading = asyncio.Lock()

    async def of(self, spec: MatviewDatabaseSpec) -> ConnectionTarget:
        """Return what was read in this slot, unless the MatviewDatabase changed since; raises Problem."""
        self._fresh = False
        if self._spec != spec:
            kept = await self._read(spec, since=max(self._due_at, asyncio.get_running_loop().time() - _SHARED_SECONDS))
        else:
            kept = self._kept or await self._read(spec)
        self._spec, self._kept = spec, kept
        if isinstance(kept, Problem):
            raise kept
        return kept

    async def instead_of(self, refused: ConnectionTarget, *, spec: MatviewDatabaseSpec) -> ConnectionTarget | None:
        """Read once more in a slot what was kept and leads nowhere; None if that changes nothing. Raises Problem."""
        async with self._rereading:  # views of the slot may be refused together: one reads, and for all of them
            if not (self._fresh or self._read_again):
                self._read_again = True
                self._kept = await self._read(spec, patiently=True)
        if isinstance(self._kept, Problem):
            raise self._kept
        return None if self._kept == refused else self._kept

    def forget(self) -> None:
        """Have the next view, or the next attempt, read anew."""
        self._kept = None

    async def _read(
        self, spec: MatviewDatabaseSpec, *, since: float | None = None, patiently: bool = False
    ) -> ConnectionTarget | Problem:
        self._kept = None
        began = asyncio.get_running_loop().time()
        try:
            target = await self._targets.resolve(spec, self.key, since=since, patiently=patiently)
        except Problem as problem:
            # What a person must mend holds for the slot's other views; the next may find the API server well again.
            if problem.reason is RefreshReason.CONNECTION_FAILED:
                raise
            return problem
        self._fresh = self._targets.read_since(spec, self.key, moment=began) is not None
        return target


@contextmanager
def _problems_of(secret: str) -> Iterator[None]:
    try:
        yield
    except InvalidTarget as error:
        raise Problem(RefreshReason.SECRET_INVALID, f"Secret {secret}: {error}") from None
