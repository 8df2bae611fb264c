"""A ledger that is not as `migrate` makes it: nothing of it runs as the operator's role, and somebody is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import MV_OPERATOR
from tests.refreshes import counted_view, ended, executions, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.migrations import check, downgrade, upgrade
from matview_operator.api.database import Bookkeeping
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.server import ledger_advice

if TYPE_CHECKING:
    from tests.database import Database
    from tests.databases import Databases

TRAPS = """
create table public.caught (who name);
grant insert, select on public.caught to public;
create function public.spring() returns bool language plpgsql as
  $$ begin insert into public.caught values (current_user); return true; end $$;
create function public.spring(text) returns text language plpgsql immutable as
  $$ begin insert into public.caught values (current_user); return $1; end $$;
create function public.spring(text, text) returns bool language plpgsql as
  $$ begin return public.spring(); end $$;
create function public.pounce() returns trigger language plpgsql as
  $$ begin perform public.spring(); return new; end $$;
create operator public.=== (leftarg = text, rightarg = text, function = public.spring);
create domain public.trapped as int check (public.spring());
create table public.ours (run_id bigint);
"""
BY_XML = "pg_catalog.query_to_xml('select public.spring()', true, true, '')"
LEDGER = "matview_ops.refresh_run"
CHANGES = {
    "row trigger": (
        f"create trigger t before insert on {LEDGER} for each row execute function public.pounce()",
        "a trigger",
    ),
    "statement trigger": (
        f"create trigger t after insert on {LEDGER} for each statement execute function public.pounce()",
        "a trigger",
    ),
    "foreign key": (
        f"alter table public.ours add foreign key (run_id) references {LEDGER} on delete cascade",
        "a foreign key",
    ),
    "rule": (f"create rule r as on insert to {LEDGER} do also select public.spring()", "a rule"),
    "row-level security": (
        f"create policy p on {LEDGER} using (public.spring()); alter table {LEDGER} enable row level security",
        "row-level security",
    ),
    "default": (f"alter table {LEDGER} add trap bool default public.spring()", "not PostgreSQL's"),
    "default by xml": (f"alter table {LEDGER} add trap xml default {BY_XML}", "no need of"),
    "default replaced": (f"alter table {LEDGER} alter rows_total set default length({BY_XML}::text)", "no need of"),
    "generated column": (
        f"alter table {LEDGER} add trap text generated always as (public.spring(slot_id)) stored",
        "not PostgreSQL's",
    ),
    "constraint": (f"alter table {LEDGER} add check (public.spring())", "not PostgreSQL's"),
    "constraint by xml": (f"alter table {LEDGER} add check ({BY_XML} is not null)", "no need of"),
    "constraint by operator": (f"alter table {LEDGER} add check (slot_id operator(public.===) '')", "not PostgreSQL's"),
    "type": (f"alter table {LEDGER} add trap public.trapped", "not PostgreSQL's"),
    "index": (f"create index on {LEDGER} (public.spring(slot_id))", "not PostgreSQL's"),
    "index's condition": (
        f"create index on {LEDGER} (slot_id) where public.spring(slot_id) is not null",
        "not PostgreSQL's",
    ),
    "view": (
        (
            f"alter table {LEDGER} rename to hidden; create view {LEDGER} as select * from matview_ops.hidden"
            f" where public.spring(); grant select, insert on {LEDGER} to {MV_OPERATOR}"
        ),
        "no ordinary table",
    ),
    "child": (f"create table public.child () inherits ({LEDGER})", "children"),
    "unlogged": (f"alter table {LEDGER} set unlogged", "unlogged"),
    "no key": ("drop index matview_ops.refresh_run_settled", "refresh_run_settled is gone"),
    "another key": (
        (
            "drop index matview_ops.refresh_run_settled; create unique index refresh_run_settled"
            f" on {LEDGER} (recorded_by, policy_uid, view_oid, slot_id) where attempt = 1"
        ),
        "refresh_run_settled is gone",
    ),
}
"""What an owner could do to the ledger, and what the operator says to it."""


async def judged(databases: Databases, change: str) -> None:
    statements, said = CHANGES[change]
    async with databases.lend("ledger") as database:
        view = await counted_view(database)
        await database.execute_as(SUPERUSER, TRAPS)
        await database.execute_as(SUPERUSER, statements)
        await database.execute_as(SUPERUSER, "truncate public.caught")
        assert ended(await refresh(database, view)) == (RefreshOutcome.SUCCESS, None)
        assert await executions(database) == 1
        inspection = await Inspector().inspect(target=parse_url(database.url()), checks=(), allow_superuser=False)
        assert inspection.server.bookkeeping is Bookkeeping.OUTDATED
        advice = ledger_advice(inspection.server)
        assert advice
        assert said in advice
        assert "migrate --down" in advice
        with pytest.raises(Problem, match=said):
            await check(database.url())
        assert await database.fetch_as(SUPERUSER, "select who from public.caught") == []


@pytest.mark.parametrize("databases", [18], indirect=True, ids=["pg18"])
@pytest.mark.parametrize("change", CHANGES)
async def test_t5_a_ledger_that_would_run_foreign_code_is_not_used(databases: Databases, change: str) -> None:
    await judged(databases, change)


@pytest.mark.parametrize("databases", [15, 16], indirect=True, ids=["pg15", "pg16"])
@pytest.mark.parametrize("change", ["row trigger", "default", "constraint by xml", "type", "another key"])
async def test_t5_a_ledger_is_judged_on_older_versions_too(databases: Databases, change: str) -> None:
    await judged(databases, change)


async def test_a_ledger_that_users_read_through_views_and_with_more_indexes_is_used(database: Database) -> None:
    view = await counted_view(database)
    await database.execute_as(
        SUPERUSER,
        f"""
        create function public.minutes(int) returns int language sql as $$ select $1 / 60 $$;
        create view public.runs as select outcome, public.minutes(attempt) from {LEDGER};
        create materialized view public.kept_runs as select outcome, count(*) from {LEDGER} group by 1;
        create index on {LEDGER} (finished_at, outcome);
        alter table {LEDGER} add note text, add check (octet_length(note) < 100);
        comment on table {LEDGER} is 'ours';
        """,
    )
    assert await check(database.url()) is Bookkeeping.INSTALLED
    assert ended(await refresh(database, view)) == (RefreshOutcome.SUCCESS, None)
    assert await database.value_as(SUPERUSER, f"select count(*) from {LEDGER}") == 1


async def test_a_ledger_made_anew_is_used_again(database: Database) -> None:
    await database.execute_as(SUPERUSER, TRAPS + CHANGES["row trigger"][0])
    with pytest.raises(Problem, match="a trigger"):
        await check(database.url())
    await downgrade(database.admin_url)
    await upgrade(database.admin_url, grant_to=[MV_OPERATOR])
    assert await check(database.url()) is Bookkeeping.INSTALLED
