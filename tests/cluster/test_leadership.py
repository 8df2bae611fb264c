"""Fault 13: several operators, of which one works: they die, sleep, lose the API server, and run no slot twice."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random

import pytest
from sandbox.controlplane import Cluster
from sandbox.operator_process import NAMESPACE, OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.exposition import scrape
from tests.cluster.operators import Operators
from tests.cluster.pair import POLICIES, pair
from tests.cluster.relay import relayed
from tests.cluster.tenant import Json, Tenant, database, policy
from tests.databases import Databases
from tests.refreshes import settled

EVERY = 5
LEASE = "matview-operator"
SLACK_SECONDS = 1.5
"""For a machine that does other things."""
TIMES = "select extract(epoch from at)::float8 as at from committed order by at"
SETTLED = "select count(*) from matview_ops.refresh_run where settles and outcome = 'SUCCESS'"


@dataclass(kw_only=True)
class Crew:
    """Operators of one Lease, before two databases that are refreshed every 5 s: one has the ledger."""

    tenants: dict[str, Tenant]
    launch: Callable[[Mapping[str, str]], OperatorProcess]
    started: list[OperatorProcess] = field(default_factory=list)

    async def start(self, **env: str) -> OperatorProcess:
        process = await asyncio.to_thread(self.launch, env)
        self.started.append(process)
        return process

    async def ran(self, process: OperatorProcess, *, within: float) -> None:
        """Wait until this process has refreshed both."""
        await settled(lambda: refreshed(process), expected=True, seconds=within)

    async def gone(self, leader: OperatorProcess, *, by: signal.Signals) -> None:
        """Wait for the end of who has led; one that was asleep wakes, and does nothing but find that out."""
        begun = len(lines(leader, "lock_acquired"))
        leader.send(signal.SIGCONT)
        code = await ended(leader, within=20)
        assert code == {signal.SIGTERM: 0, signal.SIGKILL: -signal.SIGKILL, signal.SIGSTOP: 1}[by]
        assert await says(leader, "leader_lost") is (by is signal.SIGSTOP)
        assert len(lines(leader, "lock_acquired")) == begun

    async def commits(self, name: str) -> list[float]:
        """When refreshes of this database committed, as seconds since 1970."""
        rows = await self.tenants[name].database.fetch_as(SUPERUSER, TIMES)
        return [float(row["at"]) for row in rows]

    async def repeated(self) -> int:
        """How many refreshes without the ledger were one too many: the second of one slot's."""
        slots = [int(at // EVERY) for at in await self.commits("bare")]
        return len(slots) - len(set(slots))

    async def check(self, *, changes: int) -> None:
        """With the ledger each slot was refreshed once; without it, each change of leader repeated one at most."""
        settles = await self.tenants["ledger"].database.value_as(SUPERUSER, SETTLED)
        assert len(await self.commits("ledger")) == settles
        assert await self.repeated() <= changes


def lines(process: OperatorProcess, action: str) -> list[Json]:
    found = [json.loads(line) for line in process.log_text().splitlines() if f'"action": "{action}"' in line]
    return [line for line in found if line["action"] == action]


async def says(process: OperatorProcess, action: str) -> bool:
    return bool(lines(process, action))


async def refreshed(process: OperatorProcess) -> bool:
    return len([line for line in lines(process, "refresh") if line["outcome"] == "SUCCESS"]) >= len(POLICIES)


def told_at(process: OperatorProcess, action: str) -> float:
    return datetime.fromisoformat(lines(process, action)[0]["time"]).timestamp()


async def ended(process: OperatorProcess, *, within: float) -> int | None:
    async def code() -> bool:
        return process.exit_code is not None

    await settled(code, expected=True, seconds=within)
    return process.exit_code


@pytest.fixture
async def crew(installed: Cluster, namespace: str, databases: Databases, operators: Operators) -> AsyncIterator[Crew]:
    # The Lease of another test's operators would be waited for.
    installed.run_kubectl("delete", "lease", LEASE, "-n", NAMESPACE, "--ignore-not-found")
    async with pair(installed, namespace, databases) as tenants:
        for name, tenant in tenants.items():
            tenant.apply(
                tenant.secret(name), database(name), policy(name, "mv", every=EVERY, databaseRef={"name": name})
            )

        def launch(env: Mapping[str, str]) -> OperatorProcess:
            return operators.start(**{"MATVIEW_LEADER_ELECT": "true", "MATVIEW_LEASE_NAMESPACE": NAMESPACE, **env})

        made = Crew(tenants=tenants, launch=launch)
        yield made
        for process in made.started:
            await asyncio.to_thread(process.kill)


@pytest.mark.timeout(240)
async def test_h_e_fault_13_whatever_befalls_the_leader_another_takes_over_in_time_and_each_slot_is_run_once(
    crew: Crew,
) -> None:
    chance = Random(7)  # noqa: S311 - a replayable order
    strikes = [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP]
    chance.shuffle(strikes)
    leader, other = await crew.start(), await crew.start()
    for strike in strikes:
        await crew.ran(leader, within=30)
        assert "matview_leader 1.0" in scrape(leader)
        assert "matview_leader 0.0" in scrape(other)
        assert not await says(other, "schedule_loaded")
        await asyncio.sleep(chance.uniform(0, EVERY))
        began = time.time()
        leader.send(strike)
        starting = asyncio.create_task(crew.start())
        await crew.ran(other, within=40)
        takeover = told_at(other, "schedule_loaded") - began
        assert takeover < (2 + SLACK_SECONDS if strike is signal.SIGTERM else 15), strike
        await crew.gone(leader, by=strike)
        leader, other = other, await starting
    other.send(signal.SIGTERM)
    assert await ended(other, within=10) == 0
    assert not await says(other, "leader_acquired")
    await crew.check(changes=len(strikes))


@pytest.mark.timeout(240)
async def test_fault_13_a_leader_without_the_api_server_stops_before_another_starts(
    crew: Crew, installed: Cluster, tmp_path: Path
) -> None:
    async with relayed(installed, tmp_path) as (relay, kubeconfig):
        first = await crew.start(KUBECONFIG=kubeconfig)
        await crew.ran(first, within=15)
        second = await crew.start()
        relay.freeze()
        await crew.ran(second, within=25)
        assert await ended(first, within=20) == 1
    margin = told_at(second, "leader_acquired") - told_at(first, "leader_lost")
    assert margin > 1
    await crew.check(changes=1)


@pytest.mark.timeout(240)
async def test_another_number_of_shards_loses_no_slot_and_repeats_none_with_the_ledger(crew: Crew) -> None:
    """The new owners begin before the old one has ended."""
    whole = await crew.start(MATVIEW_LEADER_ELECT="false")
    await crew.ran(whole, within=15)
    shards = {"MATVIEW_LEADER_ELECT": "false", "MATVIEW_SHARD_COUNT": "2"}
    parts = await asyncio.gather(*(crew.start(**shards, MATVIEW_SHARD_INDEX=str(index)) for index in range(2)))
    assert sorted(part.log_text().count('"action": "schedule_loaded"') for part in parts) in ([0, 2], [1, 1])
    await asyncio.sleep(EVERY)
    whole.send(signal.SIGTERM)
    await ended(whole, within=10)
    before = time.time()
    await asyncio.sleep(2 * EVERY + 1)
    for name in POLICIES:
        # A policy is written, and so repeated, by the old owner and the new one while both have it.
        assert len({int(at // EVERY) for at in await crew.commits(name) if at > before}) >= 2
    for part in parts:
        part.send(signal.SIGTERM)
        await ended(part, within=10)
    settles = await crew.tenants["ledger"].database.value_as(SUPERUSER, SETTLED)
    assert len(await crew.commits("ledger")) == settles
