"""Fault 11: the operator dies at each of its boundaries, and another one takes over from what it left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sandbox.controlplane import Cluster
from sandbox.operator_process import OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.operators import Operators
from tests.cluster.pair import POLICIES, pair
from tests.cluster.relay import Relay, relayed
from tests.cluster.tenant import Json, Tenant, database, policy
from tests.database import Database
from tests.databases import Databases
from tests.proxy import Fault, Proxy
from tests.refreshes import settled

LOCKING = "select pg_catalog.set_config('statement_timeout'"
LOCK_SECONDS = 1.0
SLACK_SECONDS = 1.0
"""For a machine that does other things."""


@dataclass(kw_only=True)
class Succession:
    """Operators, one after another, before two databases: one has the ledger, the other has none."""

    tenants: dict[str, Tenant]
    proxies: dict[str, Proxy]
    relay: Relay
    start: Callable[[], OperatorProcess]
    operator: OperatorProcess = field(init=False)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))

    async def successor(self) -> None:
        """Kill the operator at work; have another one take over."""
        await asyncio.to_thread(self.operator.kill)
        for tenant in self.tenants.values():
            await settled(partial(locks, tenant.database), 0, seconds=LOCK_SECONDS + SLACK_SECONDS)
        self.relay.renew()
        self.operator = await asyncio.to_thread(self.start)

    async def ask(self, token: str) -> None:
        for name, tenant in self.tenants.items():
            await asyncio.to_thread(tenant.request, name, token)

    async def answered(self, token: str) -> dict[str, Json]:
        return {
            name: await asyncio.to_thread(
                tenant.wait, name, lambda status: status.get("lastHandledRequest") == token, what=f"answered {token}"
            )
            for name, tenant in self.tenants.items()
        }

    async def told(self, reason: str) -> None:
        """Wait until each policy has an event for this reason."""
        for name, tenant in self.tenants.items():
            await settled(partial(events, tenant, name, reason), expected=True, seconds=20)

    def strike(self, statement: str, **what: Any) -> list[Fault]:
        """Have the next run on each database meet a fault."""
        faults = {name: Fault(statement=statement, **what) for name in POLICIES}
        for name, fault in faults.items():
            self.proxies[name].add(fault)
        return [*faults.values()]

    async def committed(self) -> dict[str, int]:
        """How many refreshes have committed on each database since this was last asked."""
        before = self.counts
        self.counts = {name: await committed(tenant.database) for name, tenant in self.tenants.items()}
        return {name: count - before[name] for name, count in self.counts.items()}


async def committed(database: Database) -> int:
    count = await database.value_as(SUPERUSER, "select count(*) from committed")
    assert isinstance(count, int)
    return count


async def locks(database: Database) -> object:
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
    )


async def events(tenant: Tenant, name: str, reason: str) -> bool:
    return reason in [event["reason"] for event in await asyncio.to_thread(tenant.events, name)]


@pytest.fixture
async def succession(
    installed: Cluster, namespace: str, databases: Databases, tmp_path: Path, operators: Operators
) -> AsyncIterator[Succession]:
    async with (
        pair(installed, namespace, databases) as tenants,
        relayed(installed, tmp_path) as (relay, kubeconfig),
        Proxy(databases.server.port) as one,
        Proxy(databases.server.port) as two,
    ):
        proxies = dict(zip(POLICIES, (one, two), strict=True))
        for name, tenant in tenants.items():
            tenant.apply(
                tenant.secret(name, port=str(proxies[name].port)),
                database(name),
                policy(name, "mv", databaseRef={"name": name}),
            )
        start = partial(operators.start, KUBECONFIG=kubeconfig)
        made = Succession(tenants=tenants, proxies=proxies, relay=relay, start=start)
        made.operator = await asyncio.to_thread(start)
        yield made
        await asyncio.to_thread(made.operator.kill)


ONCE = {"ledger": 1, "bare": 1}
ONE_EXTRA = {"ledger": 1, "bare": 2}


@pytest.mark.timeout(240)
async def test_fault_11_an_operator_killed_at_any_boundary_repeats_nothing_with_the_ledger_and_one_refresh_without(
    succession: Succession,
) -> None:
    # After the event; before it no slot had ended, so there is one.
    await succession.ask("event")
    await succession.told("Refreshed")
    await succession.successor()
    await succession.answered("event")
    # After the status.
    await succession.ask("status")
    await succession.answered("status")
    await succession.successor()
    # After the locks, and after REFRESH: what was begun is rolled back, and done anew.
    assert await succession.committed() == {"ledger": 2, "bare": 2}
    for token, statement in (("lock", LOCKING), ("refresh", "refresh"), ("commit", "commit")):
        faults = succession.strike(statement, loses="answer", held=True)
        await succession.ask(token)
        for fault in faults:
            await fault.happened.wait()
        await succession.successor()
        ended = await succession.answered(token)
        assert [status["views"][0]["outcome"] for status in ended.values()] == ["SUCCESS", "SUCCESS"]
        assert (ended["ledger"]["views"][0].get("reason") == "Recovered") is (token == "commit")
        # After COMMIT, whose answer nobody lived to hear.
        assert await succession.committed() == (ONE_EXTRA if token == "commit" else ONCE), token
    # Before the status: all is done, and the API server cannot be told any more.
    faults = succession.strike("commit", loses="request", until=asyncio.Event())
    await succession.ask("write")
    for fault in faults:
        await fault.happened.wait()
    succession.relay.freeze()
    for fault in faults:
        assert fault.until is not None
        fault.until.set()
    await settled(lambda: done(succession.operator), 2, seconds=20)
    await succession.successor()
    ended = await succession.answered("write")
    assert ended["ledger"]["views"][0]["reason"] == "Recovered"
    assert await succession.committed() == ONE_EXTRA
    rows = await succession.tenants["ledger"].database.fetch_as(
        SUPERUSER, "select slot_id from matview_ops.refresh_run where settles order by run_id"
    )
    assert [row["slot_id"] for row in rows] == [
        f"request:{token}" for token in ("event", "status", "lock", "refresh", "commit", "write")
    ]


async def done(operator: OperatorProcess) -> int:
    """How many runs of the last request it has logged as done."""
    lines = [line for line in operator.log_text().splitlines() if '"correlation_id": "write"' in line]
    return sum('"outcome": "SUCCESS"' in line for line in lines)
