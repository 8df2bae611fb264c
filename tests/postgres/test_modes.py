"""Populated or not, each kind of index, each mode that can be wished for: what runs, and what reason is recorded."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.refreshes import failure, public, refresh

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.view import Concurrently

if TYPE_CHECKING:
    from tests.database import Database

    from matview_operator import RefreshResult
    from matview_operator.domain.view import ViewName

USABLE = {
    "plain": "create unique index {view}_i on {view} (id)",
    "with NULLs": "create unique index {view}_i on {view} (n desc nulls last)",
    "NULLS NOT DISTINCT": "create unique index {view}_i on {view} (id, other) include (n) nulls not distinct",
    "one of several": "create index on {view} (n); create unique index {view}_i on {view} (id) where id > 0; "
    "create unique index on {view} (id)",
}
UNUSABLE = {
    "none": None,
    "not unique": "create index {view}_i on {view} (id)",
    "partial": "create unique index {view}_i on {view} (id) where id > 0",
    "expression": "create unique index {view}_i on {view} (id, (n + 0))",
    # No ALTER TABLE … ADD CONSTRAINT … DEFERRABLE for materialized views; the catalogue could say so all the same.
    "deferred": "create unique index {view}_i on {view} (id)",
}


async def make(database: Database, number: int, kind: str) -> ViewName:
    """Make a view with an index of this kind; `n` holds NULLs, two of them."""
    name = f"mv_{number}"
    await database.execute_as(
        APP_OWNER,
        f"create materialized view {name} as select id, id + 10 as other, nullif(greatest(id, 2), 2) as n "
        "from generate_series(1, 4) id",
    )
    for statement in filter(None, ((USABLE | UNUSABLE)[kind] or "").format(view=name).split("; ")):
        await database.execute_as(APP_OWNER, statement)
    if kind == "deferred":
        await database.execute_as(
            SUPERUSER, f"update pg_index set indimmediate = false where indexrelid = '{name}_i'::regclass"
        )
    return public(name)


async def is_taken_by_the_server(database: Database, view: ViewName) -> bool:
    """Ask the one who decides."""
    try:
        await database.execute_as(APP_OWNER, f"refresh materialized view concurrently {view}")
    except asyncpg.ObjectNotInPrerequisiteStateError:
        return False
    return True


def blocking(result: RefreshResult, reason: Reason | None) -> None:
    assert (result.outcome, result.mode) == (RefreshOutcome.SUCCESS, RefreshMode.BLOCKING)
    assert result.error_type is reason


async def test_every_kind_of_index_in_every_mode(database: Database) -> None:
    for number, kind in enumerate(USABLE | UNUSABLE):
        view = await make(database, number, kind)
        usable = kind in USABLE
        assert await is_taken_by_the_server(database, view) is usable, kind

        if_possible = await refresh(database, view)
        always = await refresh(database, view, concurrently=Concurrently.ALWAYS)
        if usable:
            for result in (if_possible, always):
                assert (result.outcome, result.mode) == (RefreshOutcome.SUCCESS, RefreshMode.CONCURRENT), kind
                assert result.error_type is None
        else:
            blocking(if_possible, Reason.NO_UNIQUE_INDEX)
            failure(always, Reason.NO_UNIQUE_INDEX, f"CREATE UNIQUE INDEX ON public.{view} (…);")

        await database.execute_as(APP_OWNER, f"refresh materialized view {view} with no data")
        always = await refresh(database, view, concurrently=Concurrently.ALWAYS)
        failure(always, Reason.NOT_POPULATED if usable else Reason.NO_UNIQUE_INDEX)
        blocking(await refresh(database, view), Reason.FIRST_POPULATE)

        recorded = await database.fetch_as(
            SUPERUSER,
            "select mode, reason from matview_ops.refresh_run where view_name = $1 and settles order by run_id",
            str(view),
        )
        assert [tuple(row) for row in recorded] == [
            *([("Concurrent", None)] * 2 if usable else [("Blocking", "NoUniqueIndex")]),
            ("Blocking", "FirstPopulate"),
        ]


@pytest.mark.parametrize("kind", ["plain", "none"])
async def test_never_makes_readers_wait_whatever_there_is(database: Database, kind: str) -> None:
    view = await make(database, 0, kind)
    blocking(await refresh(database, view, concurrently=Concurrently.NEVER), None)
    await database.execute_as(APP_OWNER, f"refresh materialized view {view} with no data")
    blocking(await refresh(database, view, concurrently=Concurrently.NEVER), None)


async def test_what_a_failed_create_index_concurrently_leaves_is_no_index_until_it_is_mended(
    database: Database,
) -> None:
    await database.execute_as(
        APP_OWNER,
        "create table source as select 1 as id from generate_series(1, 2); "
        "create materialized view mv as select id from source",
    )
    with suppress(asyncpg.UniqueViolationError):
        await database.execute_as(APP_OWNER, "create unique index concurrently mv_i on mv (id)")
    failure(await refresh(database, public("mv"), concurrently=Concurrently.ALWAYS), Reason.NO_UNIQUE_INDEX)
    # Not even a blocking refresh can be had while there are duplicates; it makes that index too.
    failure(await refresh(database, public("mv")), Reason.DUPLICATE_ROWS)
    await database.execute_as(APP_OWNER, "truncate source; insert into source values (1)")
    blocking(await refresh(database, public("mv")), Reason.NO_UNIQUE_INDEX)
    assert (await refresh(database, public("mv"))).mode is RefreshMode.CONCURRENT
