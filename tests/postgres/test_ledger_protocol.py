"""Exactly once per slot with the ledger, whatever dies when; at least once without it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import TENANT, GatedView, counted_view, ended, executions, ledger_rows, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.run import slot_id

if TYPE_CHECKING:
    from tests.database import Database


SLOT: dict[str, Any] = {"slot_id": slot_id(datetime(2026, 1, 1, tzinfo=UTC))}
RECOVERED = (RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)
OTHER_POLICY: Any = "00000000-0000-4000-8000-00000000000b"


async def test_a_settled_slot_is_not_run_again_and_tells_what_was_done(database: Database) -> None:
    view = await counted_view(database)
    first = await refresh(database, view, **SLOT, correlation_id="first")
    again = await refresh(database, view, **SLOT, correlation_id="again")
    assert ended(first) == (RefreshOutcome.SUCCESS, None)
    assert ended(again) == RECOVERED
    recorded = ("mode", "data_as_of", "verified_at", "rows_inserted", "rows_deleted", "attempts")
    assert [getattr(again, name) for name in recorded] == [getattr(first, name) for name in recorded]
    assert await executions(database) == 1
    assert await ledger_rows(database) == [("SUCCESS", None, 1, True)]
    assert ended(await refresh(database, view)) == (RefreshOutcome.SUCCESS, None)


async def test_a_slot_is_one_policys(database: Database) -> None:
    view = await counted_view(database)
    for policy in ({}, {"policy_uid": OTHER_POLICY}):
        assert ended(await refresh(database, view, **SLOT, **policy)) == (RefreshOutcome.SUCCESS, None)
    assert await executions(database) == 2


async def test_a_slot_that_became_due_before_another_policys_run_is_covered(database: Database) -> None:
    view = await counted_view(database)
    due = datetime.now(UTC)
    done = await refresh(database, view, **SLOT, due_at=due, correlation_id="theirs")
    covered = await refresh(database, view, **SLOT, due_at=due, policy_uid=OTHER_POLICY)
    assert ended(covered) == (RefreshOutcome.SKIPPED_COVERED, RefreshReason.COVERED)
    assert (covered.data_as_of, covered.verified_at) == (done.data_as_of, done.data_as_of)
    assert covered.error_message
    assert "theirs" in covered.error_message
    assert await executions(database) == 1
    # A cover is derived, never recorded.
    assert len(await ledger_rows(database)) == 1
    later = await refresh(database, view, **SLOT, due_at=datetime.now(UTC), policy_uid=OTHER_POLICY)
    assert ended(later) == (RefreshOutcome.SUCCESS, None)


async def test_a_run_does_not_cover_other_views_other_tenants_or_a_later_slot(database: Database) -> None:
    view, other = await counted_view(database), await counted_view(database, "other")
    due = datetime.now(UTC)
    assert ended(await refresh(database, view, **SLOT, due_at=due)) == (RefreshOutcome.SUCCESS, None)
    theirs = {**SLOT, "due_at": due, "policy_uid": OTHER_POLICY}
    assert ended(await refresh(database, other, **theirs)) == (RefreshOutcome.SUCCESS, None)
    tomorrow = {**theirs, "due_at": due + timedelta(days=1)}
    assert ended(await refresh(database, view, **tomorrow)) == (RefreshOutcome.SUCCESS, None)
    tenants = await counted_view(database, "tenants")
    assert ended(await refresh(database, tenants, **SLOT, due_at=due, **TENANT)) == (RefreshOutcome.SUCCESS, None)
    covered = await refresh(database, tenants, **theirs)
    assert covered.outcome is not RefreshOutcome.SKIPPED_COVERED


async def test_a_request_is_never_covered(database: Database) -> None:
    view = await counted_view(database)
    for _ in range(2):
        assert ended(await refresh(database, view)) == (RefreshOutcome.SUCCESS, None)
    assert await executions(database) == 2


async def test_another_roles_run_neither_settles_nor_covers(database: Database) -> None:
    view = await counted_view(database)
    await upgrade(database.admin_url, grant_to=[APP_OWNER])
    due = datetime.now(UTC)
    for role in (APP_OWNER, MV_OPERATOR):
        result = await refresh(database, view, role=role, **SLOT, due_at=due)
        assert ended(result) == (RefreshOutcome.SUCCESS, None)
    recorders = await database.fetch_as(SUPERUSER, "select recorded_by from matview_ops.refresh_run order by run_id")
    assert [row["recorded_by"] for row in recorders] == [APP_OWNER, MV_OPERATOR]


async def test_failures_are_recorded_counted_and_leave_the_slot_due(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(APP_OWNER, "create table broken (x int); insert into broken values (0)")
    await database.execute_as(
        APP_OWNER,
        "drop materialized view mv; create materialized view mv as select id, 1 / (select x from broken) as y "
        "from mv_base with no data",
    )
    for attempt in (1, 2):
        result = await refresh(database, view, **SLOT)
        assert (ended(result), result.attempts) == ((RefreshOutcome.FAILED, RefreshReason.VIEW_QUERY_FAILED), attempt)
    await database.execute_as(APP_OWNER, "update broken set x = 1")
    result = await refresh(database, view, **SLOT)
    assert (result.outcome, result.attempts) == (RefreshOutcome.SUCCESS, 3)
    assert await ledger_rows(database) == [
        ("FAILED", "ViewQueryFailed", 1, False),
        ("FAILED", "ViewQueryFailed", 2, False),
        ("SUCCESS", "FirstPopulate", 3, True),
    ]
    (row,) = await database.fetch_as(
        SUPERUSER, "select sqlstate, message, view_name, lock_token from matview_ops.refresh_run where attempt = 2"
    )
    assert (row["sqlstate"], row["view_name"], row["lock_token"]) == ("22012", "mv", "GLOBAL")
    assert row["message"].startswith("The view's query failed: division by zero error (SQLSTATE 22012).")


async def test_more_attempts_than_the_ledger_can_number(database: Database) -> None:
    view = await counted_view(database)
    oid = await database.value_as(SUPERUSER, "select 'counted'::regclass::oid")
    await database.execute_as(
        SUPERUSER,
        f"""
        insert into matview_ops.refresh_run (policy_uid, view_oid, view_name, slot_id, outcome, lock_token, data_as_of,
          correlation_id)
        select '00000000-0000-4000-8000-000000000001', {oid}, 'counted', '{SLOT["slot_id"]}', 'FAILED', 'GLOBAL',
          now(), 'loop' from generate_series(1, 32800)
        """,
    )
    result = await refresh(database, view, **SLOT)
    assert (result.outcome, result.attempts) == (RefreshOutcome.SUCCESS, 32_767)


async def test_a_recreated_view_is_another_view(database: Database) -> None:
    view = await counted_view(database)
    await refresh(database, view, **SLOT)
    await database.execute_as(APP_OWNER, "drop materialized view counted; drop sequence counted_runs")
    await counted_view(database)
    assert ended(await refresh(database, view, **SLOT)) == (RefreshOutcome.SUCCESS, None)


async def test_a_slot_that_was_settled_while_we_worked_is_not_claimed_twice(database: Database) -> None:
    """Somebody who ignores the locks: the unique key alone decides."""
    gated = await GatedView.make(database)
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view, **SLOT))
    await gated.reached()
    await database.execute_as(
        MV_OPERATOR,
        f"""
        insert into matview_ops.refresh_run (policy_uid, view_oid, view_name, slot_id, outcome, lock_token, data_as_of,
          correlation_id)
        values ('00000000-0000-4000-8000-000000000001', 'gated'::regclass, 'gated', '{SLOT["slot_id"]}', 'SUCCESS',
          'GLOBAL', now(), 'faster')
        """,
    )
    await database.execute_as(APP_OWNER, "insert into gated_plain_base values (9, 'a', 9)")
    await gated.open()
    assert ended(await task) == RECOVERED
    assert await ledger_rows(database) == [("SUCCESS", None, 1, True)]
    assert await database.value_as(APP_OWNER, "select count(*) from gated") == 3


# The ledger comes and goes.


async def test_without_the_ledger_every_run_refreshes(bare_database: Database) -> None:
    view = await counted_view(bare_database)
    for _ in range(2):
        result = await refresh(bare_database, view, **SLOT, due_at=datetime.now(UTC))
        assert ended(result) == (RefreshOutcome.SUCCESS, None)
    assert await executions(bare_database) == 2


async def test_a_role_that_may_not_use_the_ledger_goes_without(database: Database) -> None:
    view = await counted_view(database)
    assert ended(await refresh(database, view, role=APP_OWNER, **SLOT)) == (RefreshOutcome.SUCCESS, None)
    assert await ledger_rows(database) == []


@pytest.mark.parametrize(
    "loss",
    [
        f"revoke insert (policy_uid) on matview_ops.refresh_run from {MV_OPERATOR}",
        f"revoke all on matview_ops.refresh_run from {MV_OPERATOR}",
        f"revoke usage on schema matview_ops from {MV_OPERATOR}",
    ],
    ids=["one column", "table", "schema"],
)
async def test_a_ledger_lost_in_mid_flight_is_done_without(database: Database, loss: str) -> None:
    gated = await GatedView.make(database)
    before = await database.value_as(APP_OWNER, "select count(*) from gated")
    await database.execute_as(APP_OWNER, "insert into gated_plain_base values (9, 'a', 9)")
    await gated.shut()
    task = asyncio.create_task(refresh(database, gated.view, **SLOT))
    await gated.reached()
    await database.execute_as(SUPERUSER, loss)
    await gated.open()
    assert ended(await task) == (RefreshOutcome.SUCCESS, None)
    assert await database.value_as(APP_OWNER, "select count(*) from gated") == before + 1  # type: ignore[operator]


async def test_an_outdated_ledger_is_not_used(database: Database) -> None:
    view = await counted_view(database)
    await database.execute_as(SUPERUSER, "alter table matview_ops.refresh_run drop column message")
    assert ended(await refresh(database, view, **SLOT)) == (RefreshOutcome.SUCCESS, None)
    assert await database.value_as(SUPERUSER, "select count(*) from matview_ops.refresh_run") == 0


async def test_a_ledger_that_refuses_a_row_fails_the_run_and_not_silently(database: Database) -> None:
    view = await counted_view(database)
    await database.execute_as(
        SUPERUSER, "alter table matview_ops.refresh_run add constraint full_disk check (correlation_id <> 'x')"
    )
    result = await refresh(database, view, **SLOT, correlation_id="x")
    assert result.outcome is RefreshOutcome.FAILED
    assert await database.value_as(APP_OWNER, "select run from counted") == 0
