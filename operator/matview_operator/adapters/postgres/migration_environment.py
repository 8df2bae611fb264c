"""What both env.py of alembic/ do: connect by our own rules, lock, migrate, all in one transaction."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.wire.connection import close, connect
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import MatviewError

if TYPE_CHECKING:
    from matview_operator.adapters.postgres.wire.authentication import Row

URL_VARIABLE = "DATABASE_URL"
CONNECTION_ATTRIBUTE = "connection"
"""Key in alembic's Config.attributes of a connection that is already in a transaction; whoever put it there commits."""

TRANSACTION_SECONDS = 600.0

# The search path: a migration may run as a superuser in a database where others can create functions.
_SETTINGS = text("""
    select pg_catalog.set_config('lock_timeout', '60s', true),
           pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)
""")
# In a statement of its own, before the versions are read: under READ COMMITTED the next statement sees what another
# migration committed before it gave the lock back. One bigint never collides with the views' keys of two integers.
_LOCK = text("""
    select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('matview-operator migration', 0))
""")


class MigrationFailed(MatviewError):
    """A migration could not be done; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One chain of migrations of alembic.ini."""

    version_table: str
    version_table_schema: str
    prepare: Callable[[Connection], None]
    """Called before the versions are read, under the lock."""
    finish: Callable[[Connection], None]
    """Called when everything was undone, in the same transaction."""


def run(section: Section) -> None:
    """Do what alembic was asked for, on the caller's connection or on an own one to DATABASE_URL."""
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: these migrations look at the server first.")
    connection: Connection | None = context.config.attributes.get(CONNECTION_ATTRIBUTE)
    if connection is not None:
        _migrate(section, connection)
        return
    _say_what_is_done()
    try:
        asyncio.run(_migrate_alone(section))
    except MatviewError as error:
        raise CommandError(str(error)) from None


@asynccontextmanager
async def transaction(url: str) -> AsyncIterator[AsyncConnection]:
    """Open one transaction for a migration; it commits at the end of the block.

    Raises InvalidTarget, Problem, and MigrationFailed; the text of none holds the URL or its password.
    """
    target = parse_url(url)
    try:
        raw = await connect(target)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise problem_of(error, connecting=True) from None
    try:
        async with asyncio.timeout(TRANSACTION_SECONDS), _engine(raw).connect() as connection:
            try:
                await connection.begin()
                yield connection
                await connection.commit()
            except BaseException:  # when it is cancelled, too: no connection is left behind
                # The server rolls back when we are gone. SQLAlchemy would send ROLLBACK and wait for an answer, for
                # ever if the peer is silent, unless it knows that there is no connection any more.
                await close(raw)
                await connection.invalidate()
                raise
    except DBAPIError as error:
        raise _failed(error) from None
    except SQLAlchemyError as error:
        raise MigrationFailed(f"The migration failed in an unexpected way ({type(error).__name__}).") from error
    except CommandError as error:
        raise MigrationFailed(str(error)) from None
    except TimeoutError:
        raise MigrationFailed(f"The migration did not end within {TRANSACTION_SECONDS:.0f} s.") from None
    finally:
        await close(raw)


def _engine(raw: asyncpg.Connection[Row]) -> AsyncEngine:
    async def live() -> asyncpg.Connection[Row]:
        return raw

    def creator() -> Any:
        # create_async_engine's async_creator has no way to hand on these two. Through a transaction-pooling PgBouncer
        # asyncpg's own numbered statement names would collide with those of the server connection's former users.
        return engine.sync_engine.dialect.dbapi.connect(  # type: ignore[union-attr]
            async_creator_fn=live,
            prepared_statement_cache_size=0,
            prepared_statement_name_func=lambda: uuid.uuid4().hex,
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=creator,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        isolation_level="READ COMMITTED",
        hide_parameters=True,
    )
    return engine


def _say_what_is_done() -> None:
    """Let alembic's command line name each migration, on standard error."""
    progress = logging.getLogger("alembic.runtime.migration")
    progress.addHandler(logging.StreamHandler())
    progress.setLevel(logging.INFO)
    # alembic prints its errors by itself and logs them too, which without any handler would print them again.
    logging.getLogger("alembic").addHandler(logging.NullHandler())


async def _migrate_alone(section: Section) -> None:
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise CommandError(
            f"Set the environment variable {URL_VARIABLE} to postgresql://user:password@host:port/database."
        )
    async with transaction(url) as connection:
        await connection.run_sync(lambda sync: _migrate(section, sync))


def _migrate(section: Section, connection: Connection) -> None:
    connection.execute(_SETTINGS)
    connection.execute(_LOCK)
    context.configure(
        connection=connection,
        version_table=section.version_table,
        version_table_schema=section.version_table_schema,
    )
    here = context.get_context()
    reading = bool(here.opts.get("dont_mutate", False))
    if not reading:
        section.prepare(connection)
    with context.begin_transaction():
        context.run_migrations()
    if not reading and not here.get_current_heads():
        section.finish(connection)


def _failed(error: DBAPIError) -> MatviewError:
    """Say what the server said, without the statement and its parameters."""
    cause = error.orig.__cause__ if error.orig is not None else None
    if isinstance(cause, asyncpg.PostgresError):
        return MigrationFailed(f"The server refused the migration: {problem_of(cause).message}")
    return MigrationFailed("The connection to the server was lost; the migration was rolled back.")
