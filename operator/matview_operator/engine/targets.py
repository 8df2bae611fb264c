"""From a policy's databaseRef to a connection target, with one read of the Secret."""

from __future__ import annotations

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget, target_from_secret
from matview_operator.domain.errors import InvalidTarget, Problem
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


async def resolve(spec: MatviewDatabaseSpec, key: Key, secrets: Secrets) -> ConnectionTarget:
    """Read the Secret of the database's own namespace; raises Problem. Nothing of it is kept."""
    data = await secrets.read(namespace=key.namespace, name=spec.secret_ref.name)
    try:
        return target_from_secret(data, database=spec.database, ssl_mode=spec.ssl_mode)
    except InvalidTarget as error:
        raise Problem(RefreshReason.SECRET_INVALID, f"Secret {spec.secret_ref.name}: {error}") from None
