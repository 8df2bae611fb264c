"""What a view's query may leave in the session when its transaction is committed: see pool.py."""

from __future__ import annotations

DISCARD_SEQUENCES = "discard sequences"

# Advisory locks of the session, which it keeps beyond COMMIT; a run's own are the transaction's. Whether the session is
# ours alone is asked by a parameter: behind a pooler they may be somebody else's.
UNLOCK = "select pg_catalog.pg_advisory_unlock_all()"
