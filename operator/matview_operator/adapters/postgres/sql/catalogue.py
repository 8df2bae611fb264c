"""Statements that explain: why a view cannot be refreshed, and who stands in the way. None is part of a plain run.

Names that come back are quoted by the server and say their schema, whatever the search path is.
"""

from __future__ import annotations

# What REFRESH of a view reads and as whom: `$1` view OID. `body_as` is whom a relation's own query is run as: an
# ordinary view in between reads as its own owner, a security_invoker view as the materialized view's owner at any
# depth; never through another materialized view, whose rows are there already.
_READ = """
with recursive mv as materialized (
  select c.oid, c.relowner from pg_catalog.pg_class c where c.oid = $1 and c.relkind = 'm'),
src(rel, kind, read_as, body_as) as (
  select mv.oid, 'm'::text, mv.relowner, mv.relowner from mv
 union
  select t.oid, t.relkind::text, s.body_as, case when t.relkind <> 'v' then null
     when coalesce((select o.option_value::boolean from pg_catalog.pg_options_to_table(t.reloptions) o
                    where o.option_name = 'security_invoker'), false) then mv.relowner else t.relowner end
  from src s cross join mv join pg_catalog.pg_rewrite w on w.ev_class = s.rel and w.ev_type = '1'
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
   and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> s.rel
  join pg_catalog.pg_class t on t.oid = d.refobjid and t.relkind in ('r','p','v')
  where s.kind = 'v' or s.rel = mv.oid)
"""

# A materialized view whose owner is subject to row-level security on a table that REFRESH reads. Each row is a hazard.
# A member of the table's owner is exempt without FORCE.
ROW_SECURITY_HAZARDS = (
    _READ
    + """
select distinct pg_catalog.format('%I.%I', n.nspname, t.relname) as relation,
  pg_catalog.quote_ident(r.rolname) as read_as, t.relforcerowsecurity as forced
from src s join pg_catalog.pg_class t on t.oid = s.rel join pg_catalog.pg_namespace n on n.oid = t.relnamespace
join pg_catalog.pg_roles r on r.oid = s.read_as
where s.kind in ('r','p') and t.relrowsecurity and not r.rolsuper and not r.rolbypassrls
  and (t.relforcerowsecurity or not pg_catalog.pg_has_role(s.read_as, t.relowner, 'USAGE'))
order by 1, 2 limit 100
"""
)

# What REFRESH of the view would not be allowed to read or call, and the GRANT that mends it. A relation is needed with
# the columns that a query names, or with any column (count(*)); functions are called as the view's owner, also those
# in ordinary views.
MISSING_PRIVILEGES = (
    _READ  # noqa: S608 - constants only
    + """,
needed as (
  select s.body_as, d.refobjid as rel,
    pg_catalog.array_agg(d.refobjsubid::smallint) filter (where d.refobjsubid <> 0) as columns
  from src s join pg_catalog.pg_rewrite w on w.ev_class = s.rel and w.ev_type = '1'
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
   and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> s.rel
  where s.kind = 'v' or s.rel = $1
  group by s.body_as, d.refobjid),
called as (
  select distinct d.refobjid as function
  from src s join pg_catalog.pg_rewrite w on w.ev_class = s.rel and w.ev_type = '1'
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
   and d.refclassid = 'pg_catalog.pg_proc'::regclass
  where s.kind = 'v' or s.rel = $1)
select pg_catalog.format('%I.%I', n.nspname, t.relname) as object, pg_catalog.quote_ident(r.rolname) as role,
  pg_catalog.format('GRANT SELECT ON %I.%I TO %I;', n.nspname, t.relname, r.rolname) as mend
from needed join pg_catalog.pg_class t on t.oid = needed.rel and t.relkind in ('r','p','v','m','f')
join pg_catalog.pg_namespace n on n.oid = t.relnamespace join pg_catalog.pg_roles r on r.oid = needed.body_as
where not case when needed.columns is null then pg_catalog.has_any_column_privilege(r.oid, t.oid, 'SELECT')
  else (select pg_catalog.bool_and(pg_catalog.has_column_privilege(r.oid, t.oid, c.number, 'SELECT'))
        from pg_catalog.unnest(needed.columns) as c(number)) end
union all
select i.identity, pg_catalog.quote_ident(r.rolname),
  pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %I;', i.identity, r.rolname)
from called cross join mv join pg_catalog.pg_roles r on r.oid = mv.relowner
cross join pg_catalog.pg_identify_object('pg_catalog.pg_proc'::regclass, called.function, 0) as i
where not pg_catalog.has_function_privilege(r.oid, called.function, 'EXECUTE')
order by 1, 2 limit 100
"""
)

# Who holds, or waits for, a lock that REFRESH would have to wait for: $1 view OID, $2 whether it makes readers wait.
# It then wants the view alone; else it gets along with readers. What it reads it only has to be able to read. A
# prepared transaction has no process. Of other roles' sessions a plain role sees nothing but the application's name.
BLOCKERS = (
    _READ  # noqa: S608 - constants only
    + """
select l.pid, a.application_name, a.backend_type, a.state, a.xact_start, l.mode, l.granted,
  case when l.relation <> $1 then pg_catalog.format('%I.%I', n.nspname, c.relname) end as relation
from pg_catalog.pg_locks l join src s on s.rel = l.relation
join pg_catalog.pg_class c on c.oid = l.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.pid is distinct from pg_catalog.pg_backend_pid()
  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
  and case when l.relation = $1 then $2::boolean or l.mode <> 'AccessShareLock' else l.mode = 'AccessExclusiveLock' end
order by l.granted desc, a.xact_start, l.pid limit 10
"""
)

# Who has one of the two advisory locks of a run: $1 view key, $2 the tenant keys. pg_locks shows them unsigned.
LOCK_HOLDERS = """
select l.pid, a.application_name, a.backend_type, a.state, a.xact_start, null as mode, l.granted,
  null as relation
from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.pid is distinct from pg_catalog.pg_backend_pid()
  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
  and l.classid::bigint = $1::bigint & 4294967295
  and l.objid::bigint in (select k & 4294967295 from pg_catalog.unnest($2::bigint[]) as k)
order by a.xact_start, l.pid limit 10
"""

# Schemas of a search path in which every role may put what the functions of views then find. $1 their names.
OPEN_SCHEMAS = """
select pg_catalog.quote_ident(n.nspname) as schema from pg_catalog.pg_namespace n
where n.nspname = any ($1::text[]) and pg_catalog.has_schema_privilege('public', n.oid, 'CREATE') order by 1
"""
