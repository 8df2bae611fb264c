"""Who cancels a run, by shutdown, deletion or suspension, stops its server's side within a second, wherever it is."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.leftovers import nothing_left_behind
from tests.proxy import Fault, Proxy
from tests.refreshes import GatedView, ledger_rows, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason as Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pgbouncer import PgBouncer
    from tests.database import Database

    from matview_operator.domain.result import RefreshResult

STOPPED_WITHIN_SECONDS = 1.0


async def at_work(database: Database) -> object:
    """Return how many backends of ours are in a statement, in a transaction, or hold or want a lock."""
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity a where datname = current_database() and usename = $1"
        " and (state <> 'idle' or exists (select from pg_locks l where l.pid = a.pid))",
        MV_OPERATOR,
    )


async def waiting_for_a_lock(database: Database) -> object:
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )


async def stopped_in_time(database: Database, running: asyncio.Task[RefreshResult]) -> RefreshResult:
    """Cancel a run; return its result once the server has let go of everything, which must be soon."""
    started = time.monotonic()
    running.cancel()
    await asyncio.wait([running])
    await settled(lambda: at_work(database), 0)
    assert time.monotonic() - started < STOPPED_WITHIN_SECONDS
    with pytest.raises(asyncio.CancelledError) as cancelled:
        running.result()
    result: RefreshResult = cancelled.value.args[0]
    assert (result.outcome, result.error_type) == (RefreshOutcome.INTERRUPTED, Reason.SHUTDOWN)
    return result


@pytest.mark.parametrize("through", ["direct", "pgbouncer"])
@pytest.mark.parametrize("mode", ["Always", "Never"])
async def test_a_run_cancelled_in_its_query_lets_go_on_the_server(
    database: Database, pgbouncer: Callable[..., PgBouncer], through: str, mode: str
) -> None:
    gated = await GatedView.make(database)
    via = pgbouncer(database) if through == "pgbouncer" else None
    await gated.shut()
    running = asyncio.create_task(refresh(database, gated.view, via=via, concurrently=mode))
    await gated.reached()
    await stopped_in_time(database, running)
    assert await ledger_rows(database) == [("INTERRUPTED", "Shutdown", 1, False)]
    # The next one is not prevented by it, over the pooler's very same connection.
    await gated.open()
    assert (await refresh(database, gated.view, via=via)).outcome is RefreshOutcome.SUCCESS


@pytest.mark.parametrize("through", ["direct", "pgbouncer"])
@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_run_cancelled_while_it_waits_for_a_lock_does_not_stay_in_the_queue(
    database: Database, pgbouncer: Callable[..., PgBouncer], through: str
) -> None:
    """Readers would queue behind it."""
    view = await database.make_view()
    via = pgbouncer(database) if through == "pgbouncer" else None
    await database.execute_as(APP_OWNER, "begin; refresh materialized view concurrently mv")
    running = asyncio.create_task(refresh(database, view, via=via, lock_timeout_millis=60_000, timeout_seconds=60))
    await settled(lambda: waiting_for_a_lock(database), 1)
    await stopped_in_time(database, running)
    await database.execute_as(APP_OWNER, "commit")
    assert (await refresh(database, view, via=via)).outcome is RefreshOutcome.SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_run_cancelled_while_it_connects_opens_nothing(database: Database) -> None:
    fault = Fault(statement="password", loses="request", silent=True)
    assert await at_work(database) == 0
    async with nothing_left_behind(), Proxy(database.server.port, fault) as proxy:
        running = asyncio.create_task(refresh(database, via=proxy))
        await fault.happened.wait()
        await stopped_in_time(database, running)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_cancelled_run_is_bounded_though_the_peer_is_silent(database: Database) -> None:
    view = await database.make_view()
    fault = Fault(statement="refresh", loses="answer", silent=True, network_too=True)
    async with nothing_left_behind(), Proxy(database.server.port, fault) as proxy:
        task = asyncio.create_task(refresh(database, view, via=proxy))
        await fault.happened.wait()
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        assert time.monotonic() - started < 5
        del task  # it holds the frames that it was cancelled in
