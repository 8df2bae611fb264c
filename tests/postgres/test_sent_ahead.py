"""Statements that go out together with the one after them: three round trips make a run over a kept connection."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.database import APP_OWNER
from tests.postgres.test_pool import runs_over
from tests.proxy import Proxy
from tests.refreshes import TENANT, GatedView, ended, failure, ledger_rows, public, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sql.claim import RECHECK_AND_CLAIM
from matview_operator.adapters.postgres.sql.lookup import LOOKUP_WITH_LEDGER
from matview_operator.adapters.postgres.statements import name_of
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.database import Database

pytestmark = pytest.mark.parametrize("databases", [18], indirect=True)

BEGUN = b"C\0\0\0\x0aBEGIN\0"
LOCKED = b"\0\0\0\4true"
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


async def test_the_view_is_looked_up_before_the_server_has_answered_begin(database: Database) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        await runs.backend()
        way.asked = b""
        way.gate.clear()
        run = asyncio.create_task(runs.backend())
        lookup = name_of(LOOKUP_WITH_LEDGER[False, False]).encode()

        async def was_asked() -> bool:
            return lookup in way.asked

        await settled(was_asked, True, seconds=1)
        order = [way.asked.index(name_of(text).encode()) for text in (queries.BEGIN, queries.SETTINGS_AND_LOCKS)]
        assert order == sorted(order)
        assert order[-1] < way.asked.index(lookup)
        way.gate.set()
        await run


async def test_the_claim_is_there_when_refresh_ends_and_waits_for_no_round_trip(database: Database) -> None:
    gated = await GatedView.make(database)
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        await gated.shut()
        run = asyncio.create_task(runs.refresh(gated.view))
        await gated.reached()
        assert name_of(RECHECK_AND_CLAIM).encode() in way.asked.rpartition(b"refresh materialized view")[2]
        await gated.open()
        assert ended(await run) == (RefreshOutcome.SUCCESS, None)


async def test_what_the_server_does_not_keep_yet_is_read_by_it_after_begin_only(database: Database) -> None:
    # Before the settings an owner of the database may have put operators of his own in the way.
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        await runs.backend()
        way.asked = b""
        await runs.backend(due_at=datetime.now(UTC))
        parse = name_of(LOOKUP_WITH_LEDGER[True, False]).encode() + b"\0\nselect c.oid"
        assert way.asked.index(name_of(queries.SETTINGS_AND_LOCKS).encode()) < way.asked.index(parse)


async def test_begin_does_not_come_after_what_the_server_has_to_read_first(database: Database) -> None:
    # To read a statement takes a snapshot, after which BEGIN may not ask for another isolation.
    session = await Session.open(parse_url(database.url()))
    for statement in (queries.PATH, queries.IDENTITY):
        await session.begin(at_one_snapshot=True, before=statement)
        await session.rows(statement)
        assert session.in_transaction
        await session.rollback()
    await session.close()


async def test_what_refresh_says_is_its_own_though_the_claim_is_sent_with_it(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create table divisors as select 0 as n; create materialized view failing as select 1 / n as n from divisors"
        " with no data;",
    )
    async with runs_over(database) as runs:
        kept = await runs.backend()
        result = await runs.refresh(public("failing"))
        failure(result, RefreshReason.VIEW_QUERY_FAILED)
        await database.execute_as(APP_OWNER, "update divisors set n = 1")
        assert ended(await runs.refresh(public("failing"))) == (RefreshOutcome.SUCCESS, RefreshReason.FIRST_POPULATE)
        assert await runs.backend() != kept
    assert [row[:2] for row in await ledger_rows(database)][1:3] == [
        ("FAILED", "ViewQueryFailed"),
        ("SUCCESS", "FirstPopulate"),
    ]


async def test_a_refresh_that_may_not_read_is_not_taken_for_a_ledger_that_is_gone(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        "create table hidden as select 1 as n; create materialized view reading as select n from hidden;"
        " revoke select on hidden from app_owner;",
    )
    async with Proxy(database.server.port) as proxy, runs_over(database, via=proxy) as runs:
        await runs.backend()
        del proxy.statements[:]
        failure(await runs.refresh(public("reading")), RefreshReason.PERMISSION_DENIED, "hidden")
        assert sum("as bookkeeping" in text for text in proxy.statements) == 0, "the ledger was asked for"
    assert [row[:2] for row in await ledger_rows(database)][1:] == [("FAILED", "PermissionDenied")]


async def test_a_view_whose_lock_another_run_has_is_left_alone_though_it_was_looked_up(database: Database) -> None:
    gated = await GatedView.make(database)
    async with runs_over(database) as runs, runs_over(database) as others:
        await runs.backend()
        await gated.shut()
        first = asyncio.create_task(others.refresh(gated.view))
        pid = await gated.reached()
        result = await runs.refresh(gated.view)
        assert ended(result) == (RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD)
        assert str(pid) in str(result.error_message)
        await gated.open()
        assert (await first).outcome is RefreshOutcome.SUCCESS
        assert ended(await runs.refresh(gated.view)) == (RefreshOutcome.SUCCESS, None)


async def test_its_answer_is_known_wherever_the_network_cuts_it(database: Database) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.bit_by_bit = True
        assert [await runs.backend() for _ in range(2)] == [first, first]


async def test_a_notice_in_between_does_no_harm(database: Database) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.instead[BEGUN] = b"N\0\0\0\x0aSLOG\0\0" + BEGUN
        assert await runs.backend() == first
        assert not way.instead


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (BEGUN, BEGUN.replace(b"BEGIN", b"BEGUN")),
        (BEGUN, b"D\0\0\0\6\0\0" + BEGUN),
        (LOCKED, LOCKED[:-4]),
        (BEGUN, b"E\0\0\0\x10C57P01\0Mbye\0\0"),
        (READY, READY.replace(b"T", b"I")),
    ],
    ids=["another tag", "more", "no end", "error", "idle"],
)
async def test_a_session_that_says_anything_else_is_used_no_more(
    database: Database, words: bytes, others: bytes
) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.instead[words] = others
        async with asyncio.timeout(10):
            assert await runs.backend() != first


@pytest.mark.parametrize("others", [b"\0\0\0\4tr\xff\xfe", b"\x7f\0\0\4true"], ids=["no text", "no end"])
async def test_a_row_without_sense_is_no_lock(database: Database, others: bytes) -> None:
    async with Relay(database.server.port) as way, runs_over(database, via=way) as runs:
        first = await runs.backend()
        way.instead[LOCKED] = others
        assert (await runs.refresh(public("who"))).error_type is RefreshReason.CONNECTION_LOST
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
