"""The command line as a process: what it prints, how it ends, and what it never shows."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner
from sandbox.pgtemplate import SUPERUSER
from tests.command_line import Ended, run, start
from tests.database import APP_OWNER, MV_OPERATOR
from tests.databases import Databases
from tests.refreshes import TENANT_A, GatedView, backends, settled

from matview_operator import RefreshResult, lock_keys
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.cli import CONCURRENTLY, ISOLATIONS, cli

if TYPE_CHECKING:
    from tests.database import Database


async def test_refresh_prints_results_as_json(database: Database) -> None:
    await database.make_view(rows=5)
    await database.execute_as(APP_OWNER, "delete from mv_base where id = 1")
    ended = await run("refresh", "MV", "-o", "json", "--tenant", "a", url=database.url())
    assert (ended.code, ended.err) == (0, "")
    (result,) = ended.results()
    assert RefreshResult.model_validate(result).model_dump(mode="json") == result
    keys = lock_keys("mv")
    assert (
        result.items()
        >= {
            "view_name": "mv",
            "tenant_id": "a",
            "outcome": "SUCCESS",
            "error_type": None,
            "error_message": None,
            "lock_key_debug": f"view_key={keys.view_key},tenant_key={keys.tenant_key}",
            "mode": "Concurrent",
            "rows_inserted": 0,
            "rows_deleted": 1,
            "attempts": 1,
        }.items()
    )
    assert {"correlation_id", "started_at", "duration_ms", "data_as_of"} <= result.keys()
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 4


async def test_refresh_prints_a_table(database: Database) -> None:
    await database.make_view(rows=1234, unique=False)
    await database.execute_as(SUPERUSER, "create schema finance; create table finance.costs (id int)")
    ended = await run("refresh", "mv", "finance.costs", url=database.url())
    assert (ended.code, ended.err) == (1, "")
    header, good, bad, message = ended.out.splitlines()
    assert header.split() == "VIEW OUTCOME REASON MODE ADDED REMOVED ROWS SECONDS DATA AS OF".split()
    assert good.split()[:6] == ["mv", "SUCCESS", "NoUniqueIndex", "Blocking", "1,234", "1,234"]
    assert bad.split()[:3] == ["finance.costs", "FAILED", "NotMaterializedView"]
    assert message.startswith("finance.costs: finance.costs is a table, not a materialized view.")


async def test_names_are_read_as_sql_reads_them(database: Database) -> None:
    for schema, name in (("public", "Odd Name"), ("Finance", 'co"sts'), ("public", "plain")):
        await database.make_view(name, schema=schema)
    ended = await run("refresh", '"Odd Name"', '"Finance"."co""sts"', "PLAIN", "-o", "json", url=database.url())
    assert ended.outcomes() == {"Odd Name": "SUCCESS", 'Finance.co"sts': "SUCCESS", "plain": "SUCCESS"}
    assert (await run("refresh", "Odd Name", url=database.url())).code == 2
    assert (await run("refresh", '"PLAIN"', url=database.url())).code == 1


async def test_all_goes_in_dependency_order_and_past_failures(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        """
        create table source (x int); insert into source values (1);
        create materialized view z_first as select 1 / x as x from source;
        create view between as select * from z_first;
        create materialized view a_second as select * from between;
        create materialized view m_alone as select 1 as x;
        """,
    )
    ended = await run("refresh", "--all", "-o", "json", url=database.url())
    assert ended.code == 0
    assert [result["view_name"] for result in ended.results()] == ["m_alone", "z_first", "a_second"]
    await database.execute_as(APP_OWNER, "update source set x = 0")
    ended = await run("refresh", "--all", "-o", "json", url=database.url())
    assert ended.code == 1
    assert ended.outcomes() == {"m_alone": "SUCCESS", "z_first": "FAILED", "a_second": "SKIPPED_UPSTREAM"}
    assert "z_first" in ended.results()[-1]["error_message"]


async def test_a_guard_is_given_by_options(database: Database) -> None:
    await database.make_view(rows=10)
    await database.execute_as(APP_OWNER, "delete from mv_base where tenant_id = 'b' or id > 4")
    url = database.url()
    for options, reason in (
        (["--min-rows", "3"], "TooFewRows"),
        (["--max-row-loss-percent", "79"], "TooManyRowsLost"),
        (["--keep-tenants", "Tenant_ID"], "TenantsLost"),
        (["--keep-tenants", '"Tenant_ID"'], "GuardFailed"),
    ):
        ended = await run("refresh", "mv", "-o", "json", *options, url=url)
        (result,) = ended.results()
        assert (ended.code, result["outcome"], result["error_type"]) == (1, "REJECTED_BY_GUARD", reason)
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 10
    ended = await run("refresh", "mv", "--min-rows", "2", "--max-row-loss-percent", "80", "-o", "json", url=url)
    (result,) = ended.results()
    assert (ended.code, result["rows_before"], result["rows_after"]) == (0, 10, 2)
    for wrong in (["--min-rows", "0"], ["--max-row-loss-percent", "100"], ["--keep-tenants", "a b"]):
        ended = await run("refresh", "mv", *wrong, url=url)
        assert (ended.code, ended.out) == (2, "")


async def test_a_search_path_names_schemas_as_in_sql_and_none_of_the_servers(database: Database) -> None:
    await database.make_view()
    for wrong, said in (("PG_Temp", "search path[1]: name schemas of yours"), ("a, b", "not a schema name")):
        ended = await run("refresh", "mv", "--search-path", '"PG_x"', "--search-path", wrong, url=database.url())
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    ended = await run("refresh", "mv", "--search-path", "app", "-o", "json", url=database.url())
    assert (ended.code, ended.outcomes()) == (0, {"mv": "SUCCESS"})


async def test_a_held_lock_is_a_skip_and_no_failure(database: Database) -> None:
    await database.make_view()
    keys = lock_keys("mv")
    await database.execute_as(APP_OWNER, f"select pg_advisory_lock({keys.view_key}, {keys.tenant_key})")
    ended = await run("refresh", "mv", "-o", "json", url=database.url())
    assert (ended.code, ended.outcomes()) == (0, {"mv": "SKIPPED_LOCK_HELD"})


async def test_isolation_and_concurrently_are_the_policys(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create materialized view seen as select current_setting('app.current_tenant_id', true) as tenant;"
        "create unique index on seen (tenant)",
    )
    arguments = ("refresh", "seen", "--isolation", "tenant", "--tenant", TENANT_A, "--concurrently", "never")
    ended = await run(*arguments, "-o", "json", url=database.url())
    assert ended.results()[0]["mode"] == "Blocking"
    assert await database.value_as(APP_OWNER, "select tenant from seen") == TENANT_A
    assert tuple(Isolation) == ISOLATIONS
    assert tuple(Concurrently) == CONCURRENTLY


async def test_a_correlation_id_does_its_work_once(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create sequence runs minvalue 0; create materialized view counted as select nextval('public.runs') as run",
    )
    arguments = ("refresh", "counted", "-o", "json", "--correlation-id", "import-1")
    first, again = [(await run(*arguments, url=database.url())).results()[0] for _ in range(2)]
    assert (first["correlation_id"], first["outcome"], first["error_type"]) == ("import-1", "SUCCESS", "NoUniqueIndex")
    assert (again["correlation_id"], again["outcome"], again["error_type"]) == ("import-1", "SUCCESS", "Recovered")
    assert again["data_as_of"] == first["data_as_of"]
    assert await database.value_as(APP_OWNER, "select last_value from runs") == 1
    for _ in range(2):
        ended = await run("refresh", "counted", "-o", "json", url=database.url())
        assert ended.results()[0]["error_type"] == "NoUniqueIndex"
    assert await database.value_as(APP_OWNER, "select last_value from runs") == 3


async def test_a_killed_command_can_be_repeated(database: Database) -> None:
    gated = await GatedView.make(database)
    arguments = ("refresh", "gated", "-o", "json", "--correlation-id", "import-2")
    await gated.shut()
    process = await start(*arguments, url=database.url())
    await gated.reached()
    process.kill()
    await process.wait()
    # The server notices, and its lock is free.
    await settled(lambda: backends(database), 0)
    await gated.open()
    for reason in (None, "Recovered"):
        result = (await run(*arguments, url=database.url())).results()[0]
        assert (result["outcome"], result["error_type"]) == ("SUCCESS", reason)
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run where settles") == 1


async def test_options_come_from_the_environment_too(database: Database, tmp_path: Path) -> None:
    await database.make_view()
    ended = await run("refresh", "mv", url=database.url(), MATVIEW_REFRESH_OUTPUT="json", MATVIEW_REFRESH_TENANT="a")
    assert ended.results()[0]["tenant_id"] == "a"
    assert (await run("refresh", "mv", url=database.url(), MATVIEW_REFRESH_TIMEOUT="soon")).code == 2
    file = tmp_path / "url"
    file.write_text(database.url() + "\n")
    by_file = await run("refresh", "mv", "-o", "json", "--database-url-file", str(file))
    # A file that is named wins over an environment that is merely there.
    over_environment = await run(
        "refresh", "mv", "-o", "json", "--database-url-file", str(file), url="postgresql://u:p@127.0.0.1:1/d"
    )
    assert by_file.outcomes() == over_environment.outcomes() == {"mv": "SUCCESS"}
    both = await run("refresh", "mv", "--database-url-file", str(file), "--database-url", database.url())
    assert (both.code, "exclude each other" in both.err) == (2, True)
    assert database.passwords[MV_OPERATOR] not in both.err


async def test_migrate_installs_checks_and_removes_the_ledger(databases: Databases) -> None:
    async with databases.lend("bare") as database:
        await database.make_view()
        assert (await run("migrate", "--check", url=database.url())) == Ended(code=1, out="Missing\n", err="")
        for _ in range(2):
            ended = await run("migrate", "--grant-to", MV_OPERATOR, url=database.admin_url)
            assert (ended.code, ended.err) == (0, "")
        assert (await run("migrate", "--check", url=database.url())) == Ended(code=0, out="Installed\n", err="")
        for reason in (None, "Recovered"):
            ended = await run("refresh", "mv", "--correlation-id", "x", "-o", "json", url=database.url())
            assert ended.results()[0]["error_type"] == reason
        assert (await run("migrate", "--down", url=database.admin_url)).code == 0
        assert (await run("migrate", "--check", url=database.url())).out == "Missing\n"
        assert (await run("migrate", "--down", "--check", url=database.url())).code == 2
        refused = await run("migrate", url=database.url())
        assert refused.code == 1
        assert "may not create schemas" in refused.err
        stranger = await run("migrate", "--grant-to", "nobody at all", url=database.admin_url)
        assert (stranger.code, "no role 'nobody at all'" in stranger.err) == (1, True)


async def test_lock_keys_are_printed_with_what_takes_them() -> None:
    ended = await run("lock-keys", "MV_Realtime_Revenue", "--tenant", TENANT_A)
    assert ended.out.splitlines() == [
        "view_key    1673308721",
        "tenant_key  1374088925",
        "SELECT pg_try_advisory_xact_lock(1673308721, 1374088925);",
    ]
    assert "(1673308721, -2014051537)" in (await run("lock-keys", "public.mv_realtime_revenue")).out


async def test_crds_and_version() -> None:
    documents = list(yaml.safe_load_all((await run("crds")).out))
    assert [document["spec"]["names"]["shortNames"] for document in documents] == [["mvdb"], ["mvrp"]]
    assert (await run("version")).out == f"{version('matview-operator')}\n"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_teaches(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    assert "Example" in shown
    assert f"matview-operator {command}" in shown


async def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    code = "import sys, matview_operator.cli; print([m for m in ('kopf', 'asyncpg', 'alembic') if m in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"[]\n"
