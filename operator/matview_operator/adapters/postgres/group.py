"""What makes the views of a consistent group agree: one snapshot, their order, and proof that nobody came between.

Why REPEATABLE READ alone is not enough. Its snapshot is taken by the first statement, which is the one that takes the
locks, so another refresh may commit a view after the snapshot and before our lock on it; somebody's REFRESH by hand
takes no lock of ours at all, and may do so until our own REFRESH of that view, perhaps minutes later. REFRESH …
CONCURRENTLY then compares rows that the snapshot sees with rows that the snapshot sees: rows that the other one added
are in neither, and stay. Where it would delete or add the same rows, PostgreSQL says 40001 or 23505; where it would
not, it says nothing, and the view holds newer rows than the others (seen on 15, 16 and 18).

So we look ourselves. Every REFRESH, in both modes, replaces the view's row in pg_class. After our own REFRESHes, whose
locks let nobody else refresh the views until we commit, the row that our snapshot sees must have been replaced by us:
then nobody did so between the snapshot and our lock. Else ROLLBACK, and again with a new snapshot. An ALTER or GRANT in
between looks the same, and costs one more try. This also makes up for what a stale snapshot may have missed in the
ledger; the claim, whose unique index knows no snapshots, answers 40001 then.
"""

from __future__ import annotations

from collections.abc import Sequence

from matview_operator.adapters.postgres.overtaking import Overtaken
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import group as group_queries
from matview_operator.adapters.postgres.work import Job, Work, row_of
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.dependencies import InvalidDependencies, dependency_order
from matview_operator.domain.errors import Problem


def in_lock_order(job: Job) -> list[Work]:
    """The same for everybody: of two groups with the same views, one gets all locks, and not each a part."""
    return sorted(job.works, key=lambda work: work.run.view)


async def in_order(job: Job, session: Session) -> list[Work]:
    """Each view after those of the group that it reads: a view sees what its transaction did before. Raises Problem."""
    names = {row_of(work).oid: work.run.view for work in job.works}
    works = {work.run.view: work for work in job.works}
    reads = {view: works.keys() & work.run.depends_on for view, work in works.items()}
    for row in await session.rows(group_queries.READS, [*names]):
        reads[names[row.view]].add(names[row.reads])
    try:
        return [works[view] for view in dependency_order(reads)]
    except InvalidDependencies as error:
        raise Problem(RefreshReason.INVALID_SPEC, str(error)) from None


async def watch(job: Job, session: Session) -> None:
    """Before the first REFRESH: keep sight of what the snapshot sees."""
    await session.rows(group_queries.WATCH, _oids(job))


async def share_time(job: Job, session: Session) -> None:
    """Before each REFRESH: the server's own timeout is to come before ours, so that the failure can be recorded."""
    await session.rows(group_queries.TIME_LEFT, max(1, round(job.remaining() * 1000)))


async def check_watched(job: Job, session: Session) -> None:
    """After the last REFRESH: raises Overtaken if somebody else refreshed a view since the snapshot."""
    ours = {row.oid: row.ours for row in await session.rows(group_queries.WATCHED)}
    overtaken = [str(work.run.view) for work in job.works if not ours.get(row_of(work).oid)]
    if overtaken:
        raise Overtaken(", ".join(overtaken))


def _oids(job: Job) -> Sequence[int]:
    return [row_of(work).oid for work in job.works]
