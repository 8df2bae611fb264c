"""One run against a real server: its locks, its settings, its rows, its log lines."""

from __future__ import annotations

import ast
import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import TENANT, TENANT_A, TENANT_B, GatedView, backends, refresh, settled

import matview_operator
from matview_operator import RefreshOutcome, RefreshResult, lock_keys
from matview_operator.api.outcome import RefreshReason

if TYPE_CHECKING:
    from tests.database import Database

SOURCES = sorted(Path(matview_operator.__file__).parent.rglob("*.py"))
GLOBAL_KEY = -2014051537
ADVISORY_LOCKS = """
select classid::int8 as view_key, objid::int8 as tenant_key, objsubid, mode, granted, pid from pg_locks
where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
order by objid
"""


async def advisory_locks(database: Database) -> list[tuple[int, int]]:
    rows = await database.fetch_as(SUPERUSER, ADVISORY_LOCKS)
    return [(row["view_key"], row["tenant_key"]) for row in rows]


def unsigned(key: int) -> int:
    """Return a key as pg_locks shows it."""
    return key % 2**32


@pytest.mark.parametrize("end", ["commit", "error", "timeout", "cancel", "terminate"])
async def test_rem_1_every_end_releases_the_lock(database: Database, end: str) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view, timeout_seconds=1 if end == "timeout" else 20))
    pid = await gated.reached()
    assert len(await advisory_locks(database)) == 1
    match end:
        case "commit":
            await gated.open()
        case "error":
            await database.execute_as(SUPERUSER, f"select pg_cancel_backend({pid})")
        case "cancel":
            task.cancel()
        case "terminate":
            await database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid})")
    await asyncio.wait([task])
    await settled(lambda: advisory_locks(database), [])
    await gated.open()
    assert (await refresh(database, gated.view)).outcome is RefreshOutcome.SUCCESS


def test_rem_1_no_session_lock_and_no_unlock_in_the_code() -> None:
    calls = [
        f"{path.name}: {text.splitlines()[0]}"
        for path in SOURCES
        for text in strings_of(path)
        if any(word in text for word in ("advisory_lock(", "advisory_unlock", "try_advisory_lock("))
    ]
    assert calls == []


async def test_rem_2_both_pairs_are_in_pg_locks_while_it_runs(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view, **TENANT))
    pid = await gated.reached()
    view_key, tenant_key = lock_keys(gated.view.name, TENANT_A)
    rows = await database.fetch_as(SUPERUSER, ADVISORY_LOCKS)
    assert [tuple(row.values()) for row in rows] == [
        (unsigned(view_key), key, 2, "ExclusiveLock", True, pid)
        for key in sorted([unsigned(tenant_key), unsigned(GLOBAL_KEY)])
    ]
    await gated.open()
    assert (await task).outcome is RefreshOutcome.SUCCESS


def test_rem_3_one_place_executes_refresh() -> None:
    start = "refresh materialized view "
    statements = [path.name for path in SOURCES for text in strings_of(path) if text.startswith(start)]
    callers = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "queries.refresh"
    ]
    assert statements == ["queries.py", "queries.py"]  # with CONCURRENTLY and without, in one function
    assert callers == ["steps.py"]


def test_rem_4_one_result_model_with_the_required_fields() -> None:
    assert {
        "view_name",
        "tenant_id",
        "correlation_id",
        "outcome",
        "started_at",
        "duration_ms",
        "error_type",
        "error_message",
        "lock_key_debug",
    } <= RefreshResult.model_fields.keys()
    models = [
        (path.name, node.name)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "Result" in node.name
    ]
    assert models == [("result.py", "RefreshResult")]


async def test_rem_4_the_ledgers_row_says_what_the_result_says(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(
        APP_OWNER, "update mv_base set v = v + 1 where id <= 2; insert into mv_base values (9, 'a', 9)"
    )
    result = await refresh(database, view, correlation_id="from test")
    (row,) = await database.fetch_as(SUPERUSER, "select * from matview_ops.refresh_run")
    assert row["recorded_by"] == MV_OPERATOR
    assert (row["view_name"], row["outcome"], row["mode"]) == (result.view_name, result.outcome, result.mode)
    assert (row["rows_inserted"], row["rows_deleted"]) == (result.rows_inserted, result.rows_deleted) == (3, 2)
    assert (row["data_as_of"], row["correlation_id"]) == (result.data_as_of, "from test")
    assert row["attempt"] == result.attempts == 1


async def test_locking_semantics_a_held_lock_is_a_skip_at_once(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(APP_OWNER, "insert into mv_base values (9, 'a', 9)")
    keys = lock_keys("mv", TENANT_A)
    holder = await database.connect(APP_OWNER)
    await holder.execute(f"select pg_advisory_lock({keys.view_key}, {keys.tenant_key})")
    started = time.monotonic()
    result = await refresh(database, view, **TENANT)
    assert time.monotonic() - started < 1
    assert (result.outcome, result.error_type) == (RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD)
    assert result.lock_key_debug == f"view_key={keys.view_key},tenant_key={keys.tenant_key}"
    assert await database.value_as(APP_OWNER, "select count(*) from mv") == 3
    # Not an attempt, and nothing settled: the slot stays due.
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 0
    await holder.execute("select pg_advisory_unlock_all()")
    assert (await refresh(database, view, **TENANT)).outcome is RefreshOutcome.SUCCESS


async def test_locking_semantics_the_global_key_excludes_every_tenant(database: Database) -> None:
    view = await database.make_view()
    holder = await database.connect(APP_OWNER)
    await holder.execute(f"select pg_advisory_lock({lock_keys('mv').view_key}, {GLOBAL_KEY})")
    for fields in ({}, TENANT, {**TENANT, "tenant_id": TENANT_B}):
        assert (await refresh(database, view, **fields)).outcome is RefreshOutcome.SKIPPED_LOCK_HELD


@pytest.mark.parametrize(
    ("one", "other"),
    [({}, {}), (TENANT, TENANT), (TENANT, {**TENANT, "tenant_id": TENANT_B}), (TENANT, {}), ({}, TENANT)],
    ids=["shared", "one tenant", "two tenants", "tenant and shared", "shared and tenant"],
)
async def test_gate_2a_of_two_concurrent_refreshes_one_works(
    database: Database, one: dict[str, Any], other: dict[str, Any]
) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    first = asyncio.create_task(refresh(database, gated.view, **one))
    await gated.reached()
    second = await refresh(database, gated.view, **other)
    assert second.outcome is RefreshOutcome.SKIPPED_LOCK_HELD
    await gated.open()
    assert (await first).outcome is RefreshOutcome.SUCCESS


async def test_gate_2a_two_views_do_not_exclude_each_other(database: Database) -> None:
    gated = await GatedView.make(database)
    other = await database.make_view()
    await gated.shut()
    first = asyncio.create_task(refresh(database, gated.view))
    await gated.reached()
    assert (await refresh(database, other)).outcome is RefreshOutcome.SUCCESS
    await gated.open()
    assert (await first).outcome is RefreshOutcome.SUCCESS


async def test_correlation_is_in_result_ledger_and_log(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    view = await database.make_view()
    caplog.set_level(logging.DEBUG, "matview_operator")
    result = await refresh(database, view, correlation_id="order 66")
    assert result.correlation_id == "order 66"
    assert await database.value_as(SUPERUSER, "select correlation_id from matview_ops.refresh_run") == "order 66"
    assert {vars(record).get("correlation_id") for record in caplog.records} == {"order 66"}


async def test_logging_of_the_lock_and_the_outcome(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    gated = await GatedView.make(database)
    caplog.set_level(logging.DEBUG, "matview_operator")
    keys = lock_keys(gated.view.name, TENANT_A)
    fields = {
        "view_name": gated.view.name,
        "tenant_token": TENANT_A,
        "view_key": keys.view_key,
        "tenant_key": keys.tenant_key,
    }

    def lines() -> list[tuple[str, str]]:
        assert all(fields.items() <= vars(record).items() for record in caplog.records)
        return [(record.levelname, vars(record)["action"]) for record in caplog.records]

    await gated.shut()
    first = asyncio.create_task(refresh(database, gated.view, **TENANT))
    await gated.reached()
    assert lines() == [("DEBUG", "lock_attempt"), ("INFO", "lock_acquired")]
    caplog.clear()
    await refresh(database, gated.view, **TENANT)
    assert lines() == [("DEBUG", "lock_attempt"), ("INFO", "lock_held"), ("INFO", "refresh")]
    assert vars(caplog.records[-1])["outcome"] == "SKIPPED_LOCK_HELD"
    caplog.clear()
    await gated.open()
    await first
    assert lines() == [("INFO", "refresh")]
    assert vars(caplog.records[-1])["outcome"] == "SUCCESS"


async def test_a_cancelled_run_is_logged_and_tells_its_result(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    caplog.set_level(logging.INFO, "matview_operator")
    task = asyncio.create_task(refresh(database, gated.view))
    await gated.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    (result,) = caught.value.args
    assert isinstance(result, RefreshResult)
    assert (result.outcome, result.error_type) == (RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)
    assert vars(caplog.records[-1])["outcome"] == "INTERRUPTED"
    (row,) = await database.fetch_as(SUPERUSER, "select outcome, reason from matview_ops.refresh_run")
    assert tuple(row) == ("INTERRUPTED", "Shutdown")


async def test_one_run_uses_one_connection_and_leaves_none(database: Database) -> None:
    view = await database.make_view()
    await refresh(database, view)
    await settled(lambda: backends(database), 0)


def strings_of(path: Path) -> list[str]:
    """Return a module's string constants in lower case, its docstrings and attribute descriptions left out."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value.lower()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
