"""Two databases of one tenant's namespace: one has the ledger, the other has none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sandbox.controlplane import Cluster
from tests.cluster.tenant import Tenant
from tests.database import APP_OWNER, Database
from tests.databases import Databases

# Filled by the views' own queries: what stands there has committed, once for each transaction. The sequence counts
# what was begun, too: it is not rolled back.
_COMMITTED = """
create table committed (view text, xid xid8 default pg_catalog.pg_current_xact_id(),
                        at timestamptz default pg_catalog.clock_timestamp(), primary key (view, xid));
create sequence begun;
create function note(view text, seconds float8) returns int language plpgsql as $$
  begin
    perform pg_catalog.nextval('public.begun');
    insert into public.committed (view) values ($1);
    perform pg_catalog.pg_sleep(pg_catalog.random() * $2);
    return 1;
  end $$;
create table base (id int);
insert into base values (1), (2);
"""
_NONE_YET = "truncate committed; select pg_catalog.setval('public.begun', 1, false);"
POLICIES = ("ledger", "bare")


async def make_noted_views(database: Database, *names: str, seconds: float = 0) -> None:
    """Make views that note each of their refreshes; one takes up to so many seconds."""
    views = (
        f"create materialized view {name} as select id, noted from base, note('{name}', {seconds}) noted;"
        f"create unique index on {name} (id);"
        for name in names
    )
    await database.execute_as(APP_OWNER, "".join((_COMMITTED, *views, _NONE_YET)))


@asynccontextmanager
async def pair(
    cluster: Cluster, namespace: str, databases: Databases, *, views: Sequence[str] = ("mv",), seconds: float = 0
) -> AsyncIterator[dict[str, Tenant]]:
    """Yield them by their policies' names, each with views that note their refreshes, as `make_noted_views`."""
    async with databases.lend("ledger") as with_ledger, databases.lend("bare") as without:
        tenants = {
            name: Tenant(cluster=cluster, namespace=namespace, database=made)
            for name, made in zip(POLICIES, (with_ledger, without), strict=True)
        }
        for tenant in tenants.values():
            await make_noted_views(tenant.database, *views, seconds=seconds)
        yield tenants
