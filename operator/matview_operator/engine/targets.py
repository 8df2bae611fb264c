"""From a policy's databaseRef to a connection target, with one read of each Secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import InvalidTarget, Problem
from matview_operator.domain.secret import ca_from_secret, target_from_secret
from matview_operator.engine.ports import Key, Secrets
from matview_operator.engine.registry import Database


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


@contextmanager
def _problems_of(secret: str) -> Iterator[None]:
    try:
        yield
    except InvalidTarget as error:
        raise Problem(RefreshReason.SECRET_INVALID, f"Secret {secret}: {error}") from None
