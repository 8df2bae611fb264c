"""The preflight: connect and look up, take no lock, change nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

import asyncpg

from matview_operator.adapters.postgres.explanation import check_search_path, read_hazards, reading_problem
from matview_operator.adapters.postgres.facts import view_facts
from matview_operator.adapters.postgres.guard import read_facts
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sql.lookup import LOOKUP
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.view_graph import read_managed
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.guard import check_readable
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.mode import ModeChoice
from matview_operator.domain.preflight import check_view, hazard_problem
from matview_operator.domain.server import ServerFacts, check_server
from matview_operator.domain.view import ViewName

log = logging.getLogger(__name__)

INSPECTION_SECONDS = 30.0
"""For all the views of one database together."""


class Inspector:
    """Answers whether views could be refreshed, over one connection."""

    async def inspect(
        self,
        *,
        target: ConnectionTarget,
        checks: Iterable[ViewCheck],
        allow_superuser: bool,
        managed: Collection[ViewName] = (),
    ) -> Inspection:
        """Look at the server and at every view. Raises Problem when the server itself is the obstacle."""
        try:
            async with asyncio.timeout(INSPECTION_SECONDS):
                session = await Session.open(target)
                try:
                    identity = await session.row(queries.IDENTITY)
                    assert identity is not None  # a select without from has one row
                    facts = replace(session.facts, system_identifier=str(identity.system_identifier))
                    check_server(facts, allow_superuser=allow_superuser)
                    answers = {check: await _answer(session, facts, check) for check in dict.fromkeys(checks)}
                    reads = await read_managed(session, managed)
                    return Inspection(server=facts, answers=answers, reads=reads)
                finally:
                    await session.close()
        except Exception as error:  # whatever a server answers becomes a problem of its own, told in the status
            problem = problem_of(error)
            if problem.reason is RefreshReason.INTERNAL_ERROR:
                log.exception("unexpected error", extra={"action": "preflight_error"})
            raise problem from None


async def _answer(session: Session, facts: ServerFacts, check: ViewCheck) -> ModeChoice | Problem:
    try:
        row = await session.row(LOOKUP, check.view.schema, check.view.name)
    except asyncpg.DataError as error:
        # A name that this database's encoding cannot write concerns this view alone.
        return problem_of(error)
    found = view_facts(row)
    try:
        choice = check_view(check.view, found, concurrently=check.concurrently, grouped=check.grouped, server=facts)
        await check_search_path(session, check.search_path)
        if check.guard is not None and found is not None:
            readable, _ = await read_facts(session, check.guard, oid=found.oid, quoted=found.quoted)
            check_readable(check.guard, readable)
    except Problem as problem:
        return problem
    assert found is not None  # check_view refuses a missing view
    # Six times the lookup's work (2.4 against 0.4 ms of the server) for what changes by DDL alone: done here, and after
    # a refusal, not in each run.
    unreadable = await reading_problem(session, check.view, found.oid)
    if unreadable is not None:
        return unreadable
    if check.isolation is Isolation.SHARED:
        hazards = await read_hazards(session, found.oid)
        if hazards:
            return hazard_problem(check.view, hazards)
    return choice
