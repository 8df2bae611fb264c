"""The reference application: its migrations, its roles' passwords, and believable data of its tenants."""

from __future__ import annotations

import sys
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from sandbox.migration import run_migration
from sandbox.scram import scram_verifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

REFERENCE_VIEWS = (
    "mv_allocation_summary",
    "mv_channel_performance",
    "mv_daily_revenue_summary",
    "mv_realtime_revenue",
    "mv_reconciliation_status",
)
"""The views that the reference application's migrations make in schema public: these five and no other."""

OWNER_ROLE = "analytics_owner"
"""Owns the tables, may refresh the views and may create schemas, the bookkeeping one for instance."""
VIEWS_ROLE = "analytics_views"
"""Owns the views, sees all tenants (BYPASSRLS), and never logs in."""
APP_ROLE = "analytics_app"
"""The application: one tenant's rows at a time, by row-level security."""
OPERATOR_ROLE = "analytics_operator"
"""May refresh the views, and nothing else."""

SEED_DAYS = 120
KEPT_DAYS = 117
"""Older events are purged, so that some allocations have lost their event, as in a real application."""

_ROOT = Path(__file__).resolve().parent.parent
_PURCHASES = Path(__file__).with_suffix(".sql").read_text()
_ROWS_PER_PURCHASE = 12
_DIGITS = 9
_NAMES = (
    ("Alpenglow Outdoor", "EUR"),
    ("Harbour Street Books", "GBP"),
    ("Kestrel Audio", "USD"),
    ("Sorrel & Thyme", "CHF"),
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer of the application."""

    tenant_id: uuid.UUID
    name: str
    currency: str


def tenant(number: int) -> Tenant:
    """Return the tenant of this number, from 0; the same one always."""
    name, currency = _NAMES[number % len(_NAMES)]
    if number >= len(_NAMES):
        name = f"{name} {number // len(_NAMES) + 1}"
    # The first are the ones that manifests/samples names.
    tenant_id = uuid.UUID(f"{number + 1}" * 32) if number < _DIGITS else uuid.uuid5(uuid.NAMESPACE_OID, name)
    return Tenant(tenant_id=tenant_id, name=name, currency=currency)


async def migrate_reference(admin_url: str) -> None:
    """Bring the reference application's schema to its newest revision, by alembic's command line.

    The URL is a superuser's. Raises SandboxError with alembic's output.
    """
    await run_migration(
        *(sys.executable, "-m", "alembic", "-c", _ROOT / "alembic.ini", "-n", "reference", "upgrade", "head"),
        database_url=admin_url,
        what="Migrating the reference application",
    )


async def set_role_passwords(admin_url: str, passwords: Mapping[str, str]) -> None:
    """Let roles of the reference application log in: role → password, in ASCII.

    The migrations make roles that cannot, because a role without a password is an open door on a trusting server.
    """
    async with _connection(admin_url) as connection:
        for role, password in passwords.items():
            statement = await connection.fetchval(
                "select format('alter role %I login password %L', $1::text, $2::text)", role, scram_verifier(password)
            )
            await connection.execute(statement)


async def seed(admin_url: str, *, tenants: int = 2, base_rows: int = 200_000) -> tuple[Tenant, ...]:
    """Fill the migrated, empty database with at least `base_rows` rows in all, and return the tenants.

    The first tenant is the largest, the n-th has 1/n of its rows. The rows end now and go back SEED_DAYS days; ids,
    amounts and channels are the same each time. The views are fresh at the end: what they lack is what is written
    from then on.
    """
    members = tuple(tenant(number) for number in range(tenants))
    shares = [1 / number for number in range(1, tenants + 1)]
    async with _connection(admin_url) as connection:
        async with connection.transaction():
            # Only a superuser may. The checks of foreign keys would take most of the time, and find nothing.
            await connection.execute("set local session_replication_role = replica")
            await connection.executemany(
                "insert into public.tenants (tenant_id, name, currency) values ($1, $2, $3)",
                [(member.tenant_id, member.name, member.currency) for member in members],
            )
            await connection.execute("select setseed(0.20261122)")
            for member, share in zip(members, shares, strict=True):
                purchases = round(base_rows * share / sum(shares) / _ROWS_PER_PURCHASE * 1.02) + 1
                await connection.fetchval(_PURCHASES, member.tenant_id, purchases, SEED_DAYS, str(member.tenant_id))
            await connection.execute(
                """insert into public.reconciliation_runs (tenant_id, run_id, state, last_run_at)
                   select tenant_id, md5(tenant_id || ':reconciliation:' || i)::uuid,
                          case when i % 41 = 0 then 'failed' when i % 13 = 0 then 'drifted' else 'balanced' end,
                          now() - interval '6 hours' * i
                   from public.tenants, generate_series(0, 4 * $1::int) as i""",
                SEED_DAYS,
            )
        await connection.execute(
            "delete from public.attribution_events where occurred_at < now() - make_interval(days => $1)", KEPT_DAYS
        )
        await connection.execute("vacuum (analyze)")
        for view in REFERENCE_VIEWS:
            await connection.execute(f"refresh materialized view public.{view}")
            await connection.execute(f"analyze public.{view}")
    return members


async def insert_events(
    connection: asyncpg.Connection[asyncpg.Record], *, tenant_id: uuid.UUID, purchases: int = 1
) -> int:
    """Add purchases that happen now, as the application would: its role, its tenant's setting. Return the rows added.

    One transaction; twelve rows for each purchase: five events, five allocations, two entries of the ledger.
    Raises asyncpg.PostgresError where row-level security or the workers' trigger refuses.
    """
    async with connection.transaction():
        await connection.fetchval("select set_config('app.current_tenant_id', $1, true)", str(tenant_id))
        return int(await connection.fetchval(_PURCHASES, tenant_id, purchases, 0, str(uuid.uuid4())))


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
