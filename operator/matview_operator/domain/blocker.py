"""Who stands in a refresh's way, in words. Never what he runs: a query holds rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.text import shown

_SHOWN = 3
_APPLICATION_BYTES = 63
"""The server keeps no more; whoever poses as one may send anything."""
_RELATION_BYTES = 130
_WORDS = {
    "AccessShareLock": "reads",
    "RowShareLock": "reads",
    "RowExclusiveLock": "writes",
    "ShareUpdateExclusiveLock": "VACUUM, ANALYZE or an index being built",
    "ShareLock": "an index being built",
    "ExclusiveLock": "another refresh",
    "AccessExclusiveLock": "keeps everybody out",
}
_AUTOVACUUM = "autovacuum worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """One session with a lock, as the operator's role may see it."""

    pid: int | None
    """Of the server's process; None for a prepared transaction, which has none."""
    application: str | None
    """What the session calls itself; anybody can call himself anything."""
    kind: str | None
    """The kind of process; None where the role may not see it."""
    state: str | None
    since: datetime | None
    """When its transaction began; None where the role may not see it."""
    lock: str | None
    """Its mode; None for an advisory lock, where it says nothing."""
    granted: bool
    relation: str | None = None
    """What it has the lock on, quoted, if it is not the view itself."""

    def __str__(self) -> str:
        who = "a prepared transaction" if self.pid is None else f"pid {self.pid}"
        if self.kind == _AUTOVACUUM:
            who += " (autovacuum)"
        elif self.application:
            who += f' "{shown(self.application, size=_APPLICATION_BYTES)}"'
        doing = [] if self.state is None else [shown(self.state, size=_APPLICATION_BYTES)]
        if self.since is not None:
            doing.append(f"since {self.since:%Y-%m-%dT%H:%M:%SZ}")
        word = _WORDS.get(self.lock or "")
        if word is not None:
            doing.append(word if self.granted else f"waits: {word}")
        if self.relation is not None:
            doing.append(f"on {shown(self.relation, size=_RELATION_BYTES)}")
        return f"{who} ({', '.join(doing)})" if doing else who


def lock_timeout_problem(problem: Problem, blockers: Sequence[Blocker], *, wants_index: bool) -> Problem:
    """Say who kept the refresh waiting; they are asked for after it gave up, and may have gone.

    `wants_index`: it had to wait for readers only because the view has no unique index.
    """
    who = f"In the way: {_named(blockers)}." if blockers else "Nobody is in the way any more."
    advice = " With a unique index on the view, readers and refreshes would not wait for each other."
    return Problem(
        problem.reason, f"{problem.message}. {who}{advice if wants_index else ''}", sqlstate=problem.sqlstate
    )


def lock_held_problem(holders: Sequence[Blocker]) -> Problem:
    """Say who has the lock that keeps two refreshes apart."""
    who = f": {_named(holders)}" if holders else ""
    return Problem(RefreshReason.LOCK_HELD, f"Another session holds the view's refresh lock{who}.")


def _named(blockers: Sequence[Blocker]) -> str:
    more = f" and {len(blockers) - _SHOWN} more" if len(blockers) > _SHOWN else ""
    return "; ".join(str(blocker) for blocker in blockers[:_SHOWN]) + more
