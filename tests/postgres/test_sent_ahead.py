"""BEGIN goes out together with the statement after it: a round trip less for each run over a kept connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.database import APP_OWNER
from tests.postgres.test_pool import runs_over
from tests.proxy import Proxy
from tests.refreshes import TENANT, public, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.statements import name_of
from matview_operator.api.view import Concurrently

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.database import Database

pytestmark = pytest.mark.parametrize("databases", [18], indirect=True)

BEGUN = b"C\0\0\0\x0aBEGIN\0"
READY = b"Z\0\0\0\x05T"


class Relay(Proxy):
    """Hands the server's answers on as they are, until it is told to do otherwise."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.asked = b""
        """All that the client has sent."""
        self.gate = asyncio.Event()
        self.gate.set()
        """While it is not set, the client hears nothing."""
        self.bit_by_bit = False
        self.instead: dict[bytes, bytes] = {}
        """What it hears once in the place of other words."""

    async def _carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(self._answer(server, to_client))
        try:
            while asked := await client.read(65_536):
                self.asked += asked
                to_server.write(asked)
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            to_server.close()

    async def _answer(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while said := await server.read(65_536):
            await self.gate.wait()
            for piece in self._pieces(said):
                to_client.write(piece)
                await to_client.drain()
                await asyncio.sleep(0)

    def _pieces(self, said: bytes) -> Iterator[bytes]:
        for words in [words for words in self.instead if words in said]:
            said = said.replace(words, self.instead.pop(words), 1)
        step = 1 if self.bit_by_bit else len(said)
        for at in range(0, len(said), step):
            yield said[at : at + step]


async def test_the_server_is_asked_for_the_locks_before_it_has_answered_begin(database: Database) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        await runs.backend()
        way.asked = b""
        way.gate.clear()
        run = asyncio.create_task(runs.backend())
        settings = name_of(queries.SETTINGS_AND_LOCKS).encode()

        async def was_asked() -> bool:
            return settings in way.asked

        await settled(was_asked, True, seconds=1)
        assert way.asked.index(name_of(queries.BEGIN).encode()) < way.asked.index(settings)
        way.gate.set()
        await run


async def test_its_answer_is_known_wherever_the_network_cuts_it(database: Database) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.bit_by_bit = True
        assert [await runs.backend() for _ in range(2)] == [first, first]


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (BEGUN, BEGUN.replace(b"BEGIN", b"BEGUN")),
        (BEGUN, b"N\0\0\0\x0aSLOG\0\0" + BEGUN),
        (BEGUN, b"E\0\0\0\x10C57P01\0Mbye\0\0"),
        (READY, READY.replace(b"T", b"I")),
    ],
    ids=["another tag", "more", "error", "idle"],
)
async def test_a_session_that_says_anything_else_is_used_no_more(
    database: Database, words: bytes, others: bytes
) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.instead[words] = others
        async with asyncio.timeout(10):
            assert await runs.backend() != first


async def test_a_setting_that_the_server_refuses_is_its_runs_failure_alone(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create function loads_plpgsql() returns int language plpgsql as 'begin return 1; end';"
        "create materialized view loads as select public.loads_plpgsql() as n",
    )
    setting = {**TENANT, "tenant_setting": "plpgsql.variable_conflict", "concurrently": Concurrently.NEVER}
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        kept = await runs.backend()
        for tenant, outcome in (("error", RefreshOutcome.SUCCESS), ("none such", RefreshOutcome.FAILED)):
            result = await runs.refresh(public("loads"), **setting | {"tenant_id": tenant})
            assert result.outcome is outcome, result.error_message
        assert "variable_conflict" in str(result.error_message)
        assert proxy.connections == 2
        assert await runs.backend() == kept
