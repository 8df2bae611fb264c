"""Real PostgreSQL servers, and a database per test.

`server` and what is made of it come in three versions; a test for one says
`@pytest.mark.parametrize("databases", [18], indirect=True)`. A version that is not installed fails its tests.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sandbox.pgbinaries import VERSIONS
from sandbox.pgbouncer import PgBouncer
from sandbox.postgres import PostgresServer
from tests.databases import Databases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sandbox.postgres import Setting
    from tests.conftest import ServerLogs
    from tests.database import Database

_SETTINGS: dict[str, Setting] = {"log_statement": "all", "log_lock_waits": True, "max_wal_size": "256MB"}


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Databases]]:
    """Servers by version, each started when first asked for and used by all tests: do not halt or restart them."""
    running: dict[int, Databases] = {}
    with ExitStack() as stack:

        def server(version: int) -> Databases:
            if version not in running:
                started = PostgresServer.start(
                    version=version,
                    directory=tmp_path_factory.mktemp(f"pg{version}"),
                    settings=_SETTINGS,
                    in_memory=True,
                )
                running[version] = Databases(stack.enter_context(started))
            return running[version]

        yield server


@pytest.fixture
def start_server(
    tmp_path_factory: pytest.TempPathFactory, server_logs: ServerLogs
) -> Iterator[Callable[..., Databases]]:
    """Start servers of the test's own, with PostgresServer's options: `start_server(version=15, tls=True)`."""
    with ExitStack() as stack:

        def start(**options: Any) -> Databases:
            directory = tmp_path_factory.mktemp("own-server")
            options = {"in_memory": True, **options, "settings": {**_SETTINGS, **options.get("settings", {})}}
            server = stack.enter_context(PostgresServer.start(directory=directory, **options))
            server_logs.show(f"own PostgreSQL {server.version}", server.log)
            return Databases(server)

        yield start


@pytest.fixture(params=VERSIONS, ids=lambda version: f"pg{version}")
def databases(
    request: pytest.FixtureRequest, shared_servers: Callable[[int], Databases], server_logs: ServerLogs
) -> Databases:
    """The databases of the shared server of each version."""
    shared = shared_servers(request.param)
    server_logs.show(f"PostgreSQL {request.param}", shared.server.log)
    return shared


@pytest.fixture
def server(databases: Databases) -> PostgresServer:
    """The shared server of each version."""
    return databases.server


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    """An empty database with the ledger, which mv_operator may use."""
    async with databases.lend("ledger") as made:
        yield made


@pytest.fixture
async def bare_database(databases: Databases) -> AsyncIterator[Database]:
    """An empty database without the ledger."""
    async with databases.lend("bare") as made:
        yield made


@pytest.fixture
async def reference_database(databases: Databases) -> AsyncIterator[Database]:
    """The reference application without data, and the ledger, which mv_operator and analytics_operator may use."""
    async with databases.lend("reference") as made:
        yield made


@pytest.fixture
def pgbouncer(tmp_path_factory: pytest.TempPathFactory, server_logs: ServerLogs) -> Iterator[Callable[..., PgBouncer]]:
    """Start PgBouncer in front of a database's server: `database.url(via=pgbouncer(database, pool_size=1))`."""
    with ExitStack() as stack:

        def start(database: Database, **options: Any) -> PgBouncer:
            bouncer = PgBouncer.start(
                server=database.server,
                directory=tmp_path_factory.mktemp("pgbouncer"),
                users=database.passwords,
                **options,
            )
            server_logs.show("PgBouncer", bouncer.log)
            return stack.enter_context(bouncer)

        yield start
