"""The reference application's database, ready for work: migrated, with a ledger, seeded, its roles able to log in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from sandbox.migration import run_migration
from sandbox.operator_process import PROGRAM
from sandbox.password import new_password
from sandbox.reference import (
    APP_ROLE,
    OPERATOR_ROLE,
    OWNER_ROLE,
    REFERENCE_VIEWS,
    Tenant,
    migrate_reference,
    seed,
    set_role_passwords,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.postgres import PostgresServer
    from sandbox.steps import Steps

DATABASE = "analytics"
BASE_ROWS = 205_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Analytics:
    """How to reach the database, as whom. None of the roles is a superuser."""

    server: PostgresServer
    tenants: tuple[Tenant, ...]
    _passwords: Mapping[str, str] = field(repr=False)

    @property
    def admin_url(self) -> str:
        """The superuser's URL."""
        return self.server.admin_url(DATABASE)

    def url(self, role: str) -> str:
        """Return the URL of a role that can log in: OWNER_ROLE, APP_ROLE or OPERATOR_ROLE."""
        return self.server.url(user=role, password=self._passwords[role], database=DATABASE)

    def operator_secret(self) -> dict[str, str]:
        """Return the keys of a Secret that lets the operator log in as its role."""
        return {
            "host": "127.0.0.1",
            "port": str(self.server.port),
            "dbname": DATABASE,
            "username": OPERATOR_ROLE,
            "password": self._passwords[OPERATOR_ROLE],
        }


async def create_analytics(server: PostgresServer, *, steps: Steps) -> Analytics:
    """Create the database with both migrations and two tenants' data.

    Raises SandboxError with what alembic or `matview-operator migrate` said.
    """
    passwords = {role: new_password() for role in (OWNER_ROLE, APP_ROLE, OPERATOR_ROLE)}
    admin = await asyncpg.connect(server.admin_url())
    try:
        await admin.execute(f"create database {DATABASE}")
    finally:
        await admin.close()
    database = Analytics(server=server, tenants=(), _passwords=passwords)
    with steps.step("Migrating the reference application") as step:
        await migrate_reference(database.admin_url)
        await set_role_passwords(database.admin_url, passwords)
        step.result = f"Reference application: {len(REFERENCE_VIEWS)} materialized views, row-level security forced"
    with steps.step("Installing the operator's ledger") as step:
        await run_migration(
            *(PROGRAM, "migrate", "--grant-to", OPERATOR_ROLE),
            database_url=database.url(OWNER_ROLE),
            what="matview-operator migrate",
        )
        step.result = f"Ledger of refreshes, installed by {OWNER_ROLE}: no superuser needed"
    with steps.step("Seeding two tenants' data") as step:
        tenants = await seed(database.admin_url, tenants=2, base_rows=BASE_ROWS)
        names = " and ".join(tenant.name for tenant in tenants)
        step.result = f"{BASE_ROWS:,} base rows of {names}"
    return Analytics(server=server, tenants=tenants, _passwords=passwords)
