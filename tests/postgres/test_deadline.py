"""Every wait is bounded by the run's timeout + 5 s, also against a silent peer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER
from tests.leftovers import nothing_left_behind
from tests.proxy import Fault, Proxy
from tests.refreshes import GatedView, backends, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason as Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database

TIMEOUT = 1.5
BOUND = TIMEOUT + 5
FAILED, SUCCESS = RefreshOutcome.FAILED, RefreshOutcome.SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_host_that_accepts_and_says_nothing_holds_no_run(database: Database) -> None:
    async with nothing_left_behind(), Proxy(0) as proxy:
        proxy.is_dead = True
        started = time.monotonic()
        result = await refresh(database, via=proxy, timeout_seconds=TIMEOUT)
        assert time.monotonic() - started < TIMEOUT + 2
    assert (result.outcome, result.error_type) == (FAILED, Reason.CONNECTION_FAILED)


async def test_the_server_stops_when_the_run_times_out(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    async with nothing_left_behind():
        started = time.monotonic()
        result = await refresh(database, gated.view, timeout_seconds=TIMEOUT)
        assert time.monotonic() - started < TIMEOUT + 1
    assert (result.outcome, result.error_type) == (FAILED, Reason.TIMEOUT)
    await settled(lambda: backends(database), 0)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_the_server_stops_when_our_side_vanishes(database: Database) -> None:
    """By client_connection_check_interval, long before the statement's own timeout."""
    gated = await GatedView.make(database)
    await gated.shut()
    async with Proxy(database.server.port) as proxy:
        task = asyncio.create_task(refresh(database, gated.view, via=proxy))
        await gated.reached()
        # Both sides of the proxy are closed; nobody is left to send a cancel request.
        proxy.is_dead = True
        await proxy.cut()
        await settled(lambda: backends(database), 0, seconds=3)
        assert (await task).outcome is RefreshOutcome.INTERRUPTED


@pytest.mark.parametrize("databases", [15], indirect=True)
async def test_a_client_that_is_gone_between_refresh_and_commit_blocks_readers_for_ten_seconds_at_most(
    database: Database,
) -> None:
    """As by a frozen machine: no end of the connection, no timeout of ours, and 15 has no transaction_timeout."""
    view = await database.make_view(unique=False)
    fault = Fault(statement="commit", loses="request", silent=True)
    async with Proxy(database.server.port, fault) as proxy:
        running = asyncio.create_task(refresh(database, view, via=proxy, timeout_seconds=60))
        await fault.happened.wait()
        started = time.monotonic()
        assert await database.value_as(APP_OWNER, "select count(*) from mv") == 3
        assert 1 < time.monotonic() - started < 10 + 5
        running.cancel()
        await asyncio.wait([running])
    await settled(lambda: backends(database), 0)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_pooler_without_a_free_connection_holds_no_run(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    view = await database.make_view()
    pool = pgbouncer(database, pool_size=1)
    client = await database.connect(via=pool)
    await client.execute("begin")
    started = time.monotonic()
    result = await refresh(database, view, via=pool, timeout_seconds=TIMEOUT)
    assert time.monotonic() - started < BOUND
    assert (result.outcome, result.error_type) == (FAILED, Reason.CONNECTION_FAILED)
    await client.execute("rollback")
    assert (await refresh(database, view, via=pool)).outcome is SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_analyze_that_waits_does_not_fail_the_run(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    view = await database.make_view(unique=False)
    await database.execute_as(
        SUPERUSER,
        """
        create function slow(int) returns int language plpgsql immutable as
          $$ begin if current_query() ilike 'analyze%' then perform pg_sleep(30); end if; return $1; end $$;
        """,
    )
    await database.execute_as(APP_OWNER, "create index on mv (public.slow(id))")
    caplog.set_level(logging.WARNING, "matview_operator")
    started = time.monotonic()
    result = await refresh(database, view, timeout_seconds=1)
    assert time.monotonic() - started < 1 + 5
    assert result.outcome is SUCCESS
    assert [vars(record)["action"] for record in caplog.records] == ["analyze"]
