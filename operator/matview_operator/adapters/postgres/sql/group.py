"""The statements that only a consistent group needs."""

from __future__ import annotations

from matview_operator.adapters.postgres.sql.sources import VIEWS_READ

# Which views of the group read each other, through ordinary views too. $1 OIDs.
READS = (
    """
with recursive reads(view, rel, kind) as (
  select g.oid, g.oid, 'start'::text from pg_catalog.unnest($1::oid[]) as g(oid)
 union"""  # noqa: S608 - constants only
    + VIEWS_READ
    + """)
select reads.view, reads.rel as reads from reads where reads.kind = 'm' and reads.rel = any ($1::oid[])
"""
)

# $1 milliseconds.
TIME_LEFT = "select pg_catalog.set_config('statement_timeout', $1::int::text, true)"

# The row of pg_class that the snapshot sees, whose xmax is read when it is fetched: who put a newer one in its place.
# A cursor, because after our own REFRESH a new query would see the newer row only. $1 OIDs.
WATCH = """
declare matview_group no scroll cursor for
select c.oid, c.xmax = pg_catalog.pg_current_xact_id()::xid as ours
from pg_catalog.pg_class c where c.oid = any ($1::oid[])
"""
WATCHED = "fetch all from matview_group"

# $1 OIDs. `version` as in the lookup.
VERSIONS = "select c.oid, c.xmin::text as version from pg_catalog.pg_class c where c.oid = any ($1::oid[])"
