"""The primary dies, a standby is promoted, the service's name moves: soon refreshes go on, and none is done twice."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgtemplate import SUPERUSER
from sandbox.postgres import PostgresServer
from tests.database import APP_OWNER, Database, Gateway
from tests.proxy import Fault, Proxy
from tests.refreshes import GatedView, a_run, counted_view, ended, executions, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.connection import parse_url
from matview_operator.domain.run import request_id, slot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.pgbouncer import PgBouncer
    from tests.databases import Databases

    from matview_operator.domain.result import RefreshResult

SLOT = slot_id(datetime(2026, 1, 1, tzinfo=UTC))
SUCCESS = RefreshOutcome.SUCCESS
AGAIN_WITHIN_SECONDS = 10.0
"""Of the new primary's first word, whoever asks how often."""


@pytest.fixture
def primary(start_server: Callable[..., Databases]) -> Databases:
    return start_server(version=18, settings={"wal_keep_size": "64MB"})


@pytest.fixture
def standby(primary: Databases, tmp_path: Path) -> Iterator[PostgresServer]:
    with PostgresServer.standby_of(primary.server, directory=tmp_path / "standby") as server:
        yield server


class Service:
    """One database behind a name that moves, and an operator that keeps its connections."""

    def __init__(self, database: Database, way: Gateway, pool: Pool) -> None:
        self._target = parse_url(database.url(via=way))
        self._refresher = Refresher(pool)

    async def refresh(self, **fields: Any) -> RefreshResult:
        run = a_run(**{"timeout_seconds": 5} | fields)
        return await self._refresher.refresh(target=self._target, run=run)

    async def again(self, **fields: Any) -> tuple[RefreshResult, list[tuple[RefreshOutcome, Reason | None]]]:
        """Try until it succeeds; return that result, and how the attempts before it ended."""
        failed = []
        while (result := await self.refresh(**fields)).outcome is not SUCCESS:
            failed.append(ended(result))
            await asyncio.sleep(0.05)
        return result, failed


async def replayed(database: Database) -> object:
    """Whether the standby has all that the primary has written."""
    return await database.value_as(
        SUPERUSER, "select coalesce(bool_and(replay_lsn = pg_current_wal_lsn()), false) from pg_stat_replication"
    )


async def promote(standby: PostgresServer, database: Database) -> Database:
    """Make a primary of the standby; return the same database there."""
    there = Database(server=standby, name=database.name, passwords=database.passwords)
    assert await there.value_as(SUPERUSER, "select pg_promote()")
    return there


async def test_refreshes_go_on_soon_after_a_standby_was_promoted(primary: Databases, standby: PostgresServer) -> None:
    """In flight when the primary dies, then nobody there, then a server that is still in recovery, then promoted."""
    async with primary.lend("ledger") as database, Proxy(primary.server.port) as proxy, Pool() as pool:
        view = await counted_view(database)
        gated = await GatedView.make(database)
        service = Service(database, proxy, pool)
        assert (await service.refresh(view=view, slot_id=SLOT)).outcome is SUCCESS
        await gated.shut()
        running = asyncio.create_task(service.refresh(view=gated.view, timeout_seconds=20))
        await gated.reached()
        await settled(lambda: replayed(database), True, seconds=20)
        await asyncio.to_thread(primary.server.halt, "immediate")
        assert ended(await running) == (RefreshOutcome.INTERRUPTED, Reason.CONNECTION_LOST)
        assert ended(await service.refresh(view=view)) == (RefreshOutcome.FAILED, Reason.CONNECTION_FAILED)
        proxy.lead_to(standby.port)
        assert ended(await service.refresh(view=view)) == (RefreshOutcome.FAILED, Reason.READ_ONLY_SERVER)
        trying = asyncio.create_task(service.again(view=view))
        there = await promote(standby, database)
        accepted = time.monotonic()
        try:
            _, failed = await trying
            assert time.monotonic() - accepted < AGAIN_WITHIN_SECONDS
            assert {reason for _, reason in failed} <= {Reason.READ_ONLY_SERVER, Reason.CONNECTION_LOST}
            # The ledger has come along: what was done before the failover is not done again.
            done = await executions(there)
            assert ended(await service.refresh(view=view, slot_id=SLOT)) == (SUCCESS, Reason.RECOVERED)
            assert await executions(there) == done
            # What was interrupted changed nothing, and runs now.
            assert await there.value_as(APP_OWNER, "select count(*) from gated") == 3
            await GatedView(there, gated.view).open()
            assert (await service.refresh(view=gated.view)).outcome is SUCCESS
        finally:
            await there.close()
            await asyncio.to_thread(primary.server.resume)


async def test_refreshes_go_on_through_a_pooler_that_is_led_to_the_promoted_standby(
    primary: Databases, standby: PostgresServer, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """PgBouncer waits for server_login_retry, 15 s unless it is told otherwise, after a server that was not there."""
    async with primary.lend("ledger") as database, Pool() as pool:
        view = await database.make_view()
        bouncer = pgbouncer(database, settings={"server_login_retry": 1})
        service = Service(database, bouncer, pool)
        assert (await service.refresh(view=view, slot_id=SLOT)).outcome is SUCCESS
        await settled(lambda: replayed(database), True, seconds=20)
        await asyncio.to_thread(primary.server.halt, "immediate")
        assert (await service.refresh(view=view, timeout_seconds=2)).outcome is not SUCCESS
        there = await promote(standby, database)
        try:
            await asyncio.to_thread(bouncer.lead_to, standby.port)
            accepted = time.monotonic()
            await service.again(view=view, timeout_seconds=2)
            assert time.monotonic() - accepted < AGAIN_WITHIN_SECONDS
            assert ended(await service.refresh(view=view, slot_id=SLOT)) == (SUCCESS, Reason.RECOVERED)
        finally:
            await there.close()
            await asyncio.to_thread(primary.server.resume)


async def test_kept_connections_do_not_stay_with_a_primary_that_was_replaced(
    primary: Databases, standby: PostgresServer
) -> None:
    """The old primary still runs and still accepts: only the name says that it is the primary no more."""
    async with primary.lend("ledger") as database, Proxy(primary.server.port) as proxy, Pool() as pool:
        view = await database.make_view()
        service = Service(database, proxy, pool)
        assert (await service.refresh(view=view)).outcome is SUCCESS
        await settled(lambda: replayed(database), True, seconds=20)
        there = await promote(standby, database)
        try:
            proxy.lead_to(standby.port)
            await proxy.cut()
            await there.execute_as(APP_OWNER, "insert into mv_base values (4, 'b', 40)")
            result, _ = await service.again(view=view, slot_id=request_id(str(uuid.uuid4())))
            assert result.rows_inserted == 1
            assert await there.value_as(APP_OWNER, "select count(*) from mv") == 4
            assert await database.value_as(APP_OWNER, "select count(*) from mv") == 3
        finally:
            await there.close()


async def test_a_commit_that_the_dead_primary_had_sent_on_is_found_on_the_new_one(
    primary: Databases, standby: PostgresServer
) -> None:
    """The answer to COMMIT is lost with the primary: UNKNOWN, until the promoted standby's ledger tells."""
    async with primary.lend("ledger") as database, Pool() as pool:
        view = await counted_view(database)
        fault = Fault(statement="commit", loses="answer", silent=True, network_too=True)
        async with Proxy(primary.server.port, fault) as proxy:
            running = asyncio.create_task(
                Service(database, proxy, pool).refresh(view=view, slot_id=SLOT, timeout_seconds=2)
            )
            await fault.happened.wait()
            await settled(lambda: replayed(database), True, seconds=20)
            await asyncio.to_thread(primary.server.halt, "immediate")
            assert ended(await running) == (RefreshOutcome.UNKNOWN, Reason.COMMIT_UNKNOWN)
        there = await promote(standby, database)
        try:
            async with Proxy(standby.port) as proxy:
                result, _ = await Service(database, proxy, pool).again(view=view, slot_id=SLOT)
            assert result.error_type is Reason.RECOVERED
            assert await there.value_as(APP_OWNER, "select run from counted") == 1
        finally:
            await there.close()
            await asyncio.to_thread(primary.server.resume)
