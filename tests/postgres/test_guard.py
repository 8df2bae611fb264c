"""The guard: new rows that are not as asked for are rolled back before anybody has seen them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, quoted
from tests.refreshes import TENANT, ended, refresh

from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.database import Database

    from matview_operator.domain.result import RefreshResult

REJECTED = RefreshOutcome.REJECTED_BY_GUARD
CONCURRENT: dict[str, Any] = {"concurrently": Concurrently.ALWAYS}
BLOCKING: dict[str, Any] = {"concurrently": Concurrently.NEVER}
both_modes = pytest.mark.parametrize("mode", [CONCURRENT, BLOCKING], ids=["concurrent", "blocking"])
only_18 = pytest.mark.parametrize("databases", [18], indirect=True)
ALL = Guard(min_rows=3, max_row_loss_percent=50, keep_tenants="tenant_id")


def counted(result: RefreshResult) -> tuple[int | None, ...]:
    return result.rows_before, result.rows_after, result.tenants_before, result.tenants_lost


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[set[object]]:
    """Read all the time, each time in a statement of its own; what was seen is in the set."""
    seen: set[object] = set()
    reader = await database.connect(APP_OWNER)
    told = asyncio.Event()

    async def poll() -> None:
        while True:
            seen.add(await reader.fetchval("select string_agg(id::text, ' ' order by id) from mv"))
            told.set()

    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(poll())
        await told.wait()
        yield seen
        for _ in range(2):  # the read after next began after the refresh had ended
            told.clear()
            await told.wait()
        polling.cancel()


@both_modes
@pytest.mark.parametrize(
    ("guard", "reason", "numbers", "said"),
    [
        (Guard(min_rows=3), RefreshReason.TOO_FEW_ROWS, (None, 2, None, None), ["2 rows", "minRows asks for 3"]),
        (
            Guard(max_row_loss_percent=50),
            RefreshReason.TOO_MANY_ROWS_LOST,
            (10, 2, None, None),
            ["10 rows would have become 2", "80.0 percent", "allows 50"],
        ),
        (
            Guard(keep_tenants="tenant_id"),
            RefreshReason.TENANTS_LOST,
            (10, 2, 2, 1),
            ["Of 2 values", "tenant_id", "lack 1"],
        ),
        (ALL, RefreshReason.TENANTS_LOST, (10, 2, 2, 1), ["lack 1", "80.0 percent", "minRows asks for 3"]),
    ],
    ids=["minRows", "maxRowLossPercent", "keepTenants", "all"],
)
async def test_guard_rejects_what_readers_then_never_see(
    database: Database, mode: dict[str, Any], *, guard: Guard, reason: RefreshReason, numbers: object, said: list[str]
) -> None:
    await database.make_view(rows=10)
    await database.execute_as(APP_OWNER, "delete from mv_base where id not in (1, 3)")
    async with reading(database) as seen:
        result = await refresh(database, guard=guard, **mode)
    assert ended(result) == (REJECTED, reason), result.error_message
    assert counted(result) == numbers
    assert result.error_message is not None
    assert [text for text in said if text not in result.error_message] == []
    assert "old rows stay" in result.error_message
    assert (result.data_as_of, result.verified_at) == (None, None)
    assert seen == {"1 2 3 4 5 6 7 8 9 10"}
    (row,) = await database.fetch_as(
        SUPERUSER, "select outcome, reason, message, settles, mode from matview_ops.refresh_run"
    )
    assert (row["outcome"], row["reason"], row["settles"]) == ("REJECTED_BY_GUARD", reason, False)
    assert (row["message"], row["mode"]) == (result.error_message, result.mode)


@both_modes
async def test_guard_lets_through_what_it_asks_for_and_tells_the_numbers(
    database: Database, mode: dict[str, Any]
) -> None:
    await database.make_view(rows=10)
    # At the very limits: three rows, six of ten lost, both tenants there.
    await database.execute_as(APP_OWNER, "delete from mv_base where id > 4")
    guard = Guard(min_rows=4, max_row_loss_percent=60, keep_tenants="tenant_id")
    result = await refresh(database, guard=guard, **mode)
    assert (result.outcome, counted(result)) == (RefreshOutcome.SUCCESS, (10, 4, 2, 0))
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 4
    await database.execute_as(APP_OWNER, "insert into mv_base select n, 'c', n from generate_series(11, 30) n")
    result = await refresh(database, guard=guard, **mode)
    assert (result.outcome, counted(result)) == (RefreshOutcome.SUCCESS, (4, 24, 2, 0))
    assert (result.rows_inserted, result.rows_deleted) == ((20, 0) if mode is CONCURRENT else (24, None))


@only_18
@both_modes
async def test_guard_a_rejected_slot_can_be_tried_again(database: Database, mode: dict[str, Any]) -> None:
    await database.make_view(rows=4)
    await database.execute_as(APP_OWNER, "update mv_base set tenant_id = 'a'")
    slot = {"slot_id": "request:same", **mode}
    assert ended(await refresh(database, guard=ALL, **slot)) == (REJECTED, RefreshReason.TENANTS_LOST)
    # Who finds that the new rows are right refreshes once without the guard.
    assert (await refresh(database, guard=ALL, **slot)).attempts == 2
    assert (await refresh(database, **mode)).outcome is RefreshOutcome.SUCCESS
    result = await refresh(database, guard=ALL, **slot)
    assert (result.outcome, result.attempts, counted(result)) == (RefreshOutcome.SUCCESS, 3, (4, 4, 1, 0))


@both_modes
async def test_guard_where_there_was_nothing_nothing_is_lost(database: Database, mode: dict[str, Any]) -> None:
    await database.make_view(rows=3)
    await database.execute_as(APP_OWNER, "refresh materialized view mv with no data")
    first = mode | {"concurrently": Concurrently.IF_POSSIBLE} if mode is CONCURRENT else mode
    guard = Guard(max_row_loss_percent=0, keep_tenants="tenant_id")
    assert counted(await refresh(database, guard=guard, **first)) == (0, 3, 0, 0)
    await database.execute_as(APP_OWNER, "truncate mv_base; refresh materialized view mv")
    result = await refresh(database, guard=guard, **mode)
    assert (result.outcome, counted(result)) == (RefreshOutcome.SUCCESS, (0, 0, 0, 0))
    # minRows has no such exception.
    result = await refresh(database, guard=Guard(min_rows=1), **mode)
    assert (*ended(result), result.rows_after) == (REJECTED, RefreshReason.TOO_FEW_ROWS, 0)


@only_18
@both_modes
async def test_guard_null_is_no_tenant(database: Database, mode: dict[str, Any]) -> None:
    await database.make_view(rows=4)
    await database.execute_as(
        APP_OWNER,
        "alter table mv_base alter tenant_id drop not null; update mv_base set tenant_id = null where id = 1;"
        "refresh materialized view mv; delete from mv_base where id = 1",
    )
    result = await refresh(database, guard=Guard(keep_tenants="tenant_id"), **mode)
    assert (result.outcome, counted(result)) == (RefreshOutcome.SUCCESS, (4, 3, 2, 0))


@only_18
async def test_guard_counts_for_itself_where_the_server_does_not(database: Database) -> None:
    await database.make_view(rows=10)
    await database.execute_as(SUPERUSER, f"alter database {database.name} set track_counts = off")
    await database.execute_as(APP_OWNER, "delete from mv_base where id > 2")
    result = await refresh(database, guard=Guard(max_row_loss_percent=50), **CONCURRENT)
    assert (*ended(result), *counted(result)[:2]) == (REJECTED, RefreshReason.TOO_MANY_ROWS_LOST, 10, 2)


TYPES = {
    "uuid": "md5(n::text)::uuid",
    "text": "'t' || n",
    "varchar(9)": "'t' || n",
    "char(9)": "'t' || n",
    "name": "'t' || n",
    "smallint": "n",
    "integer": "n",
    "bigint": "n * 10000000000",
    "numeric(9,2)": "n",
    "numeric": "n::numeric(9,2)",
    "tenant_domain": "n",
}


async def test_guard_compares_every_type_as_itself(database: Database) -> None:
    columns = [f"c{number}" for number in range(len(TYPES))]
    listed = ", ".join(f"{column} {of}" for column, of in zip(columns, TYPES, strict=True))
    await database.execute_as(
        APP_OWNER,
        f"""
        create domain whole as integer; create domain tenant_domain as whole check (value < 1000);
        create table source (n int, {listed});
        insert into source select n, {", ".join(TYPES.values())} from generate_series(1, 3) n;
        create materialized view mv as select * from source;
        delete from source where n = 2;
        -- Equal to the former value, though it looks different.
        update source set {columns[9]} = {columns[9]}::numeric(9,4);
        """,
    )
    for column, of in zip(columns, TYPES, strict=True):
        result = await refresh(database, guard=Guard(keep_tenants=column))
        assert (*ended(result), *counted(result)) == (REJECTED, RefreshReason.TENANTS_LOST, 3, 2, 3, 1), of


@pytest.mark.parametrize("databases", [15, 18], indirect=True)
async def test_guard_takes_columns_and_views_of_any_name(database: Database) -> None:
    names = ['a"b', "'; drop table source; --", "select", "Ünï 表", "tenant", "rows", "n" * 63, "$1", "a\\'b"]
    await database.execute_as(
        SUPERUSER,
        f"alter database {database.name} set quote_all_identifiers = on;"
        f"alter database {database.name} set standard_conforming_strings = off",
    )
    for name in names:
        view = ViewName('Odd "schema"', name)
        await database.execute_as(
            SUPERUSER, f"create schema if not exists {quoted(view.schema)} authorization {APP_OWNER}"
        )
        full = f"{quoted(view.schema)}.{quoted(name)}"
        await database.execute_as(
            APP_OWNER,
            f"""
            drop table if exists source cascade;
            create table source as select * from (values ('a'), ('b')) v(t);
            create materialized view {full} as select t as {quoted(name)} from source;
            delete from source where t = 'b';
            """,
        )
        result = await refresh(database, view, guard=Guard(keep_tenants=name))
        assert (*ended(result), *counted(result)) == (REJECTED, RefreshReason.TENANTS_LOST, 2, 1, 2, 1), name


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("Tenant_Id", ["no column Tenant_Id", "upper case"]),
        ("xmin", ["no column xmin"]),
        ("own", ["whose type is", "public.own"]),
        ("list", ["whose type is", "integer[]"]),
        ("many", ["10,001 values", "10,000"]),
        ("long", ["257 bytes", "256"]),
    ],
)
@only_18
async def test_guard_that_cannot_be_checked_lets_nothing_through(
    database: Database, column: str, said: list[str]
) -> None:
    await database.execute_as(
        APP_OWNER,
        """
        create type own as enum ('x');
        create table source (n int, own own, list int[], long text);
        insert into source select n, 'x', array[n], repeat('é', 128) || 'x' from generate_series(1, 10001) n;
        create materialized view mv as select n as many, own, list, long, 1 as tenant_id from source;
        """,
    )
    result = await refresh(database, guard=Guard(keep_tenants=column))
    assert ended(result) == (REJECTED, RefreshReason.GUARD_FAILED), result.error_message
    assert [text for text in said if text not in (result.error_message or "")] == []
    assert "ééé" not in (result.error_message or "")


@only_18
async def test_guard_keeps_ten_thousand_tenants(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create table source as select n, repeat('x', 251) || to_char(n, 'FM00000') as t"
        " from generate_series(1, 10000) n;"
        "create materialized view mv as select * from source; delete from source where n = 7",
    )
    result = await refresh(database, guard=Guard(keep_tenants="t"))
    assert (*ended(result), *counted(result)) == (REJECTED, RefreshReason.TENANTS_LOST, 10000, 9999, 10000, 1)


@both_modes
async def test_guard_works_through_a_pooler_and_leaves_nothing_there(
    database: Database, pgbouncer: Callable[..., Any], mode: dict[str, Any]
) -> None:
    await database.make_view(rows=10)
    await database.execute_as(APP_OWNER, "delete from mv_base where id <> 1")
    bouncer = pgbouncer(database, pool_size=1)
    for _ in range(2):
        result = await refresh(database, via=bouncer, guard=ALL, **mode)
        assert (*ended(result), *counted(result)) == (REJECTED, RefreshReason.TENANTS_LOST, 10, 1, 2, 1)
    assert (await refresh(database, via=bouncer, guard=Guard(min_rows=1), **mode)).outcome is RefreshOutcome.SUCCESS
    pooled = await database.connect(MV_OPERATOR, via=bouncer)
    for name in ("transaction_read_only", "row_security", "restrict_nonsystem_relation_kind"):
        left = await pooled.fetchrow("select setting, reset_val from pg_settings where name = $1", name)
        assert left is None or left["setting"] == left["reset_val"]


@only_18
async def test_guard_of_a_tenants_own_view(database: Database) -> None:
    await database.make_view(rows=4)
    await database.execute_as(APP_OWNER, "delete from mv_base where tenant_id = 'b'")
    result = await refresh(database, guard=Guard(keep_tenants="tenant_id"), **TENANT)
    assert ended(result) == (REJECTED, RefreshReason.TENANTS_LOST)
    assert result.mode is RefreshMode.CONCURRENT


@only_18
@both_modes
async def test_guard_needs_no_ledger(bare_database: Database, mode: dict[str, Any]) -> None:
    await bare_database.make_view(rows=4)
    await bare_database.execute_as(APP_OWNER, "delete from mv_base where id > 1")
    result = await refresh(bare_database, guard=ALL, **mode)
    assert (*ended(result), *counted(result)) == (REJECTED, RefreshReason.TENANTS_LOST, 4, 1, 2, 1)
