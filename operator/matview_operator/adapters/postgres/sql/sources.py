"""What a materialized view reads, and whether it read all of it."""

from __future__ import annotations

# For use within the lookup, where `c` is the view's row of pg_class: the tables and materialized views that it reads,
# the files that they are stored in, and whether there is more behind them. Planned for each run, so no more than this.
DIRECT_SOURCES = """
  select pg_catalog.array_agg(t.oid) filter (where t.relfilenode <> 0) as sources,
    pg_catalog.array_agg(t.relfilenode) filter (where t.relfilenode <> 0) as files,
    pg_catalog.bool_or(t.relkind in ('p', 'v') or t.relhassubclass) as reads_through
  from pg_catalog.pg_rewrite w
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
   and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> c.oid
  join pg_catalog.pg_class t on t.oid = d.refobjid and t.relkind in ('r', 'p', 'v', 'm')
  where w.ev_class = c.oid and w.ev_type = '1'
"""

# The same through ordinary views, and with partitions and tables that inherit. $1 OID of the view.
SOURCES = """
with recursive src(rel, kind) as (
  select $1::oid, 'v'::text
 union
  select found.rel, found.kind from src cross join lateral (
    select t.oid, t.relkind::text
    from pg_catalog.pg_rewrite w
    join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
     and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> src.rel
    join pg_catalog.pg_class t on t.oid = d.refobjid and t.relkind in ('r', 'p', 'v', 'm')
    where w.ev_class = src.rel and w.ev_type = '1' and src.kind = 'v'
   union all
    select i.inhrelid, 'r' from pg_catalog.pg_inherits i where i.inhparent = src.rel and src.kind in ('r', 'p')
  ) as found(rel, kind)
)
select pg_catalog.array_agg(t.oid) as sources, pg_catalog.array_agg(t.relfilenode) as files
from src join pg_catalog.pg_class t on t.oid = src.rel where src.kind <> 'v' and t.relfilenode <> 0
"""

# The step of a recursive `reads(view, rel, kind)` that begins with the views themselves, of kind 'start': which
# materialized views they read, through ordinary views too.
VIEWS_READ = """
  select reads.view, t.oid, t.relkind::text
  from reads join pg_catalog.pg_rewrite w on w.ev_class = reads.rel and w.ev_type = '1'
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
   and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> reads.rel
  join pg_catalog.pg_class t on t.oid = d.refobjid and t.relkind in ('m', 'v')
  where reads.kind in ('start', 'v')
"""

# $1 OIDs.
FILES = """
select array(select pg_catalog.pg_relation_filenode(s.rel) from pg_catalog.unnest($1::oid[]) as s(rel)) as files
"""

# Sources whose rows went into another file before REFRESH locked them: they are not to be seen at its snapshot. What it
# has not locked, it has not read, as a partition that its plan leaves out. $1 OIDs, $2 files.
REWRITTEN = """
select s.rel::pg_catalog.regclass::text as relation
from rows from (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::oid[])) as s(rel, file)
where case when s.file is distinct from pg_catalog.pg_relation_filenode(s.rel) then exists (
  select from pg_catalog.pg_locks l where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and l.granted
    and l.relation = s.rel) else false end
order by 1
"""

# Which of these materialized views read which others of them, through ordinary views too. $1 schemas, $2 names.
MANAGED_READS = (
    """
with recursive managed as materialized (
  select c.oid, n.nspname, c.relname
  from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) as m(schema, name)
  join pg_catalog.pg_namespace n on n.nspname = m.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = m.name and c.relkind = 'm'
), reads(view, rel, kind) as (
  select managed.oid, managed.oid, 'start'::text from managed
 union"""  # noqa: S608 - constants only
    + VIEWS_READ
    + """)
select a.nspname::text as schema, a.relname::text as name, b.nspname::text as other_schema, b.relname::text as other
from reads join managed a on a.oid = reads.view join managed b on b.oid = reads.rel where reads.kind = 'm'
"""
)
