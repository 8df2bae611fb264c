"""COMMIT whose answer is lost, whoever died: the server is asked, and no slot is run twice or left out."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Proxy
from tests.refreshes import counted_view, ended, executions, ledger_rows, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.run import slot_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database import Database
    from tests.databases import Databases


SLOT: dict[str, Any] = {"slot_id": slot_id(datetime(2026, 1, 1, tzinfo=UTC))}
RECOVERED = (RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)


@pytest.mark.parametrize("template", ["ledger", "bare"])
async def test_a_lost_answer_to_commit_is_looked_up(databases: Databases, template: str) -> None:
    async with databases.lend(template) as database:
        view = await counted_view(database)
        async with Proxy(database.server.port, Fault(statement="commit", loses="answer")) as proxy:
            result = await refresh(database, view, via=proxy, **SLOT)
        assert ended(result) == RECOVERED
        assert result.data_as_of is not None
        assert await executions(database) == 1
        assert await database.value_as(APP_OWNER, "select run from counted") == 1
        again = await refresh(database, view, **SLOT)
        assert ended(again) == (RECOVERED if template == "ledger" else (RefreshOutcome.SUCCESS, None))
        assert await executions(database) == (1 if template == "ledger" else 2)


@pytest.mark.parametrize("template", ["ledger", "bare"])
async def test_a_commit_that_never_arrived_changed_nothing(databases: Databases, template: str) -> None:
    async with databases.lend(template) as database:
        view = await counted_view(database)
        before = await database.value_as(APP_OWNER, "select xmin::text from counted")
        async with Proxy(database.server.port, Fault(statement="commit", loses="request")) as proxy:
            result = await refresh(database, view, via=proxy, **SLOT)
        assert ended(result) == (RefreshOutcome.INTERRUPTED, RefreshReason.CONNECTION_LOST)
        assert await database.value_as(APP_OWNER, "select xmin::text from counted") == before
        assert ended(await refresh(database, view, **SLOT)) == (RefreshOutcome.SUCCESS, None)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_when_nobody_can_be_asked_the_next_attempt_knows(database: Database) -> None:
    view = await counted_view(database)
    fault = Fault(statement="commit", loses="answer", silent=True, network_too=True)
    async with Proxy(database.server.port, fault) as proxy:
        result = await refresh(database, view, via=proxy, timeout_seconds=0.5, **SLOT)
    assert ended(result) == (RefreshOutcome.UNKNOWN, RefreshReason.COMMIT_UNKNOWN)
    assert ended(await refresh(database, view, **SLOT)) == RECOVERED
    assert await executions(database) == 1


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_cancelled_in_commit_the_result_is_what_the_server_says(database: Database) -> None:
    view = await counted_view(database)
    fault = Fault(statement="commit", loses="answer", silent=True)
    async with Proxy(database.server.port, fault) as proxy:
        task = asyncio.create_task(refresh(database, view, via=proxy, **SLOT))
        await fault.happened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert ended(caught.value.args[0]) == RECOVERED
    assert await ledger_rows(database) == [("SUCCESS", None, 1, True)]


@pytest.fixture
async def standbyless(start_server: Callable[..., Databases]) -> Databases:
    """A server of its own on which a COMMIT of mv_operator waits for a synchronous standby that does not exist."""
    return start_server(version=18, settings={"synchronous_standby_names": "nobody", "synchronous_commit": "local"})


async def committing_backend(database: Database) -> int:
    """Wait until a backend waits for the standby; return its process id."""
    while True:
        pid = await database.value_as(SUPERUSER, "select pid from pg_stat_activity where wait_event = 'SyncRep'")
        if isinstance(pid, int):
            return pid
        await asyncio.sleep(0.01)


async def askers_answered(database: Database) -> object:
    """Return how many backends have answered what became of a transaction."""
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity where query like '%pg_xact_status%' and pid <> pg_backend_pid()"
        " and state = 'idle'",
    )


@pytest.mark.parametrize("template", ["ledger", "bare"])
@pytest.mark.parametrize("death", ["terminated", "killed"])
async def test_a_backend_that_dies_in_commit_has_committed(standbyless: Databases, template: str, death: str) -> None:
    async with standbyless.lend(template) as database:
        view = await counted_view(database)
        waits = f"alter role {MV_OPERATOR} in database {database.name} set synchronous_commit ="
        await database.execute_as(SUPERUSER, f"{waits} on")
        task = asyncio.create_task(refresh(database, view, **SLOT))
        pid = await committing_backend(database)
        await database.execute_as(SUPERUSER, f"{waits} local")
        if death == "terminated":
            await database.execute_as(SUPERUSER, f"select pg_terminate_backend({pid})")
        else:
            # The server restarts all its backends, so nobody can say for a moment.
            os.kill(pid, signal.SIGKILL)
        assert ended(await task) == RECOVERED
        assert await database.value_as(APP_OWNER, "select run from counted") == 1
        if template == "ledger":
            assert ended(await refresh(database, view, **SLOT)) == RECOVERED
            assert await ledger_rows(database) == [("SUCCESS", None, 1, True)]


@pytest.mark.parametrize("template", ["ledger", "bare"])
async def test_a_commit_that_goes_on_without_us_is_waited_for(standbyless: Databases, template: str) -> None:
    async with standbyless.lend(template) as database:
        view = await counted_view(database)
        waits = f"alter role {MV_OPERATOR} in database {database.name} set synchronous_commit ="
        await database.execute_as(SUPERUSER, f"{waits} on")
        async with Proxy(database.server.port) as proxy:
            task = asyncio.create_task(refresh(database, view, via=proxy, **SLOT))
            pid = await committing_backend(database)
            await proxy.cut()
            # The operator asks, and hears that the transaction is still in progress.
            await settled(lambda: askers_answered(database), 1)
            await database.execute_as(SUPERUSER, f"select pg_cancel_backend({pid})")
            assert ended(await task) == RECOVERED
        assert await database.value_as(APP_OWNER, "select run from counted") == 1
