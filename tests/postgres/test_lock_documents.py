"""docs/locks.md on real servers: its keys, its job beside the operator's runs, its query for the holder."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.refreshes import GatedView, refresh

from matview_operator import lock_keys
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.policy import Isolation

if TYPE_CHECKING:
    from tests.database import Database

TEXT = (Path(__file__).parents[2] / "docs" / "locks.md").read_text()
FORMULA, JOB, HOLDER = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
VECTORS = re.findall(r"^\| `(view|tenant):(\S+)` \| (-?\d+) \|$", TEXT, re.MULTILINE)
VIEW = "mv_daily_revenue_summary"
ROWS = f"select count(*) from {VIEW}"


async def refreshed_by_the_job(database: Database) -> bool:
    """Run the job; tell whether it rebuilt the view: the view's row in pg_class is then a new one."""
    version = f"select xmin::text from pg_class where oid = '{VIEW}'::regclass"
    before = await database.value_as(APP_OWNER, version)
    await database.execute_as(APP_OWNER, JOB)
    return await database.value_as(APP_OWNER, version) != before


async def held(database: Database) -> None:
    """Wait until somebody holds the lock."""
    while True:
        if await database.fetch_as(SUPERUSER, HOLDER):
            return
        await asyncio.sleep(0.01)


async def test_rem_2_gate_2b_the_published_keys_are_those_that_code_and_server_compute(database: Database) -> None:
    assert len(VECTORS) == 8
    for kind, name, key in VECTORS:
        keys = lock_keys(name) if kind == "view" else lock_keys("any", name)
        assert (keys.view_key if kind == "view" else keys.tenant_key) == int(key)
        computed = await database.value_as(MV_OPERATOR, FORMULA.replace(f"view:{VIEW}", f"{kind}:{name}"))
        assert computed == int(key)


def test_the_commands_print_the_published_keys() -> None:
    (shell,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    keys = {key for _, name, key in VECTORS if name in (VIEW, "GLOBAL")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    *imports, last = python.splitlines()
    for command in (["bash", "-c", shell], ["python", "-c", "\n".join([*imports, f"print({last})"])]):
        done = subprocess.run(command, env={"PATH": path}, check=True, capture_output=True, text=True, timeout=30)
        assert keys <= set(re.findall(r"-?\d+", done.stdout))


async def test_the_job_refreshes_when_nobody_else_does(database: Database) -> None:
    await database.make_view(VIEW)
    await database.execute_as(APP_OWNER, f"delete from {VIEW}_base where id = 1")
    assert await refreshed_by_the_job(database)
    assert await database.value_as(APP_OWNER, ROWS) == 2


async def test_the_job_does_nothing_while_the_operator_is_at_work(database: Database) -> None:
    gated = await GatedView.make(database, VIEW)
    await gated.shut()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(refresh(database, gated.view))
        pid = await gated.reached()

        assert not await refreshed_by_the_job(database)
        holders = await database.fetch_as(SUPERUSER, HOLDER)

        await gated.open()
    assert [(row["pid"], row["usename"]) for row in holders] == [(pid, MV_OPERATOR)]
    assert run.result().outcome is RefreshOutcome.SUCCESS
    assert await database.fetch_as(SUPERUSER, HOLDER) == []


@pytest.mark.parametrize(("isolation", "tenant"), [(Isolation.SHARED, None), (Isolation.TENANT, "a")])
async def test_the_operator_does_nothing_while_the_job_is_at_work(
    database: Database, isolation: Isolation, tenant: str | None
) -> None:
    gated = await GatedView.make(database, VIEW)
    await gated.shut()
    async with asyncio.TaskGroup() as tasks:
        job = tasks.create_task(database.execute_as(APP_OWNER, JOB))
        await held(database)

        result = await refresh(database, gated.view, isolation=isolation, tenant_id=tenant)
        assert result.outcome is RefreshOutcome.SKIPPED_LOCK_HELD

        # As another role: the job's session is busy.
        await database.execute_as(SUPERUSER, f"select setval('{VIEW}_gate', 0)")
        await job
    assert (await refresh(database, gated.view)).outcome is RefreshOutcome.SUCCESS
