"""Fault 13: several operators, of which one works: they die, sleep, lose the API server, and run no slot twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from sandbox.controlplane import Cluster
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.crew import EVERY, SETTLED, Crew, crewed, ended, says, told_at
from tests.cluster.exposition import scrape
from tests.cluster.operators import Operators
from tests.cluster.pair import POLICIES, pair
from tests.cluster.relay import relayed
from tests.cluster.tenant import database, policy
from tests.databases import Databases

SLACK_SECONDS = 1.5
"""For a machine that does other things."""


@pytest.fixture
async def crew(installed: Cluster, namespace: str, databases: Databases, operators: Operators) -> AsyncIterator[Crew]:
    async with (
        pair(installed, namespace, databases) as tenants,
        crewed(installed, operators, tenants) as made,
    ):
        for name, tenant in tenants.items():
            tenant.apply(
                tenant.secret(name), database(name), policy(name, "mv", every=EVERY, databaseRef={"name": name})
            )
        yield made


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
        await crew.ran(other, within=40)
        takeover = told_at(other, "schedule_loaded") - began
        assert takeover < (2 + SLACK_SECONDS if strike is signal.SIGTERM else 15), strike
        await crew.gone(leader, by=strike)
        # Not before: it would be as likely to take over, if the leader renewed the Lease in its last moment.
        leader, other = other, await crew.start()
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
