"""Readers first: a refresh that would make them wait looks before it queues, queues briefly, and says who was there."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sandbox.pgbinaries import VERSIONS
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, OTHER_TENANT
from tests.proxy import Fault, Proxy
from tests.refreshes import GatedView, failure, public, refresh, settled

from matview_operator import RefreshOutcome
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.view import Concurrently
from matview_operator.domain.lock_keys import lock_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database import Connection, Database
    from tests.databases import Databases

SUCCESS, INTERRUPTED = RefreshOutcome.SUCCESS, RefreshOutcome.INTERRUPTED
CANARY = "r0w-of-somebody"
BRIEFLY: dict[str, Any] = {"timeout_seconds": 2, "lock_timeout_millis": 100}
"""Half a second of looking, and then a short time in the queue."""
HOSTILE = "psql\x1b[31m\n\u202e" + "x" * 100
WATCHER = "watcher"
"""May refresh as mv_operator may, and see what others do."""


async def reader(database: Database, *, role: str = APP_OWNER, name: str = "report") -> Connection:
    """Open a transaction that has read the view and goes on."""
    session = await database.connect(role)
    await session.execute("select set_config('application_name', $1, false)".replace("$1", f"E'{escaped(name)}'"))
    await session.execute(f"begin; select '{CANARY}', * from mv")
    return session


def escaped(text: str) -> str:
    return "".join(f"\\U{ord(character):08x}" for character in text)


async def test_a_blocking_refresh_steps_back_while_the_view_is_read(database: Database) -> None:
    view = await database.make_view(unique=False)
    session = await reader(database)
    task = asyncio.create_task(refresh(database, view))
    # It never stands in the queue, where it would make other readers wait.
    other = await database.connect(APP_OWNER)
    await other.execute("set lock_timeout = '50ms'")
    for _ in range(10):
        await other.fetch("select * from mv")
        await asyncio.sleep(0.01)
    assert not task.done()
    await session.execute("commit")
    assert (await task).outcome is SUCCESS


async def test_a_reader_that_comes_meanwhile_waits_no_longer_than_the_lock_timeout(database: Database) -> None:
    view = await database.make_view(unique=False)
    await reader(database)
    other = await database.connect(APP_OWNER)
    # The bound that is promised, and as much again for a busy machine.
    await other.execute("set lock_timeout = '2s'")
    task = asyncio.create_task(refresh(database, view, timeout_seconds=4, lock_timeout_millis=1000))
    longest = 0.0
    while not task.done():
        before = time.monotonic()
        await other.fetch("select * from mv")
        longest = max(longest, time.monotonic() - before)
        await asyncio.sleep(0.02)
    failure(await task, Reason.LOCK_TIMEOUT)
    # It did queue, once.
    assert longest > 0.3


async def test_who_was_in_the_way_is_told_and_never_what_he_asked(database: Database) -> None:
    view = await database.make_view(unique=False)
    await database.execute_as(APP_OWNER, f"grant select on mv to {OTHER_TENANT}")
    await database.allow_login(WATCHER)
    await database.execute_as(SUPERUSER, f"grant {APP_OWNER}, pg_read_all_stats to {WATCHER}")
    session = await reader(database, role=OTHER_TENANT, name=HOSTILE)
    in_the_way = f'In the way: pid {session.get_server_pid()} "psql'

    plain = await refresh(database, view, **BRIEFLY)
    failure(plain, Reason.LOCK_TIMEOUT, "55P03", in_the_way, "(reads)", "With a unique index")
    seeing = await refresh(database, view, role=WATCHER, **BRIEFLY)
    failure(seeing, Reason.LOCK_TIMEOUT, in_the_way, "(idle in transaction, since 2", "Z, reads)")

    for result in (plain, seeing):
        assert result.error_message
        assert CANARY not in result.error_message
        assert result.error_message.isprintable()
        assert len(result.error_message) < 400
    (row,) = await database.fetch_as(SUPERUSER, "select message from matview_ops.refresh_run where attempt = 1 limit 1")
    assert in_the_way in row["message"]


async def test_who_has_a_table_that_the_view_reads_is_told_too(database: Database) -> None:
    view = await database.make_view()
    session = await database.connect(APP_OWNER)
    await session.execute("begin; lock table mv_base in access exclusive mode")
    result = await refresh(database, view, lock_timeout_millis=100)
    failure(result, Reason.LOCK_TIMEOUT, f"pid {session.get_server_pid()}", "keeps everybody out, on public.mv_base")


async def test_who_has_the_refresh_lock_is_told(database: Database) -> None:
    view = await database.make_view()
    session = await database.connect(OTHER_TENANT)
    await session.execute("set application_name = 'squatter'")
    for keys in (lock_keys("mv", "some tenant"), lock_keys("mv")):
        await session.execute(f"select pg_advisory_lock({keys.view_key}, {keys.tenant_key})")
    result = await refresh(database, view)
    assert (result.outcome, result.error_type) == (RefreshOutcome.SKIPPED_LOCK_HELD, Reason.LOCK_HELD)
    assert result.error_message
    assert f'refresh lock: pid {session.get_server_pid()} "squatter".' in result.error_message


async def test_a_vacuum_by_hand_is_not_disturbed_and_told(database: Database) -> None:
    view = await database.make_view(rows=20_000)
    session = await database.connect(APP_OWNER)
    await session.execute(
        "set application_name = 'nightly'; set vacuum_cost_delay = '100ms'; set vacuum_cost_limit = 1"
    )
    vacuum = asyncio.create_task(session.execute("vacuum (freeze) mv"))
    await settled(lambda: vacuumed(database), "mv")
    failure(
        await refresh(database, view, lock_timeout_millis=100),
        Reason.LOCK_TIMEOUT,
        f'pid {session.get_server_pid()} "nightly"',
        "VACUUM, ANALYZE or an index being built",
    )
    assert not vacuum.done()
    await database.execute_as(SUPERUSER, f"select pg_cancel_backend({session.get_server_pid()})")
    await asyncio.gather(vacuum, return_exceptions=True)


async def vacuumed(database: Database) -> object:
    return await database.value_as(
        SUPERUSER,
        "select max(relid::regclass::text) from pg_stat_progress_vacuum where datname = current_database()",
    )


async def test_an_autovacuum_of_the_view_gives_way_and_a_prepared_transaction_does_not(
    start_server: Callable[..., Databases],
) -> None:
    settings = {"autovacuum_naptime": "1s", "max_prepared_transactions": 1}
    servers = [start_server(version=version, settings=settings) for version in VERSIONS]
    await asyncio.gather(*(vacuum_automatically(server) for server in servers))


async def vacuum_automatically(server: Databases) -> None:
    async with server.lend("bare") as database:
        views = {"always": Concurrently.ALWAYS, "never": Concurrently.NEVER}
        await asyncio.gather(*(meet_autovacuum(database, name, mode) for name, mode in views.items()))
        assert database.server.log_text().count("canceling autovacuum task") >= len(views)

        view = await database.make_view()
        await database.execute_as(APP_OWNER, "begin; select * from mv; prepare transaction 'left behind'")
        result = await refresh(database, view, concurrently=Concurrently.NEVER, **BRIEFLY)
        await database.execute_as(APP_OWNER, "rollback prepared 'left behind'")
        failure(result, Reason.LOCK_TIMEOUT, "In the way: a prepared transaction (reads)")


async def meet_autovacuum(database: Database, name: str, concurrently: Concurrently) -> None:
    """Refresh a view at the very moment when a slow autovacuum works on it."""
    owner = await database.connect(APP_OWNER)
    await owner.execute(
        f"""
        create table {name}_base as select n as id, 0 as v from generate_series(1, 20000) n;
        create materialized view {name} as table {name}_base;
        create unique index on {name} (id);
        alter materialized view {name} set (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
          autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
        update {name}_base set v = 1;
        """
    )
    # Dead rows, for autovacuum to find.
    assert (await refresh(database, public(name))).mode is RefreshMode.CONCURRENT

    async def is_vacuumed() -> object:
        return await owner.fetchval(
            "select count(*) from pg_locks where relation = $1::text::regclass and mode = 'ShareUpdateExclusiveLock'",
            name,
        )

    await settled(is_vacuumed, 1, seconds=20)
    result = await refresh(database, public(name), concurrently=concurrently, timeout_seconds=8)
    assert result.outcome is SUCCESS, result.error_message


async def test_a_deadlock_is_told_as_one(database: Database) -> None:
    """The other session waits for the view, and the refresh then for a table that the other one has."""
    gated = await GatedView.make(database)
    await database.execute_as(
        APP_OWNER,
        """
        create table taken (id int);
        create function then_taken(n int) returns int language plpgsql volatile as
          $$ begin return n + (select count(*) from public.taken); end $$;
        create materialized view mv as
          select id, public.then_taken(waited.n) from public.gated_plain_base, public.gated_wait() as waited(n);
        """,
    )
    await gated.shut()
    task = asyncio.create_task(refresh(database, public("mv")))
    await gated.reached()
    other = await database.connect(SUPERUSER)
    # The refresh is to be the one that finds out.
    await other.execute("set deadlock_timeout = '60s'; begin; lock table taken in access exclusive mode")
    waiting = asyncio.create_task(other.execute("refresh materialized view mv"))
    await settled(lambda: database.value_as(SUPERUSER, "select count(*) from pg_locks where not granted"), 1)
    await gated.open()
    failure(await task, Reason.DEADLOCK, "40P01")
    await waiting
    await other.execute("rollback")
    assert (await refresh(database, public("mv"))).outcome is SUCCESS


async def test_a_client_that_stops_before_commit_loses_the_view_after_ten_seconds(
    shared_servers: Callable[[int], Databases],
) -> None:
    async with AsyncExitStack() as stack:
        # One after the other: a template's migration is not made to run beside another one.
        lent = [await stack.enter_async_context(shared_servers(version).lend("ledger")) for version in VERSIONS]
        await asyncio.gather(*(stop_before_commit(database) for database in lent))


async def stop_before_commit(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(APP_OWNER, "delete from mv_base")
    # As a client that is stopped when REFRESH and the claim have just ended, and never says another word.
    stop = Fault(statement="with claim", loses="answer", silent=True)
    async with Proxy(database.server.port, stop) as proxy:
        task = asyncio.create_task(
            refresh(database, view, via=proxy, concurrently=Concurrently.NEVER, timeout_seconds=60)
        )
        await stop.happened.wait()
        before = time.monotonic()
        assert await rivals(database) == 1
        # Everybody who reads the view stands still meanwhile, and gets the old rows then.
        assert await database.value_as(APP_OWNER, "select count(*) from mv") == 3
        assert 5 < time.monotonic() - before < 15
        await proxy.cut()
        assert (await task).outcome is INTERRUPTED
    assert (await refresh(database, view)).outcome is SUCCESS


async def rivals(database: Database) -> object:
    """How many runs have the refresh lock."""
    return await database.value_as(
        SUPERUSER,
        "select count(distinct pid) from pg_locks where locktype = 'advisory' and granted and database = "
        "(select oid from pg_database where datname = current_database()) and pid in "
        "(select pid from pg_stat_activity where usename = $1)",
        MV_OPERATOR,
    )
