"""All databases of the tests on one server: the templates, and the copies that tests get."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, OTHER_TENANT, RLS_BYPASS_OWNER, Database, quoted

from matview_operator.adapters.postgres.migration_environment import CONNECTION_ATTRIBUTE, transaction
from matview_operator.adapters.postgres.migrations import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandbox.postgres import PostgresServer
    from sqlalchemy import Connection

_CHECKOUT = Path(__file__).parents[1]
ANALYTICS_ROLES = ("analytics_owner", "analytics_views", "analytics_app", "analytics_operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A database that is made once per server and then copied."""

    base: str
    """The template that it is a copy of before `build` works on it."""
    build: Callable[[Database], Awaitable[None]]


async def _bare(database: Database) -> None:
    """The roles, and a schema public in which the two owners may work."""
    await database.allow_login(APP_OWNER, RLS_BYPASS_OWNER, MV_OPERATOR, OTHER_TENANT)
    await database.execute_as(
        SUPERUSER,
        f"""
        alter role {RLS_BYPASS_OWNER} bypassrls;
        grant {APP_OWNER}, {RLS_BYPASS_OWNER} to {MV_OPERATOR};
        grant create on schema public to {APP_OWNER}, {RLS_BYPASS_OWNER};
        """,
    )


async def _ledger(database: Database) -> None:
    """The bookkeeping schema, which the operator may use."""
    await upgrade(database.admin_url, grant_to=[MV_OPERATOR])


async def _reference(database: Database) -> None:
    """The reference application, whose operator role may use the ledger too; all its roles can log in."""

    def migrate(connection: Connection) -> None:
        config = Config(_CHECKOUT / "alembic.ini", ini_section="reference")
        config.attributes[CONNECTION_ATTRIBUTE] = connection
        command.upgrade(config, "head")

    async with transaction(database.admin_url) as connection:
        await connection.run_sync(migrate)
    await database.allow_login(*ANALYTICS_ROLES)
    await upgrade(database.admin_url, grant_to=["analytics_operator"])


TEMPLATES = {
    "bare": Template(base="template0", build=_bare),
    "ledger": Template(base="bare", build=_ledger),
    "reference": Template(base="ledger", build=_reference),
}
"""What `Databases.create` knows. A fixture for a new one is three lines beside the others."""


class Databases:
    """The databases of tests on one server. Templates are made when first asked for."""

    def __init__(self, server: PostgresServer) -> None:
        """The server is the caller's, and is gone only after the last database."""
        self.server = server
        self._passwords: dict[str, str] = {}
        self._templates: set[str] = set()
        self._numbers = itertools.count(1)

    async def create(self, template: str) -> Database:
        """Make a new database like this template."""
        await self._make_template(template)
        return await self._copy(template, name=f"test_{next(self._numbers)}")

    @asynccontextmanager
    async def lend(self, template: str) -> AsyncIterator[Database]:
        """Make a database for the time of the block."""
        database = await self.create(template)
        try:
            yield database
        finally:
            await self.drop(database)

    async def drop(self, database: Database) -> None:
        """Close a database's connections and drop it, whoever is connected to it."""
        await database.close()
        await self._as_admin(f"drop database {quoted(database.name)} with (force)")

    async def _make_template(self, name: str) -> None:
        if name in self._templates or name == "template0":
            return
        template = TEMPLATES[name]
        await self._make_template(template.base)
        database = await self._copy(template.base, name=f"template_{name}")
        # A copy does not inherit this: the log that a failing test shows is about the test.
        await self._as_admin(f"alter database {quoted(database.name)} set log_statement = 'none'")
        try:
            await template.build(database)
        except BaseException:
            await self.drop(database)
            raise
        # A database with a session in it cannot be copied.
        await database.close()
        self._templates.add(name)

    async def _copy(self, template: str, *, name: str) -> Database:
        source = template if template == "template0" else f"template_{template}"
        await self._as_admin(f"create database {quoted(name)} template {quoted(source)} strategy file_copy")
        return Database(server=self.server, name=name, passwords=self._passwords)

    async def _as_admin(self, sql: str) -> None:
        admin = Database(server=self.server, name="postgres", passwords=self._passwords)
        try:
            await admin.execute_as(SUPERUSER, sql)
        finally:
            await admin.close()
