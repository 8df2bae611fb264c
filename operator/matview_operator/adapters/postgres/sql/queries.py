"""Every statement that the operator sends. Names of views come from the server, quoted by it; all else is a parameter.

All run by the extended protocol, which takes one statement at a time.
"""

from __future__ import annotations

from typing import NewType, assert_never

import asyncpg

from matview_operator.adapters.postgres.sql.ledger import LEDGER_FLAW, PRUNE
from matview_operator.adapters.postgres.sql.sources import VIEWS_READ
from matview_operator.api.outcome import RefreshMode

QuotedName = NewType("QuotedName", str)
"""`format('%I.%I')` of the server."""

# One round trip at the start of a connection: who and what we talk to, whether the ledger can be used, and the clock.
# pg_catalog is asked instead of to_regclass(), which fails without USAGE on the schema.
SERVER = (
    """
select pg_catalog.current_setting('server_version') as version,
       pg_catalog.current_setting('server_version_num')::int as version_num,
       pg_catalog.current_database() as database,
       current_user as role,
       pg_catalog.quote_ident(current_user) as quoted_role,
       pg_catalog.quote_ident(pg_catalog.current_database()) as quoted_database,
       (select r.rolinherit from pg_catalog.pg_roles r where r.rolname = current_user) as inherits,
       (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) as superuser,
       pg_catalog.pg_is_in_recovery() as in_recovery,
       coalesce((select case
           when not pg_catalog.has_schema_privilege(n.oid, 'USAGE')
             or not pg_catalog.has_table_privilege(c.oid, 'SELECT') then 'Forbidden'
           when (select pg_catalog.count(*) from pg_catalog.pg_attribute a
                 where a.attrelid = c.oid and not a.attisdropped and a.attname = any ($1::text[])
                   and (a.attname = any ($2::text[]) or pg_catalog.has_column_privilege(c.oid, a.attnum, 'INSERT')))
                < pg_catalog.cardinality($1::text[]) then 'Outdated'
           else coalesce('Flawed: ' || """  # noqa: S608 - constants only
    + LEDGER_FLAW
    + """, 'Installed') end
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'matview_ops' and c.relname = 'refresh_run'), 'Missing') as bookkeeping,
       pg_catalog.pg_postmaster_start_time() as started_at,
       pg_catalog.pg_backend_pid() as backend_pid,
       pg_catalog.clock_timestamp() as now
"""
)

CLOCK = "select pg_catalog.clock_timestamp() as now"

IDENTITY = """
select (select s.system_identifier from pg_catalog.pg_control_system() s) as system_identifier,
       (select c.timeline_id from pg_catalog.pg_control_checkpoint() c) as timeline
"""

LEDGER_WRITTEN = [
    "policy_uid",
    "view_oid",
    "view_name",
    "slot_id",
    "due_at",
    "attempt",
    "outcome",
    "lock_token",
    "data_as_of",
    "mode",
    "rows_inserted",
    "rows_deleted",
    "rows_total",
    "reason",
    "sqlstate",
    "message",
    "correlation_id",
]
LEDGER_GENERATED = ["run_id", "recorded_by", "settles", "finished_at"]

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a statement can raise besides OSError and TimeoutError. The last when a backend ended while we were not asking
it anything."""

BEGIN = "begin isolation level read committed read write"
BEGIN_AT_ONE_SNAPSHOT = "begin isolation level repeatable read read write"
COMMIT = "commit"
ROLLBACK = "rollback"
RESET = "discard all"
ASK = "start transaction isolation level read committed read only"

# Command tags, by which a server says that it has done what was sent ahead.
BEGUN, DISCARDED, ONE_ROW, REFRESHED = "BEGIN", "DISCARD SEQUENCES", "SELECT 1", "REFRESH MATERIALIZED VIEW"

# Before any other statement of a transaction, but for SETTINGS: who owns the database can give every session a
# search_path by which `=` is an operator of his own, whose function would run as our role. Local, for behind a pooler
# others get the session.
PATH = "set local search_path = pg_catalog, pg_temp"

# A run's first statement after BEGIN. It is parsed before it makes the search path safe itself, so it says the schema
# of each operator, function and type.
# The settings first, the locks last: a select list is evaluated from left to right. Both locks in one statement, and
# before anything is read under them: a later statement's snapshot sees what the former holder committed.
# The seed: else random() in a view's query would go on where an earlier view's setseed() left it in this session.
# With quote_all_identifiers on, PostgreSQL's own statements of REFRESH CONCURRENTLY have a syntax error (15 and 18).
# transaction_timeout ends the session, so it comes a little later; set to the same time it would replace
# statement_timeout, which leaves a session in which the failure can be recorded.
_SETTINGS = """
select pg_catalog.set_config('statement_timeout', $1::int::pg_catalog.text, true),
       pg_catalog.set_config('lock_timeout', coalesce($2, ((extract(epoch from
         pg_catalog.current_setting('deadlock_timeout')::interval) operator(pg_catalog.*) 1000)
         operator(pg_catalog.+) 500)::int::pg_catalog.text), true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', '10000', true),
       pg_catalog.set_config('client_min_messages', 'error', true),
       pg_catalog.set_config('tcp_keepalives_idle', '10', true),
       pg_catalog.set_config('tcp_keepalives_interval', '5', true),
       pg_catalog.set_config('tcp_keepalives_count', '3', true),
       pg_catalog.set_config('client_connection_check_interval', '500', true),
       case when pg_catalog.current_setting('server_version_num')::int operator(pg_catalog.>=) 170000
         then pg_catalog.set_config('transaction_timeout',
           ($1::int operator(pg_catalog.+) 500)::pg_catalog.text, true) end,
       pg_catalog.set_config('row_security', $3, true),
       pg_catalog.set_config('quote_all_identifiers', 'off', true),
       pg_catalog.set_config('app.execution_context', 'worker', true),
       coalesce(pg_catalog.current_setting($4, true), '') as leaked_setting,
       case when $5::pg_catalog.text is not null then pg_catalog.set_config($4, $5, true) end,
       pg_catalog.setseed($9),
       """
_LOCKS = """
       pg_catalog.pg_try_advisory_xact_lock($6::int, $7::int)::pg_catalog.text as own_lock,
       pg_catalog.pg_try_advisory_xact_lock($6::int, $8::int)::pg_catalog.text as global_lock
"""

SETTINGS_AND_LOCKS = _SETTINGS + "pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)," + _LOCKS

# The same, $10 being the schemas that functions of the views may leave out.
SETTINGS_WITH_SEARCH_PATH_AND_LOCKS = (
    _SETTINGS  # noqa: S608 - constants only
    + """
       pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'pg_catalog',
         (select pg_catalog.string_agg(pg_catalog.quote_ident(s.name), ', ' order by s.place)
          from pg_catalog.unnest($10::pg_catalog.text[]) with ordinality as s(name, place)), 'pg_temp'), true),"""
    + _LOCKS
)

LEDGER_ROW = """
select r.data_as_of, r.finished_at, r.mode, r.rows_inserted, r.rows_deleted, r.rows_total, r.correlation_id, r.attempt
from matview_ops.refresh_run r where r.run_id = $1
"""

RECORD_FAILURE = """
insert into matview_ops.refresh_run (policy_uid, view_oid, view_name, slot_id, due_at, attempt, outcome, lock_token,
  data_as_of, mode, reason, sqlstate, message, correlation_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, pg_catalog.clock_timestamp()), $10, $11, $12, $13, $14)
"""

SETTLED_BY = """
select r.run_id from matview_ops.refresh_run r where r.recorded_by = session_user and r.policy_uid = $1
  and r.view_oid = $2 and r.slot_id = $3 and r.settles and r.correlation_id = $4
"""

XACT_STATUS = "select pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8) as status"

PATHLESS = frozenset(
    {
        ASK,
        BEGIN,
        BEGIN_AT_ONE_SNAPSHOT,
        PATH,
        ROLLBACK,
        RESET,
        CLOCK,
        IDENTITY,
        XACT_STATUS,
        PRUNE,
        RECORD_FAILURE,
    }
)
"""Mean the same under every search_path: no operator, and no name of a function or type without its schema."""

# Every materialized view that the role may refresh, and the ones it reads, through ordinary views too: `reads` those
# that are among them, `reads_besides` those that the role may not refresh.
REFRESHABLE_VIEWS = (
    """
with recursive mine as materialized (
  select c.oid, n.nspname, c.relname
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind = 'm' and c.relpersistence <> 't'
    and (pg_catalog.pg_has_role(c.relowner, 'USAGE') or case
      when pg_catalog.current_setting('server_version_num')::int >= 170000
      then pg_catalog.has_table_privilege(c.oid, 'MAINTAIN') else false end)
), reads(view, rel, kind) as (
  select mine.oid, mine.oid, 'start'::text from mine
 union"""  # noqa: S608 - constants only
    + VIEWS_READ
    + """)
select mine.nspname::text as schema, mine.relname::text as name, mine.oid,
  array(select reads.rel from reads join mine other on other.oid = reads.rel
        where reads.view = mine.oid and reads.kind = 'm') as reads,
  array(select reads.rel::pg_catalog.regclass::text from reads left join mine other on other.oid = reads.rel
        where reads.view = mine.oid and reads.kind = 'm' and other.oid is null) as reads_besides
from mine order by mine.nspname, mine.relname
"""
)

ANALYZE_TARGET = """
select pg_catalog.format('%I.%I', n.nspname, c.relname) as quoted,
  pg_catalog.set_config('statement_timeout', $2, true), pg_catalog.set_config('lock_timeout', '1000', true),
  pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = $1 and c.relkind = 'm'
"""


def refresh(view: QuotedName, mode: RefreshMode) -> str:
    """The one REFRESH of the code base."""
    match mode:
        case RefreshMode.CONCURRENT:
            return "refresh materialized view concurrently " + view
        case RefreshMode.BLOCKING:
            return "refresh materialized view " + view
        case _:
            assert_never(mode)


def analyze(view: QuotedName) -> str:
    """ANALYZE of the view that was refreshed, and of nothing else."""
    return "analyze " + view
