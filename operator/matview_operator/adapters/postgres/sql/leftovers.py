"""What a view's query may leave in the session when its transaction is committed: see pool.py."""

from __future__ import annotations

DISCARD_SEQUENCES = "discard sequences"

# How many advisory locks the session has; at a run's end its own, which are the transaction's, and those of the session
# that its view's query took, which it keeps beyond COMMIT. A view that locks its own view's keys once more is not
# noticed: who suffers is that view.
LOCKS = """
 (select pg_catalog.count(*) from pg_catalog.pg_locks l
  where l.locktype = 'advisory' and l.pid = pg_catalog.pg_backend_pid()) as locks"""

ASK_LOCKS = "select" + LOCKS
