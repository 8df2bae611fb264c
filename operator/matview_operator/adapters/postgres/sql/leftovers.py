"""What a view's query may leave in the session when its transaction is committed: see pool.py."""

from __future__ import annotations

# How many advisory locks and sequences are in use in this transaction, as text: to read an array of numbers, the driver
# would ask the catalogue first. A sequence that was asked for a value is locked until the transaction ends, and in this
# mode, which leaves few relations to look up. A view that locks its own view's keys once more is not noticed: who
# suffers is that view.
IN_USE = """
 (select pg_catalog.concat_ws(' ', pg_catalog.count(*) filter (where l.locktype = 'advisory'),
    pg_catalog.count(*) filter (where case when l.locktype = 'relation' and l.mode = 'RowExclusiveLock' then
      (select q.relkind from pg_catalog.pg_class q where q.oid = l.relation) = 'S' end))
  from pg_catalog.pg_locks l where l.pid = pg_catalog.pg_backend_pid()) as in_use"""

ASK_IN_USE = "select" + IN_USE
