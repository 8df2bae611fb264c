"""T6: the database's owner gives every session a search_path by which our own statements' operators would be his."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import MV_OPERATOR, Database, quoted
from tests.proxy import Fault, Proxy
from tests.refreshes import ended, public, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.migrations import check
from matview_operator.adapters.postgres.retention import LedgerPruner
from matview_operator.adapters.postgres.view_graph import read_view_graph
from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.inspection import ViewCheck

if TYPE_CHECKING:
    pass

TYPES = ("name", "text", "oid", "int4", "int8", "bool", '"char"', "timestamptz", "float8", "numeric")
COMPARISONS = ("=", "<>", "<", ">", "<=", ">=")
ARITHMETIC = ("+", "-", "*", "/")
DOMAINS = ("text", "name", "oid", "timestamptz", "interval", "regclass", "xid8")


def traps() -> str:
    """Operators and types that work as PostgreSQL's do, and tell who used them."""
    parts = [
        """
        create schema trap;
        create table trap.caught (who name, what text);
        grant usage on schema trap to public;
        grant insert on trap.caught to public;
        create function trap.spring(what text) returns pg_catalog.bool language plpgsql as
          $$ begin insert into trap.caught values (current_user, what); return true; end $$;
        """
    ]
    for of in TYPES:
        numeric = of in ("int4", "int8", "float8", "numeric")
        for number, operator in enumerate(COMPARISONS + (ARITHMETIC if numeric else ())):
            answer = "bool" if operator in COMPARISONS else of
            function = f'trap."{number} {of.strip(chr(34))}"'
            parts.append(
                f"""
                create function {function} (pg_catalog.{of}, pg_catalog.{of}) returns pg_catalog.{answer}
                  language plpgsql as $$ begin perform trap.spring('{operator} {of}');
                  return $1 operator(pg_catalog.{operator}) $2; end $$;
                create operator trap.{operator} (leftarg = pg_catalog.{of}, rightarg = pg_catalog.{of},
                  function = {function});
                """
            )
    parts += [f"create domain trap.{of} as pg_catalog.{of} check (trap.spring('{of}'));" for of in DOMAINS]
    return "".join(parts)


@pytest.fixture
async def trapped(database: Database) -> Database:
    await database.make_view()
    await database.make_view("blocking", unique=False)
    await database.execute_as(SUPERUSER, traps())
    await database.execute_as(
        SUPERUSER, f"alter database {quoted(database.name)} set search_path = trap, pg_catalog, public"
    )
    return database


async def caught(database: Database) -> list[str]:
    rows = await database.fetch_as(
        SUPERUSER, "select distinct what from trap.caught where who operator(pg_catalog.=) $1", MV_OPERATOR
    )
    return sorted(row["what"] for row in rows)


async def test_the_traps_work(trapped: Database) -> None:
    operator = await trapped.connect()
    assert await operator.fetchval("select current_user::pg_catalog.name = session_user::pg_catalog.name")
    assert await operator.fetchval("select 'a'::text") == "a"
    assert await caught(trapped) == ["= name", "text"]


async def test_t6_a_databases_own_search_path_decides_nothing_that_we_ask_or_do(trapped: Database) -> None:
    target = parse_url(trapped.url())
    assert ended(await refresh(trapped)) == (RefreshOutcome.SUCCESS, None)
    blocking = await refresh(trapped, public("blocking"))
    assert ended(blocking) == (RefreshOutcome.SUCCESS, RefreshReason.NO_UNIQUE_INDEX)
    missing = await refresh(trapped, public("missing"))
    assert missing.error_type is RefreshReason.VIEW_NOT_FOUND
    async with Proxy(trapped.server.port, Fault(statement="commit", loses="answer")) as proxy:
        assert (await refresh(trapped, via=proxy)).error_type is RefreshReason.RECOVERED
    views = [
        ViewCheck(view=public(name), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED)
        for name in ("mv", "blocking")
    ]
    inspection = await Inspector().inspect(target=target, checks=views, allow_superuser=False)
    assert inspection.server.bookkeeping is Bookkeeping.INSTALLED
    assert {view.name for view in await read_view_graph(target)} == {"mv", "blocking"}
    assert await LedgerPruner().prune(target=target, keep_days=30, allow_superuser=False) == 0
    assert await check(trapped.url()) is Bookkeeping.INSTALLED
    assert await caught(trapped) == []
