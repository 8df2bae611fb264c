"""The Lease of a history's processes, as each of them reaches it through the API server."""

from __future__ import annotations

from tests.simulation.cluster import Cluster
from tests.unit.memory_lease import MemoryLease

from matview_operator.domain.lease import Lease
from matview_operator.engine.leadership import LeaseChanged


class SharedLease:
    """Fits LeaseStore."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._memory = MemoryLease()

    async def read(self) -> Lease | None:
        async def found() -> Lease | None:
            return self._memory.stored

        return await self._cluster.ask(found)

    async def write(self, lease: Lease) -> Lease:
        async def put() -> Lease:
            stored = self._memory.stored
            if (None if stored is None else stored.version) != lease.version:
                raise LeaseChanged
            return self._memory.put(lease)

        return await self._cluster.ask(put)
