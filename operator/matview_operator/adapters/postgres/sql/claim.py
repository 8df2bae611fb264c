"""The statements that end a run: what became of the view, and the slot's claim.

Each looks the name up once more, because an owner may have put another relation under it, and compares the files of
what the view reads with those of before REFRESH (see sources.py; no OIDs and no files where that was asked by itself).
If either differs there is no row.
"""

from __future__ import annotations

from matview_operator.adapters.postgres.sql import leftovers

# $1 schema, $2 name, $3 OID; $4 OIDs of what it reads, $5 their files.
_THE_SAME_VIEW = """
  c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1) and c.relname = $2
    and c.oid = $3 and c.relkind = 'm'
    and array(select pg_catalog.pg_relation_filenode(s.rel) from pg_catalog.unnest($4::oid[]) as s(rel)) = $5::oid[]
"""

RECHECK = (
    """
select"""  # noqa: S608 - constants only
    + leftovers.LOCKS
    + """,
 pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) as inserted,
 pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) as deleted,
 pg_catalog.current_setting('track_counts')::boolean as counted,
 case when c.reltuples >= 0 then c.reltuples::bigint end as estimated_rows,
 pg_catalog.pg_total_relation_size(c.oid) as size_bytes,
 pg_catalog.pg_current_xact_id()::text as xid,
 (select s.system_identifier from pg_catalog.pg_control_system() s) as system_identifier,
 (select p.timeline_id from pg_catalog.pg_control_checkpoint() p) as timeline
from pg_catalog.pg_class c where"""
    + _THE_SAME_VIEW
)

# The same, and the claim: the unique key over settled runs makes the slot's work exactly once. No row either if the
# slot was settled meanwhile.
RECHECK_AND_CLAIM = (
    """
with claim as (
  insert into matview_ops.refresh_run (policy_uid, view_oid, view_name, slot_id, due_at, attempt, outcome, lock_token,
    data_as_of, mode, rows_inserted, rows_deleted, rows_total, reason, correlation_id)
  select $8, c.oid, $9, $10, $11, $12, 'SUCCESS', $13, $14, $15,
    case when pg_catalog.current_setting('track_counts')::boolean
      then pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) - $6::bigint end,
    case when pg_catalog.current_setting('track_counts')::boolean and $15 = 'Concurrent'
      then pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) - $7::bigint end,
    case when pg_catalog.current_setting('track_counts')::boolean and $15 = 'Blocking'
      then pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) - $6::bigint end, $16, $17
  from pg_catalog.pg_class c where"""  # noqa: S608 - constants only
    + _THE_SAME_VIEW
    + """
  on conflict (recorded_by, policy_uid, view_oid, slot_id) where settles do nothing
  returning run_id,
    pg_catalog.pg_stat_get_xact_tuples_inserted(view_oid) as inserted,
    pg_catalog.pg_stat_get_xact_tuples_deleted(view_oid) as deleted,
    pg_catalog.current_setting('track_counts')::boolean as counted,
    (select case when c.reltuples >= 0 then c.reltuples::bigint end from pg_catalog.pg_class c where c.oid = view_oid)
      as estimated_rows,
    pg_catalog.pg_total_relation_size(view_oid) as size_bytes,
    pg_catalog.pg_current_xact_id()::text as xid,"""
    + leftovers.LOCKS
    + """
)
select claim.* from claim
"""
)
