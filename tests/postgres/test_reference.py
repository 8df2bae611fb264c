"""The reference application: H-A, H-B, R2, EG-2, G3, G4, and the defects of the original that it avoids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.errors import SandboxError
from sandbox.pgtemplate import SUPERUSER
from sandbox.reference import (
    APP_ROLE,
    OPERATOR_ROLE,
    OWNER_ROLE,
    REFERENCE_VIEWS,
    VIEWS_ROLE,
    insert_events,
    migrate_reference,
    seed,
    set_role_passwords,
    tenant,
)
from tests.alembic_command import alembic
from tests.database import OTHER_TENANT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.database import Connection, Database
    from tests.databases import Databases

ONE, OTHER = tenant(0), tenant(1)
INGESTION = ("attribution_events", "revenue_ledger")
RELATIONS = "select relname from pg_class where relnamespace = 'public'::regnamespace"
VIEWS = "select schemaname, matviewname, matviewowner, ispopulated from pg_matviews"


async def two_tenants(database: Database) -> None:
    admin = await database.connect(SUPERUSER)
    for member in (ONE, OTHER):
        await admin.execute("insert into tenants values ($1, $2, $3)", member.tenant_id, member.name, member.currency)


async def app(database: Database, *, context: str | None = None) -> Connection:
    """Connect as the application that works for one tenant."""
    connection = await database.connect(APP_ROLE)
    await connection.execute("select set_config('app.current_tenant_id', $1, false)", str(ONE.tenant_id))
    if context is not None:
        await connection.execute("select set_config('app.execution_context', $1, false)", context)
    return connection


async def rewritten(database: Database, view: str) -> tuple[int, int]:
    """Refresh concurrently as the operator's role; return how many rows that inserted and deleted."""
    connection = await database.connect(OPERATOR_ROLE)
    # Fourteen hours ahead of the seed's session: days must not move with whoever refreshes.
    await connection.execute("set timezone = 'Pacific/Kiritimati'")
    counters = f"""select pg_stat_get_xact_tuples_inserted('{view}'::regclass) as inserted,
                          pg_stat_get_xact_tuples_deleted('{view}'::regclass) as deleted"""
    async with connection.transaction():
        await connection.execute(f"refresh materialized view concurrently {view}")
        (row,) = await connection.fetch(counters)
    return row["inserted"], row["deleted"]


async def _until(connection: Connection, condition: str) -> None:
    """Return when the server says so; the test's own timeout is the bound."""
    while not await connection.fetchval(condition):  # noqa: ASYNC110 - a server sends no event when somebody waits
        await asyncio.sleep(0.05)


# H-B, R2, EG-2: a database made by the migrations alone has exactly these views.


async def test_h_b_the_migrations_make_exactly_the_five_views(bare_database: Database) -> None:
    await migrate_reference(bare_database.admin_url)
    views = await bare_database.fetch_as(SUPERUSER, VIEWS)
    assert {tuple(row) for row in views} == {("public", name, VIEWS_ROLE, True) for name in REFERENCE_VIEWS}


# H-A, R1, EG-1.


@pytest.mark.parametrize("databases", [15, 18], indirect=True, ids=["pg15", "pg18"])
async def test_h_a_fresh_seeded_and_removed(bare_database: Database, tmp_path: Path) -> None:
    url = bare_database.admin_url.replace("postgresql", "postgresql+asyncpg", 1)

    async def run(*arguments: str) -> None:
        finished = await alembic(*arguments, section="reference", url=url, cwd=tmp_path)
        assert finished.code == 0, finished.output

    fresh = await bare_database.fetch_as(SUPERUSER, RELATIONS)
    await run("upgrade", "0001")
    await two_tenants(bare_database)
    await bare_database.allow_login(APP_ROLE)
    await insert_events(await bare_database.connect(APP_ROLE), tenant_id=ONE.tenant_id, purchases=3)
    await run("upgrade", "head")
    assert await bare_database.value_as(SUPERUSER, "select count(*) from mv_allocation_summary") == 6
    await run("downgrade", "base")
    assert await bare_database.fetch_as(SUPERUSER, RELATIONS) == fresh
    assert await bare_database.value_as(SUPERUSER, "select true from pg_roles where rolname = $1", VIEWS_ROLE)


@pytest.mark.parametrize("version", [15, 16, 18])
async def test_h_a_parallel_upgrades_share_the_roles_of_a_cluster(
    start_server: Callable[..., Databases], version: int
) -> None:
    databases = start_server(version=version)
    made = [await databases.create("template0") for _ in range(2)]
    async with asyncio.TaskGroup() as group:
        # Another upgrade of this cluster has made a role and not committed yet.
        other = await made[0].connect(SUPERUSER)
        await other.execute("begin; create role analytics_owner nologin")
        for database in (*made, made[0]):
            group.create_task(migrate_reference(database.admin_url))
        await _until(other, "select count(*) = 2 from pg_locks where relation = 'pg_authid'::regclass and not granted")
        await other.execute("commit")
    for database in made:
        views = await database.fetch_as(SUPERUSER, VIEWS)
        assert {row["matviewname"] for row in views} == set(REFERENCE_VIEWS)
    roles = await made[0].fetch_as(
        SUPERUSER,
        "select rolname, rolsuper, rolbypassrls, rolcanlogin from pg_roles where rolname like 'analytics%' order by 1",
    )
    assert [tuple(row) for row in roles] == [
        (role, False, role == VIEWS_ROLE, False) for role in sorted((APP_ROLE, OPERATOR_ROLE, OWNER_ROLE, VIEWS_ROLE))
    ]
    for database in made:
        await database.close()


async def test_h_a_a_role_that_would_end_isolation_is_refused(start_server: Callable[..., Databases]) -> None:
    databases = start_server(version=18)
    database = await databases.create("template0")
    await database.execute_as(SUPERUSER, f"create role {APP_ROLE} bypassrls")
    with pytest.raises(SandboxError, match="exists with other attributes"):
        await migrate_reference(database.admin_url)
    assert await database.fetch_as(SUPERUSER, VIEWS) == []
    await database.close()


async def test_h_a_a_plain_role_is_told_that_it_takes_a_superuser(bare_database: Database) -> None:
    with pytest.raises(SandboxError, match=f"need a superuser.*{OTHER_TENANT} is none"):
        await migrate_reference(bare_database.url(OTHER_TENANT))
    assert await bare_database.fetch_as(SUPERUSER, VIEWS) == []


# G4: nothing is ingested under the worker's context.


async def test_g4_workers_write_to_no_ingestion_table(reference_database: Database) -> None:
    await two_tenants(reference_database)
    worker = await app(reference_database, context="worker")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="belongs to ingestion"):
        await insert_events(worker, tenant_id=ONE.tenant_id)
    assert await insert_events(await app(reference_database), tenant_id=ONE.tenant_id) == 12

    owner = await reference_database.connect(OWNER_ROLE)
    await owner.execute("select set_config('app.execution_context', 'worker', false)")
    for table in INGESTION:
        for connection, statement in (
            (worker, f"insert into {table} select * from {table}"),
            (worker, f"update {table} set tenant_id = tenant_id"),
            (worker, f"delete from {table}"),
            (owner, f"truncate {table} cascade"),
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"must not write to {table}"):
                await connection.execute(statement)
    assert await worker.fetchval("select count(*) from attribution_events") == 5
    assert await worker.fetchval("select count(*) from revenue_ledger") == 2

    # What workers compute they may write, and read what they compute it from.
    await worker.execute("update attribution_allocations set confidence_score = 1")
    await worker.execute(
        "insert into reconciliation_runs (tenant_id, state, last_run_at) values ($1, 'balanced', now())", ONE.tenant_id
    )


async def test_g4_refresh_works_under_the_workers_context(reference_database: Database) -> None:
    await two_tenants(reference_database)
    await insert_events(await app(reference_database), tenant_id=ONE.tenant_id)
    operator = await reference_database.connect(OPERATOR_ROLE)
    await operator.execute("select set_config('app.execution_context', 'worker', false)")
    for view in REFERENCE_VIEWS:
        await operator.execute(f"refresh materialized view concurrently {view}")
    assert await reference_database.value_as(SUPERUSER, "select count(*) from mv_allocation_summary") == 2


# G3: tenants are apart in the base tables, and together in the views.


async def test_g3_a_tenant_reads_and_writes_its_own_rows_only(reference_database: Database) -> None:
    await two_tenants(reference_database)
    connection = await reference_database.connect(APP_ROLE)
    for member in (ONE, OTHER):
        await insert_events(connection, tenant_id=member.tenant_id)
    # The setting was local; what is left of it is the empty string, which must neither match nor fail.
    assert await connection.fetchval("select current_setting('app.current_tenant_id', true)") == ""
    for session in (connection, await reference_database.connect(OWNER_ROLE)):
        for table in ("tenants", "attribution_allocations", "reconciliation_runs", *INGESTION):
            assert await session.fetchval(f"select count(*) from {table}") == 0
    mine = await app(reference_database)
    assert await mine.fetchval("select array_agg(distinct tenant_id) from attribution_events") == [ONE.tenant_id]
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await mine.execute("update attribution_events set tenant_id = $1", OTHER.tenant_id)


async def test_g3_the_operators_role_refreshes_for_all_tenants_and_reads_nothing(reference_database: Database) -> None:
    await two_tenants(reference_database)
    for member in (ONE, OTHER):
        await insert_events(await reference_database.connect(APP_ROLE), tenant_id=member.tenant_id)
    operator = await reference_database.connect(OPERATOR_ROLE)
    # Set, it would leave one tenant's rows if the views' owner were subject to row-level security.
    await operator.execute("select set_config('app.current_tenant_id', $1, false)", str(ONE.tenant_id))
    await operator.execute("refresh materialized view mv_realtime_revenue")
    assert await reference_database.value_as(SUPERUSER, "select count(*) from mv_realtime_revenue") == 2
    refused = ["drop table revenue_ledger", "insert into tenants default values", "select from tenants"]
    if reference_database.version >= 16:
        refused.append(f"set role {VIEWS_ROLE}")
    if reference_database.version >= 17:
        refused += ["select from revenue_ledger", "select from mv_realtime_revenue"]
    for statement in refused:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await operator.execute(statement)


# The defects of the original.


async def test_equal_times_of_two_reconciliations_are_told_apart_by_id(reference_database: Database) -> None:
    await two_tenants(reference_database)
    admin = await reference_database.connect(SUPERUSER)
    await admin.execute(
        """insert into reconciliation_runs (tenant_id, run_id, state, last_run_at)
           select $1, ('00000000-0000-4000-8000-00000000000' || i)::uuid, state, '2026-11-22'
           from unnest(array['failed', 'balanced', 'drifted']) with ordinality as run (state, i)""",
        ONE.tenant_id,
    )
    assert await rewritten(reference_database, "mv_reconciliation_status") == (1, 0)
    assert await rewritten(reference_database, "mv_reconciliation_status") == (0, 0)
    rows = await admin.fetch("select tenant_id, state from mv_reconciliation_status")
    assert [tuple(row) for row in rows] == [(ONE.tenant_id, "drifted")]


async def test_a_refresh_without_news_rewrites_no_row(reference_database: Database) -> None:
    await seed(reference_database.admin_url, base_rows=600)
    for view in REFERENCE_VIEWS:
        assert await rewritten(reference_database, view) == (0, 0), view
    await reference_database.execute_as(
        SUPERUSER, "delete from attribution_events where event_type = 'purchase' and revenue_cents < 5000"
    )
    inserted, deleted = await rewritten(reference_database, "mv_allocation_summary")
    assert deleted > inserted > 0, "what lost its event became one row per tenant and model"
    null_keys = "select count(*) from mv_allocation_summary where event_id is null"
    assert await reference_database.value_as(SUPERUSER, null_keys) == 4
    assert await rewritten(reference_database, "mv_allocation_summary") == (0, 0)


# The demo's data.


async def test_the_seed_is_believable_and_the_views_hold_all_of_it(reference_database: Database) -> None:
    members = await seed(reference_database.admin_url, tenants=3, base_rows=5_000)
    assert [member.tenant_id for member in members] == [tenant(number).tenant_id for number in range(3)]
    admin = await reference_database.connect(SUPERUSER)

    async def count(query: str) -> int:
        return int(await admin.fetchval(f"select count(*) from {query}"))

    rows = [await count(table) for table in (*INGESTION, "attribution_allocations")]
    assert 5_000 <= sum(rows) <= 5_500
    assert await count("attribution_events where occurred_at > now()") == 0
    events = "select event_id from attribution_events"
    assert await count(f"attribution_allocations where event_id not in ({events})") == 0
    booked = await admin.fetchval("select count(*) from revenue_ledger where state <> 'authorized'")
    assert await admin.fetchval("select sum(transaction_count) from mv_daily_revenue_summary") == booked
    shares = await admin.fetch("select count(*) from attribution_events group by tenant_id order by 1 desc")
    assert shares[0][0] > shares[1][0] > shares[2][0] > 0


async def test_a_writer_makes_the_views_stale(reference_database: Database) -> None:
    await seed(reference_database.admin_url, base_rows=600)
    await set_role_passwords(reference_database.admin_url, {APP_ROLE: reference_database.passwords[APP_ROLE]})
    connection = await reference_database.connect(APP_ROLE)
    assert await insert_events(connection, tenant_id=OTHER.tenant_id, purchases=4) == 48
    newest = "select max(last_event_at) = (select max(booked_at) from revenue_ledger) from mv_realtime_revenue"
    assert await reference_database.value_as(SUPERUSER, newest) is False
    assert await rewritten(reference_database, "mv_realtime_revenue") == (1, 1)
    assert await reference_database.value_as(SUPERUSER, newest) is True
