"""GATE-2C: what the catalogue says of which managed views read which, and what a group is told besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import a_run, public

from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.run import request_id
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.database import Database

CHAIN = """
create table source (id int primary key);
create materialized view a as select id from source;
create view between as select id from a;
create view "further" as select id from between;
create materialized view b as select f.id from "further" f join a on a.id = f.id;
create materialized view unmanaged as select id from b;
create materialized view c as select id from unmanaged;
create schema "Odd";
create materialized view "Odd"."D" as select b.id from b, c;
create view plain as select id from "Odd"."D";
"""


async def reads(target: ConnectionTarget, managed: Iterable[ViewName]) -> dict[str, set[str]]:
    inspection = await Inspector().inspect(target=target, checks=(), allow_superuser=False, managed=set(managed))
    return {str(view): {str(other) for other in others} for view, others in inspection.reads.items()}


async def test_gate_2c_the_catalogue_tells_what_managed_views_read_through_ordinary_views(database: Database) -> None:
    await database.execute_as(SUPERUSER, f"grant create on database {database.name} to {APP_OWNER}")
    await database.execute_as(APP_OWNER, CHAIN)
    target = parse_url(database.url())
    managed = [*map(public, ("a", "b", "c", "missing", "between", "source")), ViewName("Odd", "D")]
    assert await reads(target, managed) == {"b": {"a"}, "Odd.D": {"b", "c"}}
    assert await reads(target, [*managed, public("unmanaged")]) == {
        "b": {"a"},
        "unmanaged": {"b"},
        "c": {"unmanaged"},
        "Odd.D": {"b", "c"},
    }
    assert await reads(target, [public("b")]) == {}


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_gate_2c_a_name_that_an_encoding_cannot_write_hides_no_others_order(database: Database) -> None:
    name = f"{database.name}_latin1"
    await database.execute_as(SUPERUSER, f"create database {name} template template0 encoding 'LATIN1' locale 'C'")
    try:
        await database.execute_as(SUPERUSER, f"alter database {name} owner to {MV_OPERATOR}")
        url = database.server.url(user=MV_OPERATOR, password=database.passwords[MV_OPERATOR], database=name)
        owner = await asyncpg.connect(url)
        await owner.execute("create materialized view a as select 1 as id")
        await owner.execute("create materialized view b as select id from a")
        await owner.close()
        assert await reads(parse_url(url), map(public, ("a", "b", "表"))) == {"b": {"a"}}
    finally:
        await database.execute_as(SUPERUSER, f"drop database {name} with (force)")


async def test_gate_2c_within_a_group_a_view_comes_after_what_it_says_that_it_depends_on(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        """
        create table source (id int primary key);
        create materialized view z_costs as select id from source;
        create unique index on z_costs (id);
        create function costs() returns setof int language plpgsql stable set search_path = public
          as 'begin return query select id from z_costs; end';
        create materialized view a_margin as select c as id from costs() c;
        create unique index on a_margin (id);
        insert into source values (1);
        """,
    )
    fields = {"slot_id": request_id("r")}
    results = await Refresher().refresh_group(
        target=parse_url(database.url()),
        runs=[a_run(public("a_margin"), depends_on=(public("z_costs"),), **fields), a_run(public("z_costs"), **fields)],
        timeout_seconds=20,
    )
    assert [result.outcome for result in results] == [RefreshOutcome.SUCCESS] * 2, results
    assert await database.value_as(APP_OWNER, "select count(*) from a_margin") == 1
