"""Old runs leave the ledger, and nothing else does; a prune() that somebody exchanged is not called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import MV_OPERATOR, OTHER_TENANT
from tests.refreshes import counted_view, ended, executions, refresh

from matview_operator.adapters.postgres.migrations import upgrade
from matview_operator.adapters.postgres.retention import LedgerPruner
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.run import request_id

if TYPE_CHECKING:
    from tests.database import Database

RUNS = """
insert into matview_ops.refresh_run
  (recorded_by, finished_at, slot_id, policy_uid, view_oid, view_name, outcome, lock_token, data_as_of, correlation_id)
select $1, now() - make_interval(hours => hours), 'slot:' || hours, gen_random_uuid(), 1, 'mv', 'SUCCESS', 'GLOBAL',
  now(), 'c' from unnest($2::int[]) hours
"""
DAY = 24


async def prune(database: Database, *, keep_days: int = 30, seconds: float = 60) -> int | None:
    target = parse_url(database.url())
    return await LedgerPruner().prune(target=target, keep_days=keep_days, allow_superuser=False, seconds=seconds)


async def left(database: Database, role: str = MV_OPERATOR) -> list[int]:
    rows = await database.fetch_as(
        SUPERUSER, "select slot_id from matview_ops.refresh_run where recorded_by = $1 order by finished_at desc", role
    )
    return [int(row["slot_id"].removeprefix("slot:")) for row in rows]


async def test_own_runs_beyond_so_many_days_go_and_all_others_stay(database: Database) -> None:
    ages = [0, 10 * DAY, 30 * DAY - 1, 30 * DAY + 1, 31 * DAY, 45 * DAY, 400 * DAY]
    for role in (MV_OPERATOR, OTHER_TENANT):
        await database.fetch_as(SUPERUSER, RUNS, role, ages)
    assert await prune(database) == 4
    assert await left(database) == ages[:3]
    assert await left(database, OTHER_TENANT) == ages
    assert await prune(database) == 0
    assert await prune(database, keep_days=9) == 2
    assert await left(database) == [0]


async def test_a_long_backlog_goes_a_day_at_a_time_so_that_a_bound_loses_nothing(database: Database) -> None:
    await database.fetch_as(SUPERUSER, RUNS, MV_OPERATOR, [days * DAY + 1 for days in range(28, 40)])
    # The rows of the 35th day are held by somebody: pruning waits there until its time is over.
    holder = await database.connect(SUPERUSER)
    async with holder.transaction():
        await holder.execute(f"select from matview_ops.refresh_run where slot_id = 'slot:{35 * DAY + 1}' for update")
        with pytest.raises(Problem, match="4 old runs were deleted"):
            await prune(database, seconds=2)
    assert await left(database) == [days * DAY + 1 for days in range(28, 36)]
    assert await prune(database) == 6
    assert await left(database) == [days * DAY + 1 for days in range(28, 30)]


async def test_without_a_ledger_there_is_nothing_to_prune(bare_database: Database) -> None:
    assert await prune(bare_database) is None


async def test_a_correlation_id_that_was_forgotten_does_its_work_once_more(database: Database) -> None:
    view = await counted_view(database)
    slot = request_id("import-7")
    await refresh(database, view, slot_id=slot)
    await database.execute_as(SUPERUSER, "update matview_ops.refresh_run set finished_at = now() - interval '31 days'")
    assert ended(await refresh(database, view, slot_id=slot)) == (RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)
    assert await prune(database) == 1
    assert ended(await refresh(database, view, slot_id=slot)) == (RefreshOutcome.SUCCESS, None)
    assert await executions(database) == 2


TRAP = """
create table public.caught (who name);
grant insert on public.caught to public;
create function public.spring() returns bigint language plpgsql as
  $$ begin insert into public.caught values (current_user); return 0; end $$;
drop function matview_ops.prune(interval);
"""
GRANT = f"grant execute on function matview_ops.prune(interval) to {MV_OPERATOR}"
DEFINER = "security definer set search_path = pg_catalog, pg_temp"
HOSTILE = {
    "missing": "select",
    "as the caller": "create function matview_ops.prune(keep interval) returns bigint language sql"
    f" begin atomic select public.spring(); end; {GRANT}",
    "by text": f"create function matview_ops.prune(keep interval) returns bigint language sql {DEFINER}"
    f" as 'select public.spring()'; {GRANT}",
    "in plpgsql": f"create function matview_ops.prune(keep interval) returns bigint language plpgsql {DEFINER}"
    f" as 'begin return public.spring(); end'; {GRANT}",
    "calls another": f"create function matview_ops.prune(keep interval) returns bigint language sql {DEFINER}"
    f" begin atomic select public.spring(); end; {GRANT}",
    "by xml": f"create function matview_ops.prune(keep interval) returns bigint language sql {DEFINER}"
    f" begin atomic select length(query_to_xml('select public.spring()', true, true, '')::text)::bigint; end; {GRANT}",
    "writes elsewhere": f"create function matview_ops.prune(keep interval) returns bigint language sql {DEFINER}"
    f" begin atomic insert into public.caught values ('x') returning 1::bigint; end; {GRANT}",
    "not granted": "create function matview_ops.prune(keep interval) returns bigint language sql"
    f" {DEFINER} begin atomic select 1::bigint; end; revoke all on function matview_ops.prune(interval) from public",
}


@pytest.mark.parametrize("databases", [15, 18], indirect=True, ids=["pg15", "pg18"])
@pytest.mark.parametrize("change", HOSTILE)
async def test_t5_a_prune_function_that_could_run_foreign_code_is_not_called(database: Database, change: str) -> None:
    await database.execute_as(SUPERUSER, TRAP + HOSTILE[change])
    await database.fetch_as(SUPERUSER, RUNS, MV_OPERATOR, [40 * DAY])
    with pytest.raises(Problem, match=r"migrate --down.*migrate --grant-to mv_operator") as caught:
        await prune(database)
    assert caught.value.reason is RefreshReason.PERMISSION_DENIED
    assert await database.fetch_as(SUPERUSER, "select who from public.caught") == []
    await database.execute_as(SUPERUSER, "drop schema matview_ops cascade")
    await upgrade(database.admin_url, grant_to=[MV_OPERATOR])
    assert await prune(database) == 0
