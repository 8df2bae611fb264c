"""Fault 11: the operator dies at each of its boundaries, and another one takes over from what it left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from sandbox.controlplane import Cluster
from sandbox.operator_process import NAMESPACE, SERVICE_ACCOUNT, OperatorProcess
from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, database, policy
from tests.database import APP_OWNER, Database
from tests.databases import Databases
from tests.listener import stop_listening
from tests.proxy import Fault, Proxy
from tests.refreshes import settled

# Filled by the view's own query: what stands there has committed, once for each transaction.
COMMITTED = """
create table committed (xid xid8 primary key default pg_catalog.pg_current_xact_id());
create function note() returns int language plpgsql as
  $$ begin insert into public.committed default values; return 1; end $$;
create table base (id int);
insert into base values (1), (2);
create materialized view mv as select id, noted from base, note() noted;
create unique index on mv (id);
truncate committed;
"""
LOCKING = "select pg_catalog.set_config('statement_timeout'"
POLICIES = ("ledger", "bare")
LOCK_SECONDS = 1.0
SLACK_SECONDS = 1.0
"""For a machine that does other things."""


class Relay:
    """What leads to the API server, until it is frozen: then nothing passes, and nobody is told."""

    def __init__(self, url: str) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._passes = asyncio.Event()
        self._passes.set()
        self._pumps: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yield its URL."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        yield f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        await stop_listening(listener)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def freeze(self) -> None:
        self._passes.clear()

    def renew(self) -> None:
        """Lose what is under way, and let new connections pass."""
        for pump in self._pumps:
            pump.cancel()
        self._passes.set()

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self._address)
        for source, target in ((client, to_server), (server, to_client)):
            task = asyncio.create_task(self._pump(source, target))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(65_536):
                await self._passes.wait()
                target.write(chunk)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()


@dataclass(kw_only=True)
class Succession:
    """Operators, one after another, before two databases: one has the ledger, the other has none."""

    tenants: dict[str, Tenant]
    proxies: dict[str, Proxy]
    relay: Relay
    start: Callable[[], OperatorProcess]
    operator: OperatorProcess = field(init=False)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))

    async def successor(self) -> None:
        """Kill the operator at work; have another one take over."""
        await asyncio.to_thread(self.operator.kill)
        for tenant in self.tenants.values():
            await settled(partial(locks, tenant.database), 0, seconds=LOCK_SECONDS + SLACK_SECONDS)
        self.relay.renew()
        self.operator = await asyncio.to_thread(self.start)

    async def ask(self, token: str) -> None:
        for name, tenant in self.tenants.items():
            await asyncio.to_thread(tenant.request, name, token)

    async def answered(self, token: str) -> dict[str, Json]:
        return {
            name: await asyncio.to_thread(
                tenant.wait, name, lambda status: status.get("lastHandledRequest") == token, what=f"answered {token}"
            )
            for name, tenant in self.tenants.items()
        }

    async def told(self, reason: str) -> None:
        """Wait until each policy has an event for this reason."""
        for name, tenant in self.tenants.items():
            await settled(partial(events, tenant, name, reason), expected=True, seconds=20)

    def strike(self, statement: str, **what: Any) -> list[Fault]:
        """Have the next run on each database meet a fault."""
        faults = {name: Fault(statement=statement, **what) for name in POLICIES}
        for name, fault in faults.items():
            self.proxies[name].add(fault)
        return [*faults.values()]

    async def committed(self) -> dict[str, int]:
        """How many refreshes have committed on each database since this was last asked."""
        before = self.counts
        self.counts = {name: await committed(tenant.database) for name, tenant in self.tenants.items()}
        return {name: count - before[name] for name, count in self.counts.items()}


async def committed(database: Database) -> int:
    count = await database.value_as(SUPERUSER, "select count(*) from committed")
    assert isinstance(count, int)
    return count


async def locks(database: Database) -> object:
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
    )


async def events(tenant: Tenant, name: str, reason: str) -> bool:
    return reason in [event["reason"] for event in await asyncio.to_thread(tenant.events, name)]


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def succession(
    installed: Cluster, namespace: str, databases: Databases, tmp_path: Path, processes: ExitStack
) -> AsyncIterator[Succession]:
    async with databases.lend("ledger") as with_ledger, databases.lend("bare") as without:
        tenants = {
            name: Tenant(cluster=installed, namespace=namespace, database=made)
            for name, made in zip(POLICIES, (with_ledger, without), strict=True)
        }
        kubeconfig = installed.service_account_kubeconfig(
            namespace=NAMESPACE, name=SERVICE_ACCOUNT, path=tmp_path / "kubeconfig"
        )
        document = yaml.safe_load(kubeconfig.read_text())
        entry = document["clusters"][0]["cluster"]
        relay = Relay(entry["server"])
        async with (
            relay.serving() as entry["server"],
            Proxy(databases.server.port) as one,
            Proxy(databases.server.port) as two,
        ):
            kubeconfig.write_text(yaml.safe_dump(document))
            proxies = dict(zip(POLICIES, (one, two), strict=True))
            for name, tenant in tenants.items():
                await tenant.database.execute_as(APP_OWNER, COMMITTED)
                tenant.apply(
                    tenant.secret(name, port=str(proxies[name].port)),
                    database(name),
                    policy(name, "mv", databaseRef={"name": name}),
                )
            numbers = iter(range(100))

            def start() -> OperatorProcess:
                process = OperatorProcess.start(
                    control_plane=installed,
                    directory=tmp_path / f"operator-{next(numbers)}",
                    namespaces=[namespace],
                    env={"KUBECONFIG": str(kubeconfig)},
                )
                processes.enter_context(process)
                process.wait_ready()
                return process

            made = Succession(tenants=tenants, proxies=proxies, relay=relay, start=start)
            made.operator = await asyncio.to_thread(start)
            yield made
            await asyncio.to_thread(made.operator.kill)


ONCE = {"ledger": 1, "bare": 1}
ONE_EXTRA = {"ledger": 1, "bare": 2}


@pytest.mark.timeout(240)
async def test_fault_11_an_operator_killed_at_any_boundary_repeats_nothing_with_the_ledger_and_one_refresh_without(
    succession: Succession,
) -> None:
    # After the event; before it no slot had ended, so there is one.
    await succession.ask("event")
    await succession.told("Refreshed")
    await succession.successor()
    await succession.answered("event")
    # After the status.
    await succession.ask("status")
    await succession.answered("status")
    await succession.successor()
    # After the locks, and after REFRESH: what was begun is rolled back, and done anew.
    assert await succession.committed() == {"ledger": 2, "bare": 2}
    for token, statement in (("lock", LOCKING), ("refresh", "refresh"), ("commit", "commit")):
        faults = succession.strike(statement, loses="answer", held=True)
        await succession.ask(token)
        for fault in faults:
            await fault.happened.wait()
        await succession.successor()
        ended = await succession.answered(token)
        assert [status["views"][0]["outcome"] for status in ended.values()] == ["SUCCESS", "SUCCESS"]
        assert (ended["ledger"]["views"][0].get("reason") == "Recovered") is (token == "commit")
        # After COMMIT, whose answer nobody lived to hear.
        assert await succession.committed() == (ONE_EXTRA if token == "commit" else ONCE), token
    # Before the status: all is done, and the API server cannot be told any more.
    faults = succession.strike("commit", loses="request", until=asyncio.Event())
    await succession.ask("write")
    for fault in faults:
        await fault.happened.wait()
    succession.relay.freeze()
    for fault in faults:
        assert fault.until is not None
        fault.until.set()
    await settled(lambda: done(succession.operator), 2, seconds=20)
    await succession.successor()
    ended = await succession.answered("write")
    assert ended["ledger"]["views"][0]["reason"] == "Recovered"
    assert await succession.committed() == ONE_EXTRA
    rows = await succession.tenants["ledger"].database.fetch_as(
        SUPERUSER, "select slot_id from matview_ops.refresh_run where settles order by run_id"
    )
    assert [row["slot_id"] for row in rows] == [
        f"request:{token}" for token in ("event", "status", "lock", "refresh", "commit", "write")
    ]


async def done(operator: OperatorProcess) -> int:
    """How many runs of the last request it has logged as done."""
    lines = [line for line in operator.log_text().splitlines() if '"correlation_id": "write"' in line]
    return sum('"outcome": "SUCCESS"' in line for line in lines)
