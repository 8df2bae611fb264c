"""`matview-operator migrate`: install, remove and check the bookkeeping schema.

One migration at a time in a process, because alembic keeps the running one in a global; any number of processes.
Imports alembic and SQLAlchemy, which the running operator does not need: only the command line imports this module.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from matview_operator.adapters.postgres.migration_environment import (
    CONNECTION_ATTRIBUTE,
    MigrationFailed,
    transaction,
)
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.server import ledger_advice

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_ROLE_EXISTS = text("select exists (select from pg_catalog.pg_roles r where r.rolname = :role)")
# The server quotes the role. INSERT leaves out what the server fills in: run_id, recorded_by, settles, finished_at.
_GRANTS = (
    "grant usage on schema matview_ops to %I",
    "grant select on matview_ops.refresh_run to %I",
    """grant insert (policy_uid, view_oid, view_name, slot_id, due_at, attempt, outcome, lock_token, data_as_of, mode,
       rows_inserted, rows_deleted, rows_total, reason, sqlstate, message, correlation_id)
       on matview_ops.refresh_run to %I""",
    "grant execute on function matview_ops.prune(interval) to %I",
)
_QUOTE = text("select pg_catalog.format(cast(:statement as text), cast(:role as text))")
# A role that was only granted the ledger's use does not see the version; the ledger's columns must do then.
_VERSION_READABLE = """
select pg_catalog.has_table_privilege(c.oid, 'SELECT') as yes
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'matview_ops' and c.relname = 'alembic_version'
"""
_VERSION = "select v.version_num from matview_ops.alembic_version v"


async def upgrade(url: str, *, grant_to: Sequence[str] = ()) -> None:
    """Install or bring up to date, and let the given roles use the ledger; all or nothing, and harmless to repeat.

    Raises InvalidTarget, Problem for the connection, MigrationFailed for the rest; none of them tells the password.
    """
    async with transaction(url) as connection:
        await connection.run_sync(_run, lambda config: command.upgrade(config, "head"))
        for role in grant_to:
            await _grant(connection, role)


async def downgrade(url: str) -> None:
    """Remove the schema matview_ops and with it every run recorded there. Raises as upgrade does."""
    async with transaction(url) as connection:
        await connection.run_sync(_run, lambda config: command.downgrade(config, "base"))


async def check(url: str) -> Bookkeeping:
    """Tell whether the URL's role finds a ledger that it can use.

    Raises InvalidTarget, and Problem also where there is a ledger that the role was not granted.
    """
    session = await Session.open(parse_url(url))
    try:
        facts = session.facts
        if facts.bookkeeping_forbidden or facts.bookkeeping_flaw:
            raise Problem(RefreshReason.PERMISSION_DENIED, ledger_advice(facts) or "")
        if facts.bookkeeping is not Bookkeeping.INSTALLED:
            return facts.bookkeeping
        readable = await session.row(_VERSION_READABLE)
        if readable is not None and not readable.yes:
            return Bookkeeping.INSTALLED
        version = await session.row(_VERSION) if readable is not None else None
        # Numbers with leading zeros, which only grow: a newer matview-operator's schema serves this one too.
        newest = ScriptDirectory.from_config(_config()).get_current_head() or ""
        return Bookkeeping.INSTALLED if version is not None and version.version_num >= newest else Bookkeeping.OUTDATED
    except Problem:
        raise
    except Exception as error:  # whatever a server answers becomes a problem with a reason
        raise problem_of(error) from error
    finally:
        await session.close()


def scripts() -> Path:
    """Find the migrations: inside the installed package, or in the checkout that an editable install points to."""
    package = Path(str(files("matview_operator")))
    for folder in (package / "migrations", package.parent.parent / "alembic" / "bookkeeping"):
        if (folder / "env.py").is_file():
            return folder
    raise MigrationFailed("This installation of matview-operator holds no migrations; install the wheel again.")


def _run(connection: Connection, work: Callable[[Config], None]) -> None:
    config = _config()
    config.attributes[CONNECTION_ATTRIBUTE] = connection
    work(config)


def _config() -> Config:
    config = Config(stdout=io.StringIO(), output_buffer=io.StringIO())
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def _grant(connection: AsyncConnection, role: str) -> None:
    # Also keeps `public` out, which GRANT would read as everybody, quoted or not: no role can bear that name.
    if not await connection.scalar(_ROLE_EXISTS, {"role": role}):
        raise MigrationFailed(
            f"There is no role {role!r} to grant the ledger to. Create it first; nothing was changed."
        )
    for grant in _GRANTS:
        statement = await connection.scalar(_QUOTE, {"statement": grant, "role": role})
        await connection.exec_driver_sql(statement)
