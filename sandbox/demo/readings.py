"""Numbers of views beside the same numbers of the tables below them, by SQL, as the application reads them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Self, TypeAlias

import asyncpg

from sandbox.reference import APP_ROLE, Tenant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.analytics import Analytics

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

HISTORY = 120
"""Samples that are kept of how far a view is behind."""

# One statement each, so that both numbers are of one snapshot. The tables show one tenant's rows by row-level
# security; a materialized view cannot have that, so the query has to name the tenant.
_REVENUE = """
select (select v.total_revenue from public.mv_realtime_revenue v where v.tenant_id = $1) as in_view,
       (select round(sum(case l.state when 'captured' then l.amount_cents else -l.amount_cents end) / 100, 2)
        from public.revenue_ledger l where l.state in ('captured', 'refunded', 'chargeback')) as in_tables
"""
_BOOKINGS = """
select (select coalesce(sum(v.transaction_count), 0) from public.mv_daily_revenue_summary v
        where v.tenant_id = $1 and v.revenue_date = (now() at time zone 'UTC')::date) as in_view,
       (select count(*) from public.revenue_ledger l where l.state in ('captured', 'refunded', 'chargeback')
        and (l.booked_at at time zone 'UTC')::date = (now() at time zone 'UTC')::date) as in_tables
"""
_ALLOCATIONS = """
select (select sum(v.total_allocations) from public.mv_channel_performance v where v.tenant_id = $1) as in_view,
       (select count(*) from public.attribution_allocations a
        where (a.allocated_at at time zone 'UTC')::date > (now() at time zone 'UTC')::date - 90) as in_tables
"""


@dataclass(slots=True, kw_only=True)
class Reading:
    """One number, in a view and in the tables."""

    view: str
    tenant: Tenant
    what: str
    unit: str
    query: str
    before: Decimal | None = None
    """What the view said before its last refresh that changed it; None until we saw one."""
    in_view: Decimal = Decimal(0)
    in_tables: Decimal = Decimal(0)
    behind: deque[Decimal] = field(default_factory=lambda: deque(maxlen=HISTORY))
    """How far the view was behind, the newest last."""
    problem: str = ""
    """What the server said if the numbers could not be read."""

    def take(self, *, in_view: Decimal, in_tables: Decimal) -> bool:
        """Take in a sample; tell whether a refresh has changed the view since the last one."""
        changed = bool(self.behind) and in_view != self.in_view
        if changed:
            self.before = self.in_view
        self.in_view, self.in_tables = in_view, in_tables
        self.behind.append(in_tables - in_view)
        return changed


class Readings:
    """Samples a few numbers, as the application's role. Entered and left by the show."""

    def __init__(self, analytics: Analytics) -> None:
        first, second = analytics.tenants
        self._url = analytics.url(APP_ROLE)
        self._connections: dict[Tenant, Connection] = {}
        self.all: Sequence[Reading] = (
            Reading(view="mv_realtime_revenue", tenant=first, what="revenue", unit=first.currency, query=_REVENUE),
            Reading(view="mv_daily_revenue_summary", tenant=second, what="bookings today", unit="", query=_BOOKINGS),
            Reading(view="mv_channel_performance", tenant=second, what="allocations", unit="", query=_ALLOCATIONS),
        )

    async def __aenter__(self) -> Self:
        for tenant in {reading.tenant for reading in self.all}:
            connection = await asyncpg.connect(self._url)
            self._connections[tenant] = connection
            await connection.execute("select set_config('app.current_tenant_id', $1, false)", str(tenant.tenant_id))
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.terminate()

    async def sample(self) -> list[Reading]:
        """Read all numbers; return those whose view has changed."""
        changed = []
        for reading in self.all:
            try:
                row = await self._connections[reading.tenant].fetchrow(reading.query, reading.tenant.tenant_id)
            except asyncpg.PostgresError as error:
                # Somebody tries out what happens when a view is gone.
                reading.problem = str(error)
                continue
            assert row is not None
            reading.problem = ""
            if reading.take(in_view=Decimal(row["in_view"]), in_tables=Decimal(row["in_tables"])):
                changed.append(reading)
        return changed
