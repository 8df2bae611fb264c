"""maxStalenessSeconds on a real server: how old readers see the rows, and what the status says if that is too old."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Tenant, condition, policy
from tests.database import APP_OWNER

SLOW = """
    create function {name}_takes() returns int language sql as $$ select 1 from pg_catalog.pg_sleep({seconds}) $$;
    create materialized view {name} as select {name}_takes() as id with no data;
    create unique index on {name} (id)
"""
RUNS = "select data_as_of, finished_at from matview_ops.refresh_run where view_name = $1 order by run_id"


async def test_rows_are_never_older_than_the_target_and_one_that_cannot_be_met_is_said(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    await tenant.database.execute_as(APP_OWNER, SLOW.format(name="quick", seconds=1))
    await tenant.database.execute_as(APP_OWNER, SLOW.format(name="slow", seconds=6))
    tenant.connect()
    tenant.apply(
        policy("quick", "quick", schedule={"maxStalenessSeconds": 10}),
        policy("slow", "slow", schedule={"maxStalenessSeconds": 10}),
    )
    missed = tenant.wait("slow", lambda status: condition(status, "TargetMissed"))
    assert condition(missed, "TargetMissed")["reason"] == "RunTooLong"
    assert "s more than maxStalenessSeconds: a run takes 7 s" in condition(missed, "TargetMissed")["message"]

    status = tenant.wait("quick", lambda status: len(status.get("history", ())) >= 3)
    assert status["schedule"] == "at most 10s old"
    assert condition(status, "TargetMissed") == {}
    runs = await tenant.database.fetch_as(SUPERUSER, RUNS, "quick")
    ages = [later["finished_at"] - former["data_as_of"] for former, later in pairwise(runs)]
    assert len(ages) >= 2
    assert timedelta(seconds=6) < min(ages) <= max(ages) <= timedelta(seconds=10)
    assert operator.alive
