"""Statements about the ledger as a table: whether it may be trusted, and how old rows leave it."""

from __future__ import annotations

# What keeps matview_ops.refresh_run (c) from being used, or null. Who owns it could have code run as our role, by
# whatever PostgreSQL evaluates on INSERT or SELECT; or make it forget, so that a slot runs twice. Objects that come
# with PostgreSQL are pinned and leave no dependency, so any dependency on a function, type, operator or operator class
# is on a foreign one, whatever its name and whatever the search_path. Of PostgreSQL's own functions only the ledger's
# are let in, int2(), octet_length() and clock_timestamp(): query_to_xml() would execute any text.
LEDGER_FLAW = """
case
  when c.relkind <> 'r' then 'it is no ordinary table'
  when c.relpersistence <> 'p' then 'it is unlogged, so that a crash would empty it'
  when c.relhassubclass or c.relispartition then 'it has children or a parent'
  when c.relrowsecurity then 'it is under row-level security'
  when c.relhastriggers then 'it has, or had since its last VACUUM, a trigger or a foreign key'
  when c.relhasrules then 'it has, or had since its last VACUUM, a rule'
  when exists (select from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.atttypid >= 16384)
    then 'a column of it is of a type that is not PostgreSQL''s'
  when exists (
    select from pg_catalog.pg_depend part
    join pg_catalog.pg_depend d on d.classid = part.classid and d.objid = part.objid
    where part.refclassid = 1259 and part.refobjid = c.oid and part.classid in (1259, 2604, 2606)
      and d.refclassid in (1247, 1255, 2616, 2617)
  ) then 'a default, constraint or index of it uses a function, type or operator that is not PostgreSQL''s'
  when exists (select from pg_catalog.pg_attrdef e
               where e.adrelid = c.oid and e.adbin::text ~ ':funcid (?!(314|1374|2649) )')
    or exists (select from pg_catalog.pg_constraint k
               where k.conrelid = c.oid and k.conbin::text ~ ':funcid (?!(314|1374|2649) )')
    then 'a default or constraint of it calls a function that the ledger has no need of'
  when not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indkey = '2 3 4 6' and i.indisunique
                   and i.indisvalid and i.indimmediate and i.indpred::text like '{VAR %')
    then 'its unique index refresh_run_settled is gone'
end"""


# The same for the function prune(interval), which runs as the ledger's owner, and whose DELETE fires nothing because
# the ledger has no triggers. A function of an owner's own could queue a deferred trigger, which before PostgreSQL 18
# fires as our role. Its body may read and write the ledger, and call now() and count(*). 1186 is the type interval.
PRUNE_FLAW = """
select case
  when not pg_catalog.has_function_privilege(p.oid, 'EXECUTE') then 'the role may not execute it'
  when not p.prosecdef or p.prosqlbody is null or p.proconfig is distinct from '{"search_path=pg_catalog, pg_temp"}'
    or p.prosqlbody::text ~ ':(funcid|aggfnoid) (?!(1299|2803) )'
    or exists (
      select from pg_catalog.pg_depend d
      where d.classid = 1255 and d.objid = p.oid and d.refclassid in (1247, 1255, 1259, 2616, 2617)
        and not (d.refclassid = 1259 and d.refobjid = (
          select c.oid from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = 'refresh_run'))
    ) then 'it is not as migrate makes it, and could run somebody''s code'
  end as flaw
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'matview_ops' and p.proname = 'prune' and p.proargtypes = '1186'
"""

PRUNE = "select matview_ops.prune($1) as deleted"

# By the index on finished_at; rows of other roles are passed over.
OLDEST_AGE = """
select extract(epoch from pg_catalog.now() - r.finished_at) / 86400 as days
from matview_ops.refresh_run r where r.recorded_by = session_user order by r.finished_at limit 1
"""
