"""Which materialized views read each other: of those that a role may refresh, and of those that policies name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import asyncpg

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sql.sources import MANAGED_READS
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.wire.authentication import Row
from matview_operator.domain.server import check_server
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from matview_operator.domain.connection import ConnectionTarget

log = logging.getLogger(__name__)

_SECONDS = 30.0


async def read_view_graph(target: ConnectionTarget) -> dict[ViewName, frozenset[ViewName]]:
    """Read every materialized view that the role may refresh, each with those of them that it reads.

    Raises Problem.
    """
    session = await Session.open(target)
    try:
        # A superuser may refresh everything, which nobody means by "all that I may refresh".
        check_server(session.facts, allow_superuser=False)
        async with asyncio.timeout(_SECONDS):
            rows = await session.rows(queries.REFRESHABLE_VIEWS)
    except (OSError, TimeoutError, *queries.DRIVER_ERRORS) as error:
        raise problem_of(error) from None
    finally:
        await session.close()
    names = {row.oid: ViewName(row.schema, row.name) for row in rows}
    for row in rows:
        for other in row.reads_besides:
            log.warning(
                "%s reads %s, which the role may not refresh: its rows are as old as those",
                names[row.oid],
                other,
                extra={"action": "dependency_missing", "view_name": str(names[row.oid]), "missing": other},
            )
    return {names[row.oid]: frozenset(names[oid] for oid in row.reads) for row in rows}


async def read_managed(session: Session, views: Collection[ViewName]) -> dict[ViewName, set[ViewName]]:
    """Read which of these views read which others of them; one that reads none is left out."""
    reads: dict[ViewName, set[ViewName]] = {}
    if len(views) > 1:
        try:
            rows = await _managed_reads(session, views)
        except asyncpg.DataError:
            # A name that this database's encoding cannot write is no view of it. Which one, the server does not say.
            rows = await _managed_reads(session, [view for view in views if str(view).isascii()])
        names = {(view.schema, view.name): view for view in views}
        for row in rows:
            reader, other = names.get((row.schema, row.name)), names.get((row.other_schema, row.other))
            if reader is not None and other is not None:  # a server may say anything
                reads.setdefault(reader, set()).add(other)
    return reads


async def _managed_reads(session: Session, views: Collection[ViewName]) -> Sequence[Row]:
    return await session.rows(MANAGED_READS, [view.schema for view in views], [view.name for view in views])
