"""What a view's query may leave in the session when its transaction is committed: see pool.py."""

from __future__ import annotations


def left_behind(*, locks: int, sequences: int) -> str:
    """An expression: whether more advisory locks and sequences are in use in this transaction than so many of ours.

    A sequence that was asked for a value is locked until the transaction ends. A view that locks its own view's keys
    once more is not noticed: who suffers is that view alone.
    """
    return f"""
 (select pg_catalog.count(*) filter (where l.locktype = 'advisory') > {locks}
    or pg_catalog.count(*) filter (where q.relkind = 'S') > {sequences}
  from pg_catalog.pg_locks l left join pg_catalog.pg_class q on q.oid = l.relation
  where l.pid = pg_catalog.pg_backend_pid())"""  # noqa: S608 - numbers of ours


LEFT_BEHIND = "select" + left_behind(locks=0, sequences=0) + " as left_behind"
