"""Two databases of one tenant's namespace: one has the ledger, the other has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandbox.controlplane import Cluster
from tests.cluster.tenant import Tenant
from tests.database import APP_OWNER
from tests.databases import Databases

# Filled by the view's own query: what stands there has committed, once for each transaction.
COMMITTED = """
create table committed (xid xid8 primary key default pg_catalog.pg_current_xact_id(),
                        at timestamptz default pg_catalog.clock_timestamp());
create function note() returns int language plpgsql as
  $$ begin insert into public.committed default values; return 1; end $$;
create table base (id int);
insert into base values (1), (2);
create materialized view mv as select id, noted from base, note() noted;
create unique index on mv (id);
truncate committed;
"""
POLICIES = ("ledger", "bare")


@asynccontextmanager
async def pair(cluster: Cluster, namespace: str, databases: Databases) -> AsyncIterator[dict[str, Tenant]]:
    """Yield them by their policies' names, each with a view that counts its refreshes."""
    async with databases.lend("ledger") as with_ledger, databases.lend("bare") as without:
        tenants = {
            name: Tenant(cluster=cluster, namespace=namespace, database=made)
            for name, made in zip(POLICIES, (with_ledger, without), strict=True)
        }
        for tenant in tenants.values():
            await tenant.database.execute_as(APP_OWNER, COMMITTED)
        yield tenants
