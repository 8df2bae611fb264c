"""Several operators of one Lease, of which one works."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sandbox.controlplane import Cluster
from sandbox.operator_process import NAMESPACE, OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.operators import Operators
from tests.cluster.pair import POLICIES
from tests.cluster.tenant import Json, Tenant
from tests.refreshes import settled

EVERY = 5
LEASE = "matview-operator"
ELECTING = {"MATVIEW_LEADER_ELECT": "true", "MATVIEW_LEASE_NAMESPACE": NAMESPACE}
"""What makes operators of one Lease."""
TIMES = "select extract(epoch from at)::float8 as at from committed order by at"
SETTLED = "select count(*) from matview_ops.refresh_run where settles and outcome = 'SUCCESS'"


@dataclass(kw_only=True)
class Crew:
    """Operators of one Lease, before two databases: one has the ledger."""

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


@asynccontextmanager
async def crewed(cluster: Cluster, operators: Operators, tenants: dict[str, Tenant]) -> AsyncIterator[Crew]:
    """Yield a crew that nobody is in yet; all that were started are gone at the end."""
    # The Lease of another test's operators would be waited for.
    cluster.run_kubectl("delete", "lease", LEASE, "-n", NAMESPACE, "--ignore-not-found")

    def launch(env: Mapping[str, str]) -> OperatorProcess:
        return operators.start(**{**ELECTING, **env})

    crew = Crew(tenants=tenants, launch=launch)
    yield crew
    for process in crew.started:
        await asyncio.to_thread(process.kill)
