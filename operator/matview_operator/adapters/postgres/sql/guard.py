"""What a guard asks of the server. As in queries.py: names come from the server, quoted by it."""

from __future__ import annotations

from typing import NewType

from matview_operator.adapters.postgres.sql.queries import QuotedName

QuotedColumn = NewType("QuotedColumn", str)
QuotedType = NewType("QuotedType", str)

SAVEPOINT = "savepoint matview_guard"
BACK = "rollback to savepoint matview_guard"
RELEASE = "release savepoint matview_guard"

# Who may read the view, and what the keepTenants column is. A domain is what it is made of: comparing its values runs
# nobody's function; a type of somebody's own could. $1 view OID, $2 column or null.
READABLE = """
select pg_catalog.has_any_column_privilege(c.oid, 'SELECT') as may_read,
  pg_catalog.current_setting('track_counts')::boolean as counted,
  a.attnum is not null as column_exists,
  coalesce(pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'), false) as may_read_column,
  pg_catalog.quote_ident(a.attname) as column,
  pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name,
  (with recursive made_of(oid, typname, typtype, typbasetype) as (
     select t.oid, t.typname, t.typtype, t.typbasetype from pg_catalog.pg_type t where t.oid = a.atttypid
    union all
     select t.oid, t.typname, t.typtype, t.typbasetype
     from made_of m join pg_catalog.pg_type t on t.oid = m.typbasetype where m.typtype = 'd')
   select pg_catalog.format('pg_catalog.%I', m.typname) from made_of m
   where m.oid = any (array['uuid', 'text', 'varchar', 'bpchar', 'name', 'int2', 'int4', 'int8', 'numeric']
     ::pg_catalog.regtype[]::pg_catalog.oid[])) as base_type
from pg_catalog.pg_class c
  left join pg_catalog.pg_attribute a
    on a.attrelid = c.oid and a.attname = $2::text and a.attnum > 0 and not a.attisdropped
where c.oid = $1
"""

# Sent when the read that follows has been parsed, and so holds a lock on whatever had the name. The settings are the
# second net, for a schema that is renamed meanwhile, which no lock prevents: no ordinary view, foreign table or row
# policy is read, and what runs nevertheless (an owner's function in an index, while the read is planned) cannot write.
# restrict_nonsystem_relation_kind came with 15.8 and 16.4. A consistent group's snapshot sees the catalogue as it was,
# to_regclass() sees it as it is. $1 schema, $2 name, $3 OID.
SAME_VIEW = """
select pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) as inserted,
  pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) as deleted,
  pg_catalog.set_config('transaction_read_only', 'on', true),
  pg_catalog.set_config('row_security', 'off', true),
  pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
  case when pg_catalog.current_setting('restrict_nonsystem_relation_kind', true) is not null
    then pg_catalog.set_config('restrict_nonsystem_relation_kind', 'view, foreign-table', true) end
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and c.oid = $3 and c.relkind = 'm'
  and pg_catalog.to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) = c.oid
"""


def count_rows(view: QuotedName) -> str:
    """How many rows the view has."""
    return "select pg_catalog.count(*) as rows from " + view  # noqa: S608 - the server quoted it


def list_tenants(view: QuotedName, column: QuotedColumn) -> str:
    """How many rows, how many values, the longest one; and with it one value in each row of the answer, unless they are
    too many ($1) or too long ($2).

    NULL is not a value.
    """
    return _grouped(view, column) + _LIST


def count_lost_tenants(view: QuotedName, column: QuotedColumn, type_name: QuotedType) -> str:
    """How many rows, and how many of the values of before ($1) are gone, compared as the column's own type does."""
    return _grouped(view, column) + _COUNT_LOST[0] + type_name + _COUNT_LOST[1]


def _grouped(view: QuotedName, column: QuotedColumn) -> str:
    """One pass over the view serves the count and the values."""
    return _GROUPED[0] + column + _GROUPED[1] + view + _GROUPED[2]


_GROUPED = ("with tenants(tenant, rows) as materialized (select v.", ", pg_catalog.count(*) from ", " v group by 1)")
_LIST = """
, found as (select coalesce(pg_catalog.sum(t.rows), 0)::bigint as rows, pg_catalog.count(t.tenant) as tenants,
    coalesce(pg_catalog.max(pg_catalog.octet_length(t.tenant::text)), 0) as longest from tenants t)
select f.rows, f.tenants, f.longest, t.tenant::text as kept
from found f left join tenants t on t.tenant is not null and f.tenants <= $1::bigint and f.longest <= $2::bigint
"""
_COUNT_LOST = (
    """
select (select coalesce(pg_catalog.sum(t.rows), 0)::bigint from tenants t) as rows,
  (select pg_catalog.count(*) from (select kept.value::""",
    """ from pg_catalog.unnest($1::text[]) as kept(value) except select t.tenant from tenants t) lost) as lost
""",
)
