"""Fault 8: the API server itself is stopped and started again on the same etcd, once by SIGTERM, once by SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sandbox.controlplane import ControlPlane
from tests.cluster.crew import ELECTING, ended, lines
from tests.cluster.operators import Operators
from tests.cluster.pair import make_noted_views
from tests.cluster.planes import install, started
from tests.cluster.slots import Slots, broken_off, counted, refreshes
from tests.cluster.tenant import Json, Tenant, is_ready
from tests.databases import Databases
from tests.refreshes import settled

EVERY = 5
LATE_SECONDS = 60
"""From the API server's return until all is told and heard. What asks in vain asks more and more rarely."""


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with started(tmp_path_factory.mktemp("restarted")) as plane:
        yield plane


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> ControlPlane:
    install(control_plane)
    return control_plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """Gone with its control plane, whose API server may be away when the test fails."""
    control_plane.run_kubectl("create", "namespace", "alone")
    return "alone"


async def refreshed(tenant: Tenant, view: str, *, more_than: int) -> None:
    """Wait until a view has been refreshed more often than so many times."""

    async def enough() -> bool:
        return await refreshes(tenant, view) > more_than

    await settled(enough, expected=True, seconds=4 * EVERY)


async def told_since(tenant: Tenant, name: str, instant: datetime) -> Json:
    """Wait until the status has a slot that was due since."""
    return await asyncio.to_thread(
        tenant.wait,
        name,
        lambda status: datetime.fromisoformat(status.get("lastSlotTime", "1970-01-01T00:00:00Z")) > instant,
        seconds=LATE_SECONDS,
    )


@pytest.mark.timeout(240)
async def test_fault_8_slots_go_on_while_the_api_server_restarts_as_far_as_the_lease_allows_and_each_is_run_once(
    control_plane: ControlPlane, operators: Operators, tenant: Tenant, databases: Databases, tmp_path: Path
) -> None:
    control_plane.run_kubectl("create", "namespace", "elected")
    crew = Operators(control_plane, tmp_path / "crew", "elected")
    async with databases.lend("ledger") as another:
        elected = Tenant(cluster=control_plane, namespace="elected", database=another)
        alone, leader = await asyncio.gather(
            asyncio.to_thread(operators.start), asyncio.to_thread(crew.start, **ELECTING)
        )
        standby = await asyncio.to_thread(crew.start, **ELECTING)
        for each in (tenant, elected):
            await make_noted_views(each.database, "mv", "late")
            each.connect()
            each.apply(counted("sales", "mv", every=EVERY))
        for each in (tenant, elected):
            await refreshed(each, "mv", more_than=0)

        # Long enough for the Lease to be lost, and for slots to fall due after that.
        count = await refreshes(tenant, "mv")
        assert await asyncio.to_thread(control_plane.stop_apiserver, by=signal.SIGTERM) == 0
        assert await ended(leader, within=20) == 1
        assert lines(leader, "leader_lost")
        final = await refreshes(elected, "mv")
        await refreshed(tenant, "mv", more_than=max(await refreshes(tenant, "mv"), count + 1))
        assert await refreshes(elected, "mv") == final
        assert not lines(standby, "leader_acquired")
        await asyncio.to_thread(control_plane.start_apiserver)
        back_at = datetime.now(UTC)
        for each in (tenant, elected):
            await told_since(each, "sales", back_at)
        # The watch goes on, too.
        tenant.apply(counted("late", "late", every=EVERY))
        await asyncio.to_thread(tenant.wait, "late", is_ready, seconds=LATE_SECONDS)
        third = await asyncio.to_thread(crew.start, **ELECTING)

        control_plane.stop_apiserver(by=signal.SIGKILL)
        await refreshed(tenant, "late", more_than=await refreshes(tenant, "late"))
        await asyncio.to_thread(control_plane.start_apiserver)
        elected.apply(counted("late", "late", every=EVERY))
        tenant.kubectl("patch", "mvrp", "late", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        back_at = datetime.now(UTC)
        for each in (tenant, elected):
            await told_since(each, "sales", back_at)
        await told_since(elected, "late", back_at)
        await asyncio.to_thread(
            tenant.wait, "late", lambda status: status["observedGeneration"] == 2, seconds=LATE_SECONDS
        )

        assert alone.exit_code is None
        for process in (alone, standby, third):
            process.send(signal.SIGTERM)
        for process in (alone, standby, third):
            await ended(process, within=20)
        sales = Slots.told(tenant.get("sales"))
        assert sales.missed == 0
        await sales.check_ledger(tenant.database)
        await Slots.told(tenant.get("late")).check_ledger(tenant.database)
        assert await broken_off(tenant.database) == 0
        await Slots.told(elected.get("sales")).check_ledger(elected.database, changes=2)
        await Slots.told(elected.get("late")).check_ledger(elected.database, changes=1)
