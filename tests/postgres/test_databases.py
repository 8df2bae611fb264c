"""What the fixtures promise to other tests: a database of their own, plain roles, a real PgBouncer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database
    from tests.databases import Databases


async def test_pgbouncer_shares_one_server_connection_between_transactions(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    gateway = pgbouncer(database, pool_size=1)
    clients = [await database.connect(via=gateway) for _ in range(3)]
    backends = {await client.fetchval("select pg_backend_pid()") for client in clients}
    assert len(backends) == 1
    # One client's transaction holds the only server connection; another's waits for its end.
    await clients[0].execute("begin")
    waiting = asyncio.create_task(clients[1].fetchval("select 'served'"))
    _, pending = await asyncio.wait([waiting], timeout=0.3)
    assert pending
    await clients[0].execute("commit")
    assert await waiting == "served"


async def test_a_view_made_for_a_test_can_be_refreshed_by_its_operator_alone(bare_database: Database) -> None:
    view = await bare_database.make_view('Ödd "name";', schema="Other schema")
    statement = 'refresh materialized view concurrently "Other schema"."Ödd ""name"";"'
    await bare_database.execute_as("mv_operator", statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bare_database.execute_as("other_tenant", statement)
    assert view.name == 'Ödd "name";'
    ledger = await bare_database.value_as("mv_operator", "select to_regclass('matview_ops.refresh_run') is null")
    assert ledger is True


async def test_no_role_of_the_tests_is_a_superuser(reference_database: Database) -> None:
    rows = await reference_database.fetch_as(
        "postgres", "select rolname, rolbypassrls from pg_roles where rolsuper = false and rolcanlogin"
    )
    assert {row["rolname"] for row in rows} == set(reference_database.passwords)
    bypassing = {row["rolname"] for row in rows if row["rolbypassrls"]}
    assert bypassing == {"rls_bypass_owner", "analytics_views"}
    views = await reference_database.value_as("analytics_operator", "select count(*) from pg_matviews")
    assert views == 5


async def test_every_test_gets_a_database_of_its_own(databases: Databases) -> None:
    async with databases.lend("ledger") as first, databases.lend("ledger") as second:
        await first.make_view()
        made = "select count(*) from pg_matviews"
        assert await first.value_as("mv_operator", made) == 1
        assert await second.value_as("mv_operator", made) == 0
        names = [first.name, second.name]
    async with databases.lend("ledger") as third:
        left = await third.fetch_as("postgres", "select datname from pg_database where datname = any($1)", names)
    assert left == []
