"""`migrate --grant-to`: what a role gets of the ledger, and what the ledger holds against forgery."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, OTHER_TENANT, quoted

from matview_operator.adapters.postgres.migrations import check, upgrade
from matview_operator.adapters.postgres.sql.queries import LEDGER_WRITTEN
from matview_operator.api.database import Bookkeeping
from matview_operator.domain.errors import MatviewError

if TYPE_CHECKING:
    from tests.database import Database

RUN = """
    insert into matview_ops.refresh_run
      (policy_uid, view_oid, view_name, slot_id, outcome, lock_token, data_as_of, correlation_id)
    values ('6f1b0f5e-0000-4000-8000-000000000001', 1, 'mv', $1, 'SUCCESS', 'GLOBAL', now(), 'c')
"""
OLD_RUN = """
    insert into matview_ops.refresh_run
      (recorded_by, finished_at, slot_id,
       policy_uid, view_oid, view_name, outcome, lock_token, data_as_of, correlation_id)
    values ($1, now() - $2::interval, $3, gen_random_uuid(), 1, 'mv', 'FAILED', 'GLOBAL', now(), 'c')
"""
only_18 = pytest.mark.parametrize("databases", [18], indirect=True, ids=["pg18"])


@pytest.fixture
async def owner_url(bare_database: Database) -> str:
    """The URL of a plain role that may create schemas in a database without the ledger."""
    await bare_database.execute_as(SUPERUSER, f"grant create on database {quoted(bare_database.name)} to {APP_OWNER}")
    return bare_database.url(APP_OWNER)


async def test_grants_are_these_and_no_others(database: Database) -> None:
    def granted(privilege: str) -> str:
        return f"select has_any_column_privilege($1, 'matview_ops.refresh_run', '{privilege}')"

    columns = await database.fetch_as(
        SUPERUSER,
        """select attname from pg_attribute where attrelid = 'matview_ops.refresh_run'::regclass and attnum > 0
           and has_column_privilege($1, attrelid, attnum, 'INSERT')""",
        MV_OPERATOR,
    )
    assert {row["attname"] for row in columns} == set(LEDGER_WRITTEN)
    assert await database.value_as(SUPERUSER, granted("SELECT"), MV_OPERATOR)
    assert not await database.value_as(SUPERUSER, granted("UPDATE"), MV_OPERATOR)
    table = "select has_table_privilege($1, 'matview_ops.refresh_run', 'DELETE, TRUNCATE, REFERENCES, TRIGGER')"
    assert not await database.value_as(SUPERUSER, table, MV_OPERATOR)
    stranger = """select has_schema_privilege($1, 'matview_ops', 'USAGE, CREATE')
                  or has_any_column_privilege($1, 'matview_ops.refresh_run', 'SELECT, INSERT')
                  or has_function_privilege($1, 'matview_ops.prune(interval)', 'EXECUTE')"""
    assert not await database.value_as(SUPERUSER, stranger, OTHER_TENANT)


async def test_an_operator_cannot_forge_what_the_server_fills_in(database: Database) -> None:
    operator = await database.connect(MV_OPERATOR)
    await operator.execute(RUN, "slot:1")
    (row,) = await operator.fetch("select * from matview_ops.refresh_run")
    assert (row["recorded_by"], row["settles"]) == (MV_OPERATOR, True)
    refused = (asyncpg.InsufficientPrivilegeError, asyncpg.GeneratedAlwaysError)
    for column, value in (
        ("recorded_by", f"'{OTHER_TENANT}'"),
        ("finished_at", "now()"),
        ("run_id", "7"),
        ("settles", "true"),
    ):
        forged = RUN.replace("(policy_uid", f"({column}, policy_uid").replace("values (", f"values ({value}, ")
        with pytest.raises(refused):
            await operator.execute(forged, "slot:2")
    for statement in (
        "update matview_ops.refresh_run set outcome = 'FAILED'",
        "delete from matview_ops.refresh_run",
        "truncate matview_ops.refresh_run",
        "drop table matview_ops.refresh_run",
        "create table matview_ops.mine ()",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await operator.execute(statement)
    assert await operator.fetchval("select count(*) from matview_ops.refresh_run") == 1


async def test_a_slot_settles_once(database: Database) -> None:
    operator = await database.connect(MV_OPERATOR)
    await operator.execute(RUN, "slot:1")
    with pytest.raises(asyncpg.UniqueViolationError):
        await operator.execute(RUN, "slot:1")
    await operator.execute(RUN.replace("SUCCESS", "FAILED"), "slot:1")


async def test_prune_deletes_only_own_rows_that_are_old(database: Database) -> None:
    admin = await database.connect(SUPERUSER)
    for role in (MV_OPERATOR, OTHER_TENANT):
        for hours in (1, 25, 24 * 31):
            await admin.execute(OLD_RUN, role, timedelta(hours=hours), f"slot:{hours}")
    operator = await database.connect(MV_OPERATOR)

    async def left(role: str) -> list[str]:
        rows = await admin.fetch("select slot_id from matview_ops.refresh_run where recorded_by = $1 order by 1", role)
        return [row["slot_id"] for row in rows]

    assert await operator.fetchval("select matview_ops.prune(null)") is None
    assert await operator.fetchval("select matview_ops.prune('30 days')") == 1
    assert await left(MV_OPERATOR) == ["slot:1", "slot:25"]
    assert await operator.fetchval("select matview_ops.prune('-1 year')") == 1
    assert await left(MV_OPERATOR) == ["slot:1"], "a row lives for a day, whatever is asked"
    assert await left(OTHER_TENANT) == ["slot:1", "slot:25", "slot:744"]
    stranger = await database.connect(OTHER_TENANT)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await stranger.fetchval("select matview_ops.prune('1 day')")


@only_18
@pytest.mark.parametrize("role", ["nobody_has_this_name", "public", 'x"; drop schema public; --'])
async def test_grant_to_a_role_that_does_not_exist_changes_nothing(
    bare_database: Database, owner_url: str, role: str
) -> None:
    with pytest.raises(MatviewError, match="There is no role"):
        await upgrade(owner_url, grant_to=[MV_OPERATOR, role])
    schema = "select nspname from pg_namespace where nspname = 'matview_ops'"
    assert await bare_database.value_as(SUPERUSER, schema) is None


@only_18
@pytest.mark.parametrize("role", ['Odd "Role"; $1 %I', "current_user", "Größe"])
async def test_grant_to_a_role_with_an_odd_name(bare_database: Database, owner_url: str, role: str) -> None:
    await bare_database.allow_login(role)
    await upgrade(owner_url, grant_to=[role])
    assert await check(bare_database.url(role)) is Bookkeeping.INSTALLED
    await (await bare_database.connect(role)).execute(RUN, "slot:1")
    await bare_database.execute_as(SUPERUSER, f"drop owned by {quoted(role)}")
