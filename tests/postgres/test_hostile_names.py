"""Nothing but REFRESH and ANALYZE of the resolved view is run, whatever it is called."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, quoted
from tests.liar import Liar
from tests.refreshes import TENANT, GatedView, failure, public, refresh
from tests.statements import StatementLog, fixed_statements

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.view_graph import read_view_graph
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.inspection import ViewCheck
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from tests.database import Database


ALWAYS = Concurrently.ALWAYS
NEVER = Concurrently.NEVER


async def test_another_view_under_the_name_is_not_refreshed_by_mistake(database: Database) -> None:
    gated = await GatedView.make(database)
    await database.execute_as(SUPERUSER, f"create schema moving authorization {APP_OWNER}")
    await database.execute_as(
        APP_OWNER, "alter materialized view gated set schema moving; insert into gated_plain_base values (9, 'a', 9)"
    )
    await gated.shut()
    task = asyncio.create_task(refresh(database, ViewName("moving", "gated")))
    await gated.reached()
    # A schema can be renamed while a view in it is refreshed; on 15 not while in blocking mode.
    await database.execute_as(
        SUPERUSER,
        f"""
        alter schema moving rename to moved;
        create schema moving authorization {APP_OWNER};
        create materialized view moving.gated as select 7 as id, 7 as v;
        create unique index on moving.gated (id);
        alter materialized view moving.gated owner to {APP_OWNER};
        """,
    )
    await gated.open()
    failure(await task, Reason.VIEW_REPLACED, "rolled back")
    assert await database.value_as(APP_OWNER, "select count(*) from moved.gated") == 3
    assert await database.value_as(APP_OWNER, "select array_agg(id) from moving.gated") == [7]


HOSTILE = [
    'quo"te',
    '"',
    "semi;colon",
    "x; drop table canary; --",
    'x"; drop table canary; --',
    "it's",
    "back\\slash",
    "UPPER",
    "Größe",
    "表",
    "🙂",
    "with space",
    " edges ",
    "line\nbreak",
    "dotted.name",
    "$1",
    "%s%I",
    "/* comment",
    "select",
    "concurrently",
    "n" * 63,
    "ü" * 31,
]


ODD_SCHEMA = "Odd; \"Schema'"


async def test_of_hostile_names_nothing_but_refresh_and_analyze_of_that_name_is_run(database: Database) -> None:
    log = StatementLog(database)
    await database.execute_as(SUPERUSER, "create table canary (id int)")
    await database.execute_as(SUPERUSER, f"create schema {quoted(ODD_SCHEMA)} authorization {APP_OWNER}")
    expected = set()
    for schema, name in [*(("public", name) for name in HOSTILE), (ODD_SCHEMA, 'x"; drop table canary; --')]:
        view = ViewName(schema, name)
        sql_name = f"{quoted(schema)}.{quoted(name)}"
        await database.execute_as(
            APP_OWNER, f"create materialized view {sql_name} as select 1 as id; create unique index on {sql_name} (id)"
        )
        for concurrently in (ALWAYS, NEVER):
            result = await refresh(database, view, concurrently=concurrently)
            assert result.outcome is RefreshOutcome.SUCCESS, (name, result.error_message)
        full = await database.value_as(SUPERUSER, "select format('%I.%I', $1::text, $2::text)", schema, name)
        expected |= {
            f"{command} {full}"
            for command in ("refresh materialized view concurrently", "refresh materialized view", "analyze")
        }
    seen = {statement.text for statement in log.read()}
    assert expected <= seen
    assert seen <= expected | fixed_statements()
    assert await database.value_as(SUPERUSER, "select to_regclass('canary') is not null")


async def test_t2_no_statement_goes_by_the_protocol_that_takes_several_at_once(database: Database) -> None:
    """Seen on the wire: nothing that a name might smuggle in behind a semicolon would be run."""
    view, plain = await database.make_view(), await database.make_view("plain", unique=False)
    log = StatementLog(database)
    async with Liar(database.server.port).listen() as wire:
        ways: list[dict[str, Any]] = [{"due_at": datetime.now(UTC)}, {}, {"concurrently": NEVER}]
        for way in ways:
            assert (await refresh(database, view, via=wire, **way)).outcome is RefreshOutcome.SUCCESS
        assert (await refresh(database, plain, via=wire, **TENANT)).outcome is RefreshOutcome.SUCCESS
        failure(await refresh(database, plain, via=wire, concurrently=ALWAYS), Reason.NO_UNIQUE_INDEX)
        failure(await refresh(database, public("nowhere"), via=wire), Reason.VIEW_NOT_FOUND)
        check = ViewCheck(view=view, concurrently=ALWAYS, isolation=Isolation.SHARED)
        target = parse_url(database.url(via=wire))
        await Inspector().inspect(target=target, checks=[check], allow_superuser=False)
        await read_view_graph(target)
    assert wire.asked["P"] > 40
    assert set(wire.asked) <= set("pPDBESHCX"), wire.asked
    assert {statement.protocol for statement in log.read()} == {"extended"}


async def test_a_name_that_postgresql_would_cut_means_no_other_view(database: Database) -> None:
    await database.make_view("n" * 50)
    await database.execute_as(APP_OWNER, f"create materialized view {'m' * 64} as select 1 as id")
    assert await database.value_as(APP_OWNER, "select count(*) from pg_matviews where matviewname = $1", "m" * 63) == 1
    failure(await refresh(database, public("m" * 62)), Reason.VIEW_NOT_FOUND)
    assert (await refresh(database, public("m" * 63))).outcome is RefreshOutcome.SUCCESS


async def test_a_hostile_tenant_or_correlation_id_is_data(database: Database) -> None:
    view = await database.make_view()
    evil = "'; drop table mv_base; --"
    result = await refresh(
        database, view, isolation=Isolation.TENANT, tenant_id=evil, correlation_id=evil, slot_id=f"request:{evil}"
    )
    assert result.outcome is RefreshOutcome.SUCCESS
    (row,) = await database.fetch_as(SUPERUSER, "select lock_token, correlation_id from matview_ops.refresh_run")
    assert tuple(row) == (evil, evil)
