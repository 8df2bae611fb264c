"""Servers that crash, restart, run out of something or let nobody in: the right reason, the old rows, and then success.

Each server is the test's own: the shared ones are neither stopped nor starved.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from sandbox.account import server_account
from sandbox.pgtemplate import SUPERUSER, run_as
from sandbox.postgres import PostgresServer
from tests.database import APP_OWNER, MV_OPERATOR
from tests.databases import Databases
from tests.refreshes import GatedView, ended, failure, public, refresh, settled
from tests.small_disk import SmallDisk, small_disk

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshReason as Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sandbox.postgres import Mode
    from tests.conftest import ServerLogs
    from tests.database import Database

    from matview_operator.domain.result import RefreshResult
    from matview_operator.domain.view import ViewName

SUCCESS = RefreshOutcome.SUCCESS
LOST = (RefreshOutcome.INTERRUPTED, Reason.CONNECTION_LOST)
AWAY = {(RefreshOutcome.FAILED, Reason.CONNECTION_FAILED), (RefreshOutcome.FAILED, Reason.CONNECTION_LOST), LOST}
"""What attempts end with while a server stops, starts or recovers."""

ROOM = 2 << 20
"""Bytes that a full disk has left when a run begins: it gets somewhere before it fails."""


@pytest.fixture(scope="module")
def restartable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    directory = tmp_path_factory.mktemp("restartable")
    with PostgresServer.start(version=18, directory=directory, in_memory=True) as server:
        yield Databases(server)


@pytest.fixture
async def own_database(restartable: Databases, server_logs: ServerLogs) -> AsyncIterator[Database]:
    """On an 18 of these tests' own, which they may stop and crash."""
    server_logs.show("PostgreSQL", restartable.server.log)
    async with restartable.lend("ledger") as database:
        yield database


async def rows(database: Database, view: ViewName) -> object:
    """The view's ids, read by a new connection: the others may have died with the server."""
    connection = await database.connect(APP_OWNER)
    try:
        return await connection.fetchval(f"select array_agg(id order by id) from {view.name}")
    finally:
        await connection.close()


async def gated_run(database: Database) -> tuple[GatedView, asyncio.Task[RefreshResult], int]:
    """Start a run that would change the view, and wait until it stands in the middle of its query."""
    gated = await GatedView.make(database)
    await database.execute_as(APP_OWNER, "insert into gated_plain_base values (4, 'b', 40)")
    await gated.shut()
    running = asyncio.create_task(refresh(database, gated.view))
    return gated, running, await gated.reached()


def limit_process(pid: int, limit: str) -> None:
    run_as(server_account(), ["prlimit", f"--pid={pid}", limit], what="prlimit")


async def until_it_succeeds(database: Database, view: ViewName) -> set[tuple[RefreshOutcome, Reason | None]]:
    """Try again and again; return how the attempts before the success ended."""
    failed = set()
    while (result := await refresh(database, view)).outcome is not SUCCESS:
        failed.add(ended(result))
        await asyncio.sleep(0.05)
    return failed


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_is_restarted_in_the_middle_of_a_run(own_database: Database, mode: Mode) -> None:
    gated, running, _ = await gated_run(own_database)
    await asyncio.to_thread(own_database.server.halt, mode)
    assert ended(await running) == LOST
    assert ended(await refresh(own_database, gated.view)) in AWAY
    await asyncio.to_thread(own_database.server.resume)
    assert await rows(own_database, gated.view) == [1, 2, 3]
    await gated.open()
    assert await until_it_succeeds(own_database, gated.view) <= AWAY
    assert await rows(own_database, gated.view) == [1, 2, 3, 4]


async def test_a_backend_that_is_killed_takes_all_others_with_it_and_the_next_run_succeeds(
    own_database: Database,
) -> None:
    """The server recovers by itself; until then it says 57P03, or nothing."""
    gated, running, pid = await gated_run(own_database)
    os.kill(pid, signal.SIGKILL)
    assert ended(await running) == LOST
    trying = asyncio.create_task(until_it_succeeds(own_database, public("gated_plain")))
    assert await trying <= AWAY
    assert await rows(own_database, gated.view) == [1, 2, 3]
    await gated.open()
    assert (await refresh(own_database, gated.view)).outcome is SUCCESS
    assert await rows(own_database, gated.view) == [1, 2, 3, 4]


async def test_a_server_that_restarts_again_and_again(own_database: Database) -> None:
    """Runs in a row meanwhile: each ends as what it is, the view is whole at any time, and at last they succeed."""
    view = await own_database.make_view(rows=1000)
    done = asyncio.Event()
    ends: set[tuple[RefreshOutcome, Reason | None]] = set()

    async def runs() -> None:
        while not done.is_set():
            ends.add(ended(await refresh(own_database, view, timeout_seconds=5)))

    running = asyncio.create_task(runs())
    modes: list[Mode] = ["immediate", "fast", "immediate", "fast"]
    for mode in modes:
        await asyncio.to_thread(own_database.server.restart, mode)
        assert await own_database.value_as(APP_OWNER, "select count(*) from mv") == 1000
    done.set()
    await running
    assert ends <= {*AWAY, (SUCCESS, None), (SUCCESS, Reason.RECOVERED)}
    await until_it_succeeds(own_database, view)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk | None]:
    with small_disk(megabytes=48, directory=tmp_path) as mounted:
        yield mounted


# The disk comes first: it is unmounted after the server's end.
@pytest.mark.parametrize("version", [15, 18])
async def test_a_disk_that_is_full(
    disk: SmallDisk | None, start_server: Callable[..., Databases], version: int
) -> None:
    """Where we may not mount a small one, a limit for the files of one process comes nearest to it."""
    if disk is None:
        await test_a_write_that_is_cut_short(start_server)
        return
    async with start_server(version=version).lend("ledger") as database:
        await run_out_of_disk(database, disk)


async def run_out_of_disk(database: Database, disk: SmallDisk) -> None:
    """First the disk on which the view lies, then the one for temporary files, on which CONCURRENTLY builds."""
    await database.execute_as(SUPERUSER, f"create tablespace small location '{disk.tablespace}'")
    await database.execute_as(SUPERUSER, "grant create on tablespace small to public")
    await database.make_view()
    for name, places in (("blocking", "tablespace small"), ("concurrent", "")):
        await database.execute_as(
            APP_OWNER, f"create materialized view {name} {places} as select id, repeat('x', 1900) as text from mv_base"
        )
    await database.execute_as(APP_OWNER, "create unique index on concurrent (id)")
    await database.execute_as(SUPERUSER, f"alter role {MV_OPERATOR} set temp_tablespaces = small")
    await database.execute_as(APP_OWNER, "insert into mv_base select n, 'a', n from generate_series(4, 4000) n")
    for view in (public("blocking"), public("concurrent")):
        disk.fill(leaving=ROOM)
        before = disk.free
        assert before == ROOM
        failure(await refresh(database, view), Reason.SERVER_RESOURCES, "53100")
        assert await rows(database, view) == [1, 2, 3]
        assert disk.free == before
        disk.clear()
        assert (await refresh(database, view)).outcome is SUCCESS
        assert await rows(database, view) == [*range(1, 4001)]
    full = re.findall(r"ERROR: .* file \"(\w+)/.*: No space left on device", database.server.log_text())
    assert full == ["pg_tblspc"] * 2


async def test_a_write_that_is_cut_short(start_server: Callable[..., Databases]) -> None:
    """The run's own process may write so much to a file and no more.

    On 15: later versions reserve the room first, and tell this limit of the reservation as another error. More than a
    WAL segment's 16 MiB: a full disk for WAL too stops the whole server, which is another test.
    """
    async with start_server(version=15).lend("ledger") as database:
        gated = await GatedView.make(database)
        await database.execute_as(
            APP_OWNER,
            """
            create materialized view large as select id, repeat('x', 1900) as text
              from gated_plain_base, public.gated_wait() as waited(n);
            insert into gated_plain_base select n, 'a', n from generate_series(10, 12000) n
            """,
        )
        large = public("large")
        await gated.shut()
        running = asyncio.create_task(refresh(database, large))
        pid = await gated.reached()
        limit_process(pid, f"--fsize={(17 << 20) + 4096}")
        await gated.open()
        failure(await running, Reason.SERVER_RESOURCES, "53100")
        assert await rows(database, large) == [1, 2, 3]
        assert (await refresh(database, large)).outcome is SUCCESS


async def test_a_server_without_memory_for_the_query(start_server: Callable[..., Databases]) -> None:
    async with start_server(version=18).lend("ledger") as database:
        await run_out_of_memory(database)


async def run_out_of_memory(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(
        APP_OWNER,
        "create materialized view large as select length(string_agg(repeat('x', 1000000), '')) as id"
        " from generate_series(1, (select max(v) from mv_base)) where true;",
    )
    postmaster = psutil.Process(database.server.pid)
    limit_process(postmaster.pid, f"--as={postmaster.memory_info().vms + (100 << 20)}")
    await database.execute_as(APP_OWNER, "update mv_base set v = 500 where id = 1")
    failure(await refresh(database, public("large")), Reason.SERVER_RESOURCES, "53200")
    assert await rows(database, public("large")) == [30_000_000]
    await database.execute_as(APP_OWNER, "update mv_base set v = 31 where id = 1")
    assert (await refresh(database, public("large"))).outcome is SUCCESS
    assert (await refresh(database, view)).outcome is SUCCESS


async def test_a_server_that_has_no_connection_left(start_server: Callable[..., Databases]) -> None:
    settings = {"max_connections": 12, "superuser_reserved_connections": 3, "max_wal_senders": 0}
    async with start_server(version=18, settings=settings).lend("ledger") as database:
        view = await database.make_view()
        taken = [await database.connect(APP_OWNER) for _ in range(8)]
        failure(await refresh(database, view), Reason.SERVER_BUSY, "53300")
        for connection in taken:
            await connection.close()
        await settled(lambda: clients(database), 2)
        assert (await refresh(database, view)).outcome is SUCCESS


async def clients(database: Database) -> object:
    return await database.value_as(
        SUPERUSER, "select count(*) from pg_stat_activity where backend_type = 'client backend'"
    )
