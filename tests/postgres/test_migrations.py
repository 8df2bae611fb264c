"""Migrations: H-A, R1, EG-1, and what the ledger grants."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sandbox.pgtemplate import SUPERUSER
from sandbox.postgres import loopback_url
from sandbox.scram import scram_verifier
from tests.alembic_command import INI, SECTIONS, alembic
from tests.database import APP_OWNER, MV_OPERATOR, OTHER_TENANT, quoted

from matview_operator.adapters.postgres import migration_environment
from matview_operator.adapters.postgres.migrations import check, downgrade, upgrade
from matview_operator.api.database import Bookkeeping
from matview_operator.domain.errors import MatviewError, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database

CANARY = "c4n4ry"
ODD_PASSWORD = f"p@s:s/w%40r?d#{CANARY}"

RUN = """
    insert into matview_ops.refresh_run
      (policy_uid, view_oid, view_name, slot_id, outcome, lock_token, data_as_of, correlation_id)
    values ('6f1b0f5e-0000-4000-8000-000000000001', 1, 'mv', $1, 'SUCCESS', 'GLOBAL', now(), 'c')
"""
UPGRADE = """
import asyncio, os
from matview_operator.adapters.postgres import migration_environment
from matview_operator.adapters.postgres.migrations import upgrade
asyncio.run(upgrade(os.environ["DATABASE_URL"], grant_to=[os.environ["GRANT_TO"]]))
"""

only_18 = pytest.mark.parametrize("databases", [18], indirect=True, ids=["pg18"])


@pytest.fixture
async def owner_url(bare_database: Database) -> str:
    """The URL of a plain role that may create schemas in a database without the ledger."""
    await bare_database.execute_as(SUPERUSER, f"grant create on database {quoted(bare_database.name)} to {APP_OWNER}")
    return bare_database.url(APP_OWNER)


async def schemas(database: Database) -> set[str]:
    rows = await database.fetch_as(SUPERUSER, "select nspname from pg_namespace where nspname !~ '^pg_'")
    return {row["nspname"] for row in rows}


async def ledger_schema(database: Database) -> object:
    return await database.value_as(SUPERUSER, "select nspname from pg_namespace where nspname = 'matview_ops'")


# H-A, R1, EG-1: migrations are deterministic.


@only_18
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
async def test_h_a_any_working_directory_and_either_url_form(
    bare_database: Database, tmp_path: Path, scheme: str
) -> None:
    role = f"migrator_{uuid4().hex[:8]}"
    await bare_database.execute_as(
        SUPERUSER,
        f"create role {role} login password '{scram_verifier(ODD_PASSWORD)}';"
        f"grant create on database {quoted(bare_database.name)} to {role}",
    )
    port = bare_database.server.port
    url = loopback_url(port=port, user=role, password=ODD_PASSWORD, database=bare_database.name)
    url = url.replace("postgresql", scheme, 1) + "?sslmode=disable"

    before = await alembic("current", url=url, cwd=tmp_path)
    assert (before.code, await ledger_schema(bare_database)) == (0, None), "`current` only looks"
    up = await alembic("upgrade", "head", url=url, cwd=tmp_path)
    assert up.code == 0, up.output
    owner = "select tableowner from pg_tables where schemaname = 'matview_ops' and tablename = 'refresh_run'"
    assert await bare_database.value_as(SUPERUSER, owner) == role
    current = await alembic("current", url=url, cwd=tmp_path)
    assert "(head)" in current.output
    down = await alembic("downgrade", "base", url=url, cwd=tmp_path)
    assert (down.code, await ledger_schema(bare_database)) == (0, None)
    assert CANARY not in before.output + up.output + current.output + down.output
    await bare_database.execute_as(SUPERUSER, f"drop owned by {role}; drop role {role}")


@only_18
async def test_h_a_seeded_fresh_repeated_and_removed(bare_database: Database, owner_url: str) -> None:
    fresh = await schemas(bare_database)
    await upgrade(owner_url, grant_to=[MV_OPERATOR])
    await (await bare_database.connect(MV_OPERATOR)).execute(RUN, "slot:1")
    await upgrade(owner_url, grant_to=[MV_OPERATOR])
    assert await bare_database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 1
    await downgrade(owner_url)
    assert await schemas(bare_database) == fresh
    await downgrade(owner_url)
    assert await schemas(bare_database) == fresh
    await upgrade(owner_url)
    assert await bare_database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 0


async def test_h_a_on_every_version(bare_database: Database, owner_url: str) -> None:
    await upgrade(owner_url)
    head = ScriptDirectory.from_config(Config(INI)).get_current_head()
    assert await bare_database.value_as(SUPERUSER, "select version_num from matview_ops.alembic_version") == head
    assert await check(owner_url) is Bookkeeping.INSTALLED
    await downgrade(owner_url)
    assert await ledger_schema(bare_database) is None


def _wrong_password(database: Database) -> str:
    return loopback_url(port=database.server.port, user=MV_OPERATOR, password=ODD_PASSWORD, database=database.name)


def _no_server(database: Database) -> str:
    return loopback_url(port=1, user=MV_OPERATOR, password=ODD_PASSWORD, database=database.name)


def _unquoted(database: Database) -> str:
    return f"postgresql://{MV_OPERATOR}:{ODD_PASSWORD}@127.0.0.1:{database.server.port}/{database.name}"


def _unknown_option(database: Database) -> str:
    return f"{_wrong_password(database)}?passfile={CANARY}&{CANARY}=1"


@only_18
@pytest.mark.parametrize("url_of", [_wrong_password, _no_server, _unquoted, _unknown_option])
async def test_h_a_no_output_tells_the_password(
    bare_database: Database, tmp_path: Path, url_of: Callable[[Database], str]
) -> None:
    url = url_of(bare_database)
    work: Callable[[str], Awaitable[object]]
    for work in (upgrade, downgrade, check):
        with pytest.raises(MatviewError) as caught:
            await work(url)
        assert CANARY not in "".join(traceback.format_exception(caught.value))
    for finished in await asyncio.gather(
        *(alembic("upgrade", "head", section=section, url=url, cwd=tmp_path) for section in SECTIONS)
    ):
        assert finished.code != 0
        assert "FAILED: " in finished.output
        assert CANARY not in finished.output
        assert "Traceback" not in finished.output


async def test_h_a_a_missing_url_is_named(tmp_path: Path) -> None:
    finished = await alembic("upgrade", "head", url=None, cwd=tmp_path)
    assert finished.code != 0
    assert "DATABASE_URL" in finished.output


@only_18
async def test_h_a_parallel_upgrades_do_the_work_once(bare_database: Database, owner_url: str) -> None:
    environment = {**os.environ, "DATABASE_URL": owner_url, "GRANT_TO": MV_OPERATOR}
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", UPGRADE, env=environment) for _ in range(4)]
    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    assert await bare_database.value_as(SUPERUSER, "select count(*) from matview_ops.alembic_version") == 1
    assert await check(bare_database.url(MV_OPERATOR)) is Bookkeeping.INSTALLED


@only_18
async def test_h_a_through_a_pooler(
    bare_database: Database, owner_url: str, pgbouncer: Callable[..., PgBouncer]
) -> None:
    assert await check(owner_url) is Bookkeeping.MISSING
    url = bare_database.url(APP_OWNER, via=pgbouncer(bare_database, pool_size=1))
    for _ in range(2):
        await upgrade(url, grant_to=[MV_OPERATOR])
        assert await check(url) is Bookkeeping.INSTALLED
    await downgrade(url)
    assert await check(url) is Bookkeeping.MISSING


@only_18
@pytest.mark.parametrize(("ending", "message"), [("bound", "did not end within 2 s"), ("killed", "refused|lost")])
async def test_h_a_a_migration_that_cannot_go_on_ends_and_leaves_nothing(
    bare_database: Database, owner_url: str, monkeypatch: pytest.MonkeyPatch, ending: str, message: str
) -> None:
    holder = await bare_database.connect(SUPERUSER)
    await holder.execute("begin; select pg_advisory_xact_lock(hashtextextended('matview-operator migration', 0))")
    waiting = "select pid from pg_locks where locktype = 'advisory' and not granted"
    monkeypatch.setattr(migration_environment, "TRANSACTION_SECONDS", 2.0 if ending == "bound" else 60.0)
    migration = asyncio.create_task(upgrade(owner_url))
    # A server sends no event when somebody waits, or is gone.
    while (pid := await holder.fetchval(waiting)) is None:  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.05)
    if ending == "killed":
        await holder.execute("select pg_terminate_backend($1)", pid)
    with pytest.raises(MatviewError, match=message):
        await migration
    while await holder.fetchval("select true from pg_stat_activity where pid = $1", pid):  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.05)
    assert await ledger_schema(bare_database) is None


# What is in the way is named, and stays as it was.


@only_18
async def test_h_a_a_schema_of_somebody_else_is_left_alone(bare_database: Database, owner_url: str) -> None:
    await bare_database.execute_as(APP_OWNER, "create schema matview_ops; create table matview_ops.theirs (i int)")
    for work in (upgrade, downgrade):
        with pytest.raises(MatviewError, match="matview-operator did not make"):
            await work(owner_url)
    tables = await bare_database.fetch_as(SUPERUSER, "select tablename from pg_tables where schemaname = 'matview_ops'")
    assert [row["tablename"] for row in tables] == ["theirs"]


@only_18
async def test_h_a_a_ledger_of_another_role_is_left_alone(bare_database: Database, owner_url: str) -> None:
    await upgrade(bare_database.admin_url)
    for work in (upgrade, downgrade):
        with pytest.raises(MatviewError, match=f"belongs to the role {SUPERUSER}.*{APP_OWNER} is none"):
            await work(owner_url)
    assert await check(bare_database.admin_url) is Bookkeeping.INSTALLED


@only_18
async def test_h_a_an_empty_schema_that_was_prepared_is_used(bare_database: Database) -> None:
    await bare_database.execute_as(SUPERUSER, f"create schema matview_ops authorization {APP_OWNER}")
    await upgrade(bare_database.url(APP_OWNER))
    assert await check(bare_database.url(APP_OWNER)) is Bookkeeping.INSTALLED


@only_18
async def test_h_a_a_role_that_may_not_create_schemas_is_told_so(bare_database: Database) -> None:
    with pytest.raises(MatviewError, match=f"{OTHER_TENANT} may not create schemas"):
        await upgrade(bare_database.url(OTHER_TENANT))


@only_18
async def test_h_a_a_downgrade_takes_nothing_of_others_with_it(bare_database: Database, owner_url: str) -> None:
    await upgrade(owner_url)
    await bare_database.execute_as(
        APP_OWNER, "create view matview_ops.report as select count(*) from matview_ops.refresh_run"
    )
    with pytest.raises(MatviewError, match="depend"):
        await downgrade(owner_url)
    assert await bare_database.value_as(APP_OWNER, "select count from matview_ops.report") == 0
    assert await check(owner_url) is Bookkeeping.INSTALLED


@only_18
async def test_a_hostile_search_path_reaches_no_migration(bare_database: Database, owner_url: str) -> None:
    await bare_database.execute_as(
        SUPERUSER,
        f"""
        create schema evil;
        create function evil.now() returns timestamptz language plpgsql as 'begin raise ''caught''; end';
        create function evil.format(text, text) returns text language plpgsql as 'begin raise ''caught''; end';
        grant usage, create on schema evil to {APP_OWNER};
        alter database {quoted(bare_database.name)} set search_path = evil, pg_catalog;
        """,
    )
    await upgrade(owner_url, grant_to=[MV_OPERATOR])
    operator = await bare_database.connect(MV_OPERATOR)
    await operator.execute(RUN.replace("now()", "pg_catalog.now()"), "slot:1")
    assert await operator.fetchval("select matview_ops.prune('0')") == 0
    made = await bare_database.value_as(
        SUPERUSER, "select count(*) from pg_catalog.pg_tables where schemaname = 'evil'"
    )
    assert made == 0


# `migrate --check`.


@only_18
async def test_check_tells_missing_outdated_and_installed(bare_database: Database, owner_url: str) -> None:
    assert await check(owner_url) is Bookkeeping.MISSING
    await upgrade(owner_url)
    assert await check(owner_url) is Bookkeeping.INSTALLED
    await bare_database.execute_as(APP_OWNER, "update matview_ops.alembic_version set version_num = '0000'")
    assert await check(owner_url) is Bookkeeping.OUTDATED
    await bare_database.execute_as(APP_OWNER, "update matview_ops.alembic_version set version_num = '9999'")
    assert await check(owner_url) is Bookkeeping.INSTALLED, "a newer program migrated; its ledger serves this one"
    await bare_database.execute_as(APP_OWNER, "alter table matview_ops.refresh_run drop column sqlstate")
    assert await check(owner_url) is Bookkeeping.OUTDATED


@only_18
async def test_check_tells_a_role_without_grants_what_to_do(database: Database) -> None:
    assert await check(database.url(MV_OPERATOR)) is Bookkeeping.INSTALLED
    with pytest.raises(Problem, match=f"--grant-to {OTHER_TENANT}"):
        await check(database.url(OTHER_TENANT))
