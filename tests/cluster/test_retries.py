"""Slots on real servers that fail at first: tried again in the same slot, counted in the ledger, told in the status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sandbox.controlplane import Cluster
from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from sandbox.postgres import PostgresServer
from tests.cluster.exposition import scrape
from tests.cluster.tenant import Json, Tenant, condition, not_ready_because, policy
from tests.database import APP_OWNER, Database
from tests.databases import Databases
from tests.refreshes import settled

QUICK = {"limit": 20, "backoffSeconds": 1, "maxBackoffSeconds": 1}
# A sequence is not rolled back: it knows how often the view's query was begun.
COUNTING = """
create sequence tries;
create function tell() returns int language plpgsql as $$ begin {body} return 1; end $$;
create materialized view mv as select public.tell() as id with no data;
create unique index on mv (id)
"""


@pytest.fixture(scope="module")
def restartable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    directory = tmp_path_factory.mktemp("restartable")
    with PostgresServer.start(version=18, directory=directory, in_memory=True) as server:
        yield Databases(server)


@pytest.fixture
async def own_tenant(restartable: Databases, installed: Cluster, namespace: str) -> AsyncIterator[Tenant]:
    """One whose server the test may restart."""
    async with restartable.lend("ledger") as database:
        yield Tenant(cluster=installed, namespace=namespace, database=database)


async def ledger(database: Database) -> list[tuple[str, int, str]]:
    """Slot, attempt and outcome of each row."""
    rows = await database.fetch_as(
        SUPERUSER, "select slot_id, attempt, outcome from matview_ops.refresh_run order by run_id"
    )
    return [(row["slot_id"], row["attempt"], row["outcome"]) for row in rows]


def is_fresh(status: Json) -> bool:
    return bool(condition(status, "Fresh").get("status") == "True")


def only_slot(status: Json) -> str:
    """The id of the one slot that has ended."""
    (entry,) = status["history"]
    assert entry["slotTime"] == status["lastSlotTime"]
    return f"slot:{entry['slotTime']}"


async def test_a_server_restarted_in_the_middle_of_a_slot_refreshes_the_view_in_the_same_slot(
    operator: OperatorProcess, own_tenant: Tenant
) -> None:
    database = own_tenant.database
    body = "if nextval('public.tries') = 1 then perform pg_catalog.pg_sleep(60); end if;"
    await database.execute_as(APP_OWNER, COUNTING.format(body=body))
    own_tenant.connect()
    own_tenant.apply(policy("sales", "mv", every=15, startingDeadlineSeconds=1, retry=QUICK))
    asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"

    async def sleeping() -> object:
        return await database.value_as(SUPERUSER, asleep)

    await settled(sleeping, 1, seconds=20)
    await asyncio.to_thread(database.server.restart, "fast")
    status = await asyncio.to_thread(own_tenant.wait, "sales", is_fresh, seconds=15, what="fresh")
    # The lost attempt has no row: nobody was left to write it.
    assert [(slot, outcome) for slot, _, outcome in await ledger(database)] == [(only_slot(status), "SUCCESS")]
    assert status["views"][0]["attempts"] >= 2
    assert status["consecutiveFailures"] == 0
    assert await database.value_as(APP_OWNER, "select last_value from public.tries") == 2
    assert scrape_retries(operator, own_tenant, "ConnectionLost") >= 1


async def test_each_attempt_of_a_slot_is_counted_in_the_ledger(operator: OperatorProcess, tenant: Tenant) -> None:
    body = "if nextval('public.tries') <= 2 then raise 'not yet'; end if;"
    await tenant.database.execute_as(APP_OWNER, COUNTING.format(body=body))
    tenant.connect()
    tenant.apply(policy("sales", "mv", every=15, retry=QUICK))
    status = await asyncio.to_thread(tenant.wait, "sales", is_fresh, what="fresh")
    slot = only_slot(status)
    assert await ledger(tenant.database) == [(slot, 1, "FAILED"), (slot, 2, "FAILED"), (slot, 3, "SUCCESS")]
    assert (status["views"][0]["outcome"], status["views"][0]["attempts"]) == ("SUCCESS", 3)
    assert scrape_retries(operator, tenant, "ViewQueryFailed") == 2


async def test_a_view_that_is_created_after_its_slot_failed_is_refreshed_in_that_slot(
    operator: OperatorProcess, tenant: Tenant
) -> None:
    assert operator.alive
    await tenant.database.make_view("there")
    tenant.connect()
    tenant.apply(policy("sales", "there", "mv", every=12))
    tenant.wait("sales", not_ready_because("ViewNotFound"))
    failed = await asyncio.to_thread(tenant.wait, "sales", lambda status: status.get("history"), what="run")
    assert condition(failed, "Fresh")["reason"] == "ViewNotFound"
    await tenant.database.make_view()
    # What makes the operator look at once; else it does every inventory.checkIntervalSeconds.
    tenant.kubectl("patch", "mvdb", "analytics", "--type=merge", "-p", '{"spec": {"limits": {"timeoutSeconds": 60}}}')
    status = await asyncio.to_thread(tenant.wait, "sales", is_fresh, what="fresh", seconds=10)
    assert only_slot(status) == only_slot(failed)
    assert await ledger(tenant.database) == [(only_slot(failed), 1, "SUCCESS")] * 2


def scrape_retries(operator: OperatorProcess, tenant: Tenant, reason: str) -> float:
    labels = f'namespace="{tenant.namespace}",policy="sales",reason="{reason}"'
    found = [line for line in scrape(operator).splitlines() if line.startswith(f"matview_retries_total{{{labels}}}")]
    return float(found[0].split()[-1]) if found else 0.0
