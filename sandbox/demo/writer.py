"""The application at work: purchases and reconciliation runs that the views do not know of yet."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import asyncpg

from sandbox.reference import APP_ROLE, Tenant, insert_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.analytics import Analytics
    from sandbox.demo.readings import Connection

_PAUSE_SECONDS = 0.4
_RECONCILED_EVERY = 40
"""Purchases from one reconciliation run to the next."""


class Writer:
    """Writes as the application's role, by row-level security one tenant at a time, until it is cancelled."""

    def __init__(self, analytics: Analytics) -> None:
        self._url = analytics.url(APP_ROLE)
        self._tenants = analytics.tenants
        self.rows = 0
        """Rows written so far."""

    async def run(self) -> None:
        """Write until cancelled; raises asyncpg.PostgresError and OSError when the server is gone."""
        connection = await asyncpg.connect(self._url)
        try:
            for number, tenant in zip(itertools.count(1), itertools.cycle(_in_turn(self._tenants))):
                self.rows += await insert_events(connection, tenant_id=tenant.tenant_id)
                if number % _RECONCILED_EVERY == 0:
                    await _reconcile(connection, tenant)
                    self.rows += 1
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            connection.terminate()


def _in_turn(tenants: Sequence[Tenant]) -> Sequence[Tenant]:
    """The first tenant sells twice as much as the others."""
    return (*tenants, tenants[0])


async def _reconcile(connection: Connection, tenant: Tenant) -> None:
    async with connection.transaction():
        await connection.fetchval("select set_config('app.current_tenant_id', $1, true)", str(tenant.tenant_id))
        await connection.execute(
            "insert into public.reconciliation_runs (tenant_id, state, last_run_at) values ($1, 'balanced', now())",
            tenant.tenant_id,
        )
