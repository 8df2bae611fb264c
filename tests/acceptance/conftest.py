"""One PostgreSQL server for the tests of the command line, and a database for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.postgres import PostgresServer
from tests.databases import Databases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.database import Database


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The databases of a server that all tests here share."""
    with PostgresServer.start(directory=tmp_path_factory.mktemp("postgresql"), in_memory=True) as server:
        yield Databases(server)


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    """An empty database with the ledger, which mv_operator may use."""
    async with databases.lend("ledger") as made:
        yield made
