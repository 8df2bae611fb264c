"""Others who change, while a job is at work, what its snapshot cannot show; and starting again with a new one.

REFRESH takes its snapshot before it locks the tables that it reads. If another transaction empties a table and fills it
again, as nightly loads do (BEGIN; TRUNCATE; INSERT; COMMIT), REFRESH waits for it and then sees neither the old rows,
which are gone from the table's new file, nor the new ones, which its snapshot does not know: the view is emptied, and
REFRESH succeeds (seen on 15, 16 and 18, in both modes). TRUNCATE is not alone: an ALTER TABLE that rewrites and a
blocking REFRESH of a view that this one reads are not MVCC-safe either.

So the files of what a view reads are looked up before REFRESH, and compared after it, when its locks let nobody change
them any more. A table that it has not locked, it has not read, as a partition that its plan leaves out.
"""

from __future__ import annotations

import asyncio
import logging
import random

import asyncpg

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import group as group_queries
from matview_operator.adapters.postgres.sql import sources as source_queries
from matview_operator.adapters.postgres.wire.authentication import Row
from matview_operator.adapters.postgres.work import Job, Work, row_of
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import MatviewError, Problem

log = logging.getLogger(__name__)

TRIES = 5
"""How many snapshots a job takes at most."""
_PAUSE_SECONDS = (0.05, 0.3)

_DUPLICATE_KEY = "23505"
_LOST_RACES = frozenset({_DUPLICATE_KEY, "40001", "40P01"})


class Overtaken(MatviewError):
    """Somebody else has changed what the snapshot should have shown. The text names the relations."""


async def note_sources(work: Work, session: Session) -> None:
    """Before REFRESH of a view: note which files hold what it reads."""
    found: Row | None = row_of(work)
    if found is not None and found.reads_through:
        found = await session.row(source_queries.SOURCES, found.oid)
    if found is not None:
        work.files = dict(zip(found.sources or (), found.files or (), strict=True))


async def check_sources(work: Work, session: Session) -> None:
    """After REFRESH of a view: raises Overtaken if it read a table that was rewritten after the snapshot.

    The claim need not compare the files again.
    """
    # What the group itself has refreshed it sees as it is.
    own = {each.found.oid for each in work.job.works if each.found is not None}
    files = {rel: file for rel, file in work.files.items() if rel not in own}
    work.files = {}
    now = await session.row(source_queries.FILES, [*files]) if files else None
    if now is None or now.files == [*files.values()]:
        return
    # Not all of them are locked, and so were read: which are is asked only now, because it takes longer to plan.
    rewritten = await session.rows(source_queries.REWRITTEN, [*files], [*files.values()])
    if rewritten:
        raise Overtaken(", ".join(row.relation for row in rewritten))


async def start_over(job: Job, session: Session, error: asyncpg.PostgresError | Overtaken) -> None:
    """Roll back and wait a moment if somebody else is to blame, for a new snapshot; else raise the error.

    Raises Problem when it was so too often.
    """
    if isinstance(error, asyncpg.PostgresError):
        if not job.grouped or error.sqlstate not in _LOST_RACES:
            raise error
        await session.rollback()
        if error.sqlstate == _DUPLICATE_KEY and not await _has_changed(job, session):
            raise error  # the view's own rows break its index, and will again
        what = "views of the group" if job.at is None else str(job.at.run.view)
    else:
        await session.rollback()
        what = str(error)
    if job.grouped:
        job.at = None
    job.tries += 1
    log.info(
        "another session came between",
        extra={"action": "overtaken", "tries": job.tries, "relations": what, "correlation_id": job.run.correlation_id},
    )
    if job.tries >= TRIES:
        raise Problem(
            RefreshReason.DEADLOCK,
            f"Others refreshed, altered or truncated {what} at the same time, {job.tries} times in a row. Let them do "
            "so at other times; refreshes of your own can take the views' locks.",
        )
    await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - jitter


async def _has_changed(job: Job, session: Session) -> bool:
    """Whether anybody refreshed a view of the group since the lookup."""
    versions = {row_of(work).oid: row_of(work).version for work in job.works}
    now = {row.oid: row.version for row in await session.rows(group_queries.VERSIONS, [*versions])}
    return any(now.get(oid) != version for oid, version in versions.items())
