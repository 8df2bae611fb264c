"""PgBouncer in transaction mode between us and the server: refused, exhausted, paused, reloaded, restarted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.refreshes import GatedView, a_run, ended, failure, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.connection import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database
    from tests.databases import Databases

    from matview_operator.domain.result import RefreshResult

SUCCESS = RefreshOutcome.SUCCESS
LOST = (RefreshOutcome.INTERRUPTED, Reason.CONNECTION_LOST)
TIMEOUT = 1.5
BOUND = TIMEOUT + 5


async def refreshing(database: Database) -> object:
    """How many backends run REFRESH or hold a lock of one."""
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity a where datname = current_database() and pid <> pg_backend_pid()"
        " and (state = 'active' and query ilike 'refresh%'"
        " or exists (select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory'))",
    )


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_pooler_refuses_a_wrong_password_an_unknown_role_and_an_unknown_database(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    view = await database.make_view()
    target = parse_url(database.url(via=pgbouncer(database)))

    async def attempt(**changes: Any) -> RefreshResult:
        return await Refresher().refresh(target=replace(target, **changes), run=a_run(view))

    failure(await attempt(password=SecretStr("wrong")), Reason.CONNECT_REJECTED, "08P01")
    failure(await attempt(user="nobody_known"), Reason.CONNECT_REJECTED, "08P01")
    failure(await attempt(database="nowhere"), Reason.CONNECT_REJECTED, "08P01")
    assert (await attempt()).outcome is SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_begin_that_waits_for_a_place_in_the_pool_is_bounded_by_us(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """PgBouncer lets it wait for two minutes; with a kept connection nothing was asked before."""
    view = await database.make_view()
    bouncer = pgbouncer(database, pool_size=1)
    target = parse_url(database.url(via=bouncer))
    async with Pool() as pool:
        refresher = Refresher(pool)
        assert (await refresher.refresh(target=target, run=a_run(view))).outcome is SUCCESS
        client = await database.connect(via=bouncer)
        await client.execute("begin")
        started = time.monotonic()
        result = await refresher.refresh(target=target, run=a_run(view, timeout_seconds=TIMEOUT))
        assert time.monotonic() - started < BOUND
        assert result.outcome is RefreshOutcome.FAILED
        assert result.error_type in (Reason.TIMEOUT, Reason.CONNECTION_FAILED)
        await client.execute("rollback")
        assert (await refresher.refresh(target=target, run=a_run(view))).outcome is SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_pooler_that_is_restarted_in_the_middle_of_a_run(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    gated = await GatedView.make(database)
    bouncer = pgbouncer(database)
    await gated.shut()
    running = asyncio.create_task(refresh(database, gated.view, via=bouncer))
    await gated.reached()
    await asyncio.to_thread(bouncer.halt)
    # The server hears that its client is gone, by client_connection_check_interval.
    await settled(lambda: refreshing(database), 0, seconds=3)
    assert ended(await running) == LOST
    failure(await refresh(database, gated.view, via=bouncer), Reason.CONNECTION_FAILED)
    await asyncio.to_thread(bouncer.go_on)
    await gated.open()
    assert (await refresh(database, gated.view, via=bouncer)).outcome is SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_pooler_that_is_reloaded_or_paused_in_the_middle_of_a_run_lets_it_end(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    gated = await GatedView.make(database)
    bouncer = pgbouncer(database)
    await gated.shut()
    running = asyncio.create_task(refresh(database, gated.view, via=bouncer))
    await gated.reached()
    await asyncio.to_thread(bouncer.lead_to, database.server.port)
    await asyncio.to_thread(bouncer.pause)
    await gated.open()
    assert (await running).outcome is SUCCESS
    started = time.monotonic()
    paused = await refresh(database, gated.view, via=bouncer, timeout_seconds=TIMEOUT)
    assert time.monotonic() - started < BOUND
    failure(paused, Reason.CONNECTION_FAILED)
    waiting = asyncio.create_task(refresh(database, gated.view, via=bouncer))
    await asyncio.to_thread(bouncer.resume)
    assert (await waiting).outcome is SUCCESS


async def test_a_server_that_dies_behind_the_pooler(
    start_server: Callable[..., Databases], pgbouncer: Callable[..., PgBouncer]
) -> None:
    async with start_server(version=18).lend("ledger") as database:
        gated = await GatedView.make(database)
        await database.execute_as(APP_OWNER, "insert into gated_plain_base values (4, 'b', 40)")
        bouncer = pgbouncer(database, settings={"server_login_retry": 1})
        await gated.shut()
        running = asyncio.create_task(refresh(database, gated.view, via=bouncer))
        await gated.reached()
        await asyncio.to_thread(database.server.halt, "immediate")
        assert ended(await running) == LOST
        away = await refresh(database, gated.view, via=bouncer, timeout_seconds=TIMEOUT)
        assert away.outcome is RefreshOutcome.FAILED
        await asyncio.to_thread(database.server.resume)
        await gated.open()
        while (result := await refresh(database, gated.view, via=bouncer)).outcome is not SUCCESS:
            assert result.error_type in (Reason.CONNECTION_FAILED, Reason.CONNECT_REJECTED, Reason.CONNECTION_LOST)
        assert result.rows_inserted == 1
