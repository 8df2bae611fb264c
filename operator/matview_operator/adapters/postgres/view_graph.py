"""Which materialized views a role may refresh, and which of them read each other."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sqlstate import problem_of
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
