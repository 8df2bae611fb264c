"""The statement by which a run finds its view, and what the ledger says of its slot.

A statement is planned each time that it is sent, so each run's holds no more than the run needs.
"""

from __future__ import annotations

from matview_operator.adapters.postgres.sql.sources import DIRECT_SOURCES

# $1 schema, $2 name. `data_as_of` is not later than the snapshot that REFRESH will see, which under REPEATABLE READ is
# the transaction's. `version` changes with every committed refresh. `sources` are what the view reads, `files` what
# those are stored in; there are more if it reads through views or partitions.
_LOOKUP_COLUMNS = """
select c.oid, pg_catalog.format('%s.%I', c.relnamespace::pg_catalog.regnamespace, c.relname) as quoted,
 c.relkind::text as relkind,
 c.relispopulated as populated,
 pg_catalog.pg_has_role(c.relowner, 'USAGE') or case
   when pg_catalog.current_setting('server_version_num')::int >= 170000
   then pg_catalog.has_table_privilege(c.oid, 'MAINTAIN') else false end as may_refresh,
 exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisunique and i.indimmediate
   and i.indisvalid and i.indpred is null and i.indexprs is null) as usable_index,
 pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE') as may_use_schema,
 c.relnamespace::pg_catalog.regnamespace::text as schema,
 pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) as owner,
 pg_catalog.pg_has_role(c.relowner, 'MEMBER') as is_member,
 pg_catalog.has_database_privilege(c.relowner, pg_catalog.current_database(), 'TEMP') as owner_has_temp,
 pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) as inserted,
 pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) as deleted,
 case when pg_catalog.current_setting('transaction_isolation') = 'repeatable read' then pg_catalog.now()
   else pg_catalog.clock_timestamp() end as data_as_of,
 c.xmin::text as version, s.sources, s.files, s.reads_through"""
_OF_THIS_NAME = """
where c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1) and c.relname = $2
"""

_FROM = (
    """
from pg_catalog.pg_class c cross join lateral ("""
    + DIRECT_SOURCES
    + ") s"
)

LOOKUP = _LOOKUP_COLUMNS + _FROM + _OF_THIS_NAME

# Whether another session uses the view: who waits for it makes every new reader wait behind him. $1 OID.
IN_USE = """
select exists (select from pg_catalog.pg_locks l where l.locktype = 'relation' and l.relation = $1 and l.granted
  and l.pid is distinct from pg_catalog.pg_backend_pid() and l.database = (select d.oid from pg_catalog.pg_database d
    where d.datname = pg_catalog.current_database())) as in_use
"""

# $3 policy UID, $4 slot id, $5 outcomes that were attempts.
_OF_THE_SLOT = """,
 slot.settled_by, slot.earlier_attempts"""
_FROM_SLOT = """ cross join lateral (
  select pg_catalog.max(r.run_id) filter (where r.settles and r.recorded_by = session_user) as settled_by,
    pg_catalog.count(*) filter (where r.outcome = any ($5::text[])) as earlier_attempts
  from matview_ops.refresh_run r where r.policy_uid = $3 and r.view_oid = c.oid and r.slot_id = $4) slot"""

# $6 lock token, $7 the slot in server time.
_COVERED = """,
 (select r.run_id from matview_ops.refresh_run r where r.recorded_by = session_user and r.view_oid = c.oid
   and r.lock_token = $6 and r.outcome = 'SUCCESS'
   and r.data_as_of between $7::timestamptz and pg_catalog.clock_timestamp()
   order by r.data_as_of desc limit 1) as covered_by"""
_NEVER_COVERED = """,
 null::bigint as covered_by"""

# $6 lock token.
_SHARED = """,
 exists (select from matview_ops.refresh_run r where r.recorded_by = session_user and r.view_oid = c.oid
   and r.lock_token <> $6 and r.outcome = 'SUCCESS'
   and r.data_as_of > pg_catalog.clock_timestamp() - interval '24 hours') as shared_with_another"""
_NEVER_SHARED = """,
 false as shared_with_another"""

LOOKUP_WITH_LEDGER = {
    (is_slot, is_alone): _LOOKUP_COLUMNS
    + _OF_THE_SLOT
    + (_COVERED if is_slot else _NEVER_COVERED)
    + (_SHARED if is_alone else _NEVER_SHARED)
    + _FROM
    + _FROM_SLOT
    + _OF_THIS_NAME
    for is_slot in (True, False)
    for is_alone in (True, False)
}
"""By whether it is a slot, which another run may have covered, and whether the view must be this tenant's alone."""
