"""One database of a test, used by roles without superuser."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeAlias

import asyncpg
from sandbox.password import new_password
from sandbox.pgtemplate import SUPERUSER
from sandbox.scram import scram_verifier

from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from sandbox.postgres import PostgresServer

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

APP_OWNER = "app_owner"
"""Owns what the tests make."""
RLS_BYPASS_OWNER = "rls_bypass_owner"
"""An owner whom row-level security does not concern."""
MV_OPERATOR = "mv_operator"
"""What the operator logs in as: a member of both owners, so that it may refresh on 15 and 16 too."""
OTHER_TENANT = "other_tenant"
"""A stranger, with the privileges of PUBLIC and no others."""

_CLOSE_SECONDS = 3.0


class Gateway(Protocol):
    """What leads to a server: itself, or a PgBouncer in front of it."""

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a URL."""
        ...


class Database:
    """A database on a real server. Owned by the fixture that made it, which closes its connections and drops it."""

    def __init__(self, *, server: PostgresServer, name: str, passwords: dict[str, str]) -> None:
        """`passwords` are those of the server's roles, shared by all its databases."""
        self.server = server
        self.name = name
        self._passwords = passwords
        self._opened: list[Connection] = []
        self._sessions: dict[str, Connection] = {}

    @property
    def version(self) -> int:
        """The server's major version."""
        return self.server.version

    @property
    def admin_url(self) -> str:
        """The superuser's URL; for what a test has to arrange, never for what it tests."""
        return self.server.admin_url(self.name)

    @property
    def passwords(self) -> dict[str, str]:
        """The passwords of all roles that can log in, by role."""
        return dict(self._passwords)

    def url(self, role: str = MV_OPERATOR, *, via: Gateway | None = None) -> str:
        """Return a role's URL, directly or through a gateway."""
        if role == SUPERUSER and via is None:
            return self.admin_url
        return (via or self.server).url(user=role, password=self._passwords[role], database=self.name)

    async def connect(self, role: str = MV_OPERATOR, *, via: Gateway | None = None) -> Connection:
        """Open a connection of a role (`postgres` is the superuser); it is closed with the database."""
        connection = await asyncpg.connect(self.url(role, via=via), ssl=False, statement_cache_size=0, timeout=30)
        self._opened.append(connection)
        return connection

    async def execute_as(self, role: str, sql: str) -> None:
        """Execute statements as a role, each call in the same session of that role."""
        await (await self._session(role)).execute(sql)

    async def fetch_as(self, role: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Return the rows of a query, in the session of `execute_as`."""
        return await (await self._session(role)).fetch(sql, *arguments)

    async def value_as(self, role: str, sql: str, *arguments: object) -> object:
        """Return the first column of a query's first row, in the session of `execute_as`."""
        return await (await self._session(role)).fetchval(sql, *arguments)

    async def allow_login(self, *roles: str) -> None:
        """Let roles log in; those that exist keep their other attributes, those that do not are made plain."""
        for role in roles:
            if not await self.value_as(SUPERUSER, "select true from pg_roles where rolname = $1", role):
                await self.execute_as(SUPERUSER, f"create role {quoted(role)} nosuperuser nobypassrls")
            password = self._passwords.setdefault(role, new_password())
            verifier = scram_verifier(password)
            await self.execute_as(SUPERUSER, f"alter role {quoted(role)} login password '{verifier}'")

    async def make_view(
        self,
        name: str = "mv",
        *,
        rows: int = 3,
        unique: bool = True,
        schema: str = "public",
        owner: str = APP_OWNER,
    ) -> ViewName:
        """Make a table `<name>_base(id int, tenant_id text, v int)` and a view of it, with a unique index on id.

        Both belong to `owner`; names are literal. Rows alternate between the tenants `a` and `b`, v is ten times id.
        """
        view = ViewName(schema, name)
        table = f"{quoted(schema)}.{quoted(f'{name}_base')}"
        full_name = f"{quoted(schema)}.{quoted(name)}"
        if schema != "public":
            await self.execute_as(
                SUPERUSER, f"create schema if not exists {quoted(schema)} authorization {quoted(owner)}"
            )
        await self.execute_as(
            owner,
            f"""
            create table {table} (id int primary key, tenant_id text not null, v int);
            insert into {table}
              select n, case when n % 2 = 1 then 'a' else 'b' end, n * 10 from generate_series(1, {rows:d}) n;
            create materialized view {full_name} as select id, tenant_id, v from {table};
            """,
        )
        if unique:
            await self.execute_as(owner, f"create unique index on {full_name} (id)")
        return view

    async def close(self) -> None:
        """Close every connection, also those that a failed test left waiting."""
        self._sessions.clear()
        while self._opened:
            connection = self._opened.pop()
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()
            connection.terminate()

    async def _session(self, role: str) -> Connection:
        session = self._sessions.get(role)
        if session is None or session.is_closed():
            session = self._sessions[role] = await self.connect(role)
        return session


def quoted(identifier: str) -> str:
    """Return an identifier as SQL writes it."""
    return '"' + identifier.replace('"', '""') + '"'
