"""One connection, used by one run at a time: the server's facts, its clock, and explicit transactions."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from matview_operator.adapters.postgres.facts import server_facts
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.sql.leftovers import DISCARD_SEQUENCES
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.adapters.postgres.statements import NOT_KEPT, Statements
from matview_operator.adapters.postgres.wire.connection import CONNECT_SECONDS, close, connect
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncpg.prepared_stmt import PreparedStatement

    from matview_operator.adapters.postgres.wire.authentication import Row
    from matview_operator.domain.connection import ConnectionTarget
    from matview_operator.domain.server import ServerFacts

_CLOCK_SAMPLES = 3
_CLOCK_STEP_SECONDS = 0.05
"""By less than that a clock that is being corrected gently drifts in a session's life."""
_PROOF_SECONDS = 2.0
"""For the first answer of a session that was idle; connecting anew takes less."""


class SessionLost(Exception):
    """The session was idle and is of no use any more. Nothing was done: ask again over another one."""


class Session:
    """A connection of ours. All statements go by the extended protocol, one at a time."""

    def __init__(self, connection: asyncpg.Connection[Row]) -> None:
        self._connection = connection
        self._statements = Statements(connection)
        self._is_proven = True
        self._offset: timedelta | None = None
        self._offset_base = 0.0
        self.facts: ServerFacts
        self.server_started_at: datetime
        """By the server's clock; another server, or the same after a restart, has another one."""
        self.is_direct = False
        """Whether the server's session is ours alone, so that nobody is in the way if we keep something in it."""
        self._may_hold_locks = False
        """Whether a view's query ran of which nobody has said that it left none."""
        self._may_know_sequences = False
        """Whether one ran since the sequences' values were discarded."""
        self._best_sample: tuple[timedelta, timedelta]

    @classmethod
    async def open(cls, target: ConnectionTarget, *, seconds: float = CONNECT_SECONDS) -> Self:
        """Connect and read the server's facts. Raises Problem."""
        session: Self | None = None
        try:
            async with asyncio.timeout(seconds):
                session = cls(await connect(target, timeout=seconds))
                await session.read_facts()
                if session.is_direct:
                    session._statements.keep()
        except asyncio.CancelledError:
            if session is not None:
                await session.close()
            raise
        except Exception as error:  # whatever it was: no connection is left behind, and the reason is told
            if session is not None:
                await session.close()
            raise problem_of(error, connecting=True) from error
        return session

    async def read_facts(self) -> ServerFacts:
        """Ask (again) who the server is and whether the ledger can be used."""
        before = datetime.now(UTC)
        row = await self.row(
            queries.SERVER, queries.LEDGER_WRITTEN + queries.LEDGER_GENERATED, queries.LEDGER_GENERATED
        )
        assert row is not None  # a select without from has one row
        self._best_sample = _sample(before, row.now)
        self.server_started_at = row.started_at
        # PgBouncer and its like invent the number that the driver was told at the start.
        self.is_direct = row.backend_pid == self._connection.get_server_pid()
        self.facts = server_facts(row)
        return self.facts

    async def clock_offset(self) -> timedelta:
        """Server time minus operator time, from the shortest of three round trips.

        Measured once per session, and again when the operator's clock was set meanwhile.
        """
        base = time.time() - time.monotonic()
        if self._offset is None or abs(base - self._offset_base) > _CLOCK_STEP_SECONDS:
            known = [self._best_sample] if self._offset is None else []
            while len(known) < _CLOCK_SAMPLES:
                before = datetime.now(UTC)
                row = await self.row(queries.CLOCK)
                assert row is not None  # a select without from has one row
                known.append(_sample(before, row.now))
            self._offset, self._offset_base = min(known)[1], base
        return self._offset

    async def row(self, statement: str, *arguments: Any) -> Row | None:
        """Run one of our statements and return its first row, if any."""
        return next(iter(await self.rows(statement, *arguments)), None)

    async def rows(self, statement: str, *arguments: Any) -> list[Row]:
        """Run one of our statements and return its rows; outside a transaction in one of its own, which only reads."""
        if self.in_transaction or self._statements.have_ahead or statement in queries.PATHLESS:
            return await self._rows(statement, *arguments)
        await self._rows(queries.ASK)
        try:
            await self._rows(queries.PATH)
            rows = await self._rows(statement, *arguments)
        except asyncpg.PostgresError:
            # Whatever else it was, the session is of no use any more.
            if not self.closed:
                await self.rollback()
            raise
        await self.rollback()
        return rows

    async def _rows(self, statement: str, *arguments: Any) -> list[Row]:
        if self._is_proven:
            return await self._statements.fetch(statement, *arguments)
        begins = self._statements.have_ahead
        try:
            async with asyncio.timeout(_PROOF_SECONDS):
                rows = await self._statements.fetch(statement, *arguments)
        except (TimeoutError, OSError, *queries.DRIVER_ERRORS) as error:
            refused = isinstance(error, asyncpg.PostgresError) and (self.in_transaction or error.sqlstate in NOT_KEPT)
            if not begins or not refused:
                raise SessionLost from None
            # The server has begun, and refuses the statement itself; or it is a pooler, and does not know our names.
            self._is_proven = True
            raise
        if begins and not self.in_transaction:
            raise SessionLost
        self._is_proven = True
        return rows

    def ask_ahead(self, statement: str, *arguments: str | float | None, before: str) -> bool:
        """Have a statement that returns one row sent together with the one after it; `told_ahead` has the row then.

        False if that may not be: then nothing is sent.
        """
        if not self._statements.may_go_ahead(statement, before=before):
            return False
        self._statements.put_ahead(statement, queries.ONE_ROW, arguments)
        return True

    def told_ahead(self, statement: str) -> Mapping[str, str | None]:
        """The row of a statement that was sent ahead, in text."""
        return self._statements.told_ahead(statement)

    @property
    def is_refused_ahead(self) -> bool:
        """Whether what failed last was a statement sent ahead, and not the one that it went out with."""
        return self._statements.is_refused_ahead

    def lent(self) -> None:
        """Use it for another run. Its first statement, which must be BEGIN or a question, may raise SessionLost."""
        self._is_proven = False

    @property
    def needs_reset(self) -> bool:
        """Whether a view's query may have left something in the session.

        Behind a pooler there is no session of ours to clean, and DISCARD ALL would take from others what they prepared.
        """
        return self.is_direct and (not self._statements.are_kept or self._may_hold_locks)

    async def reset(self) -> None:
        """Take that away, and with it what the server keeps for us."""
        self._statements.distrust()
        await self.rows(queries.RESET)
        self._may_hold_locks = self._may_know_sequences = False

    def note_locks(self, found: object, *, own: int) -> None:
        """Take note of how many advisory locks there are at a run's end: see leftovers.py."""
        self._may_hold_locks = found != own

    def distrust(self) -> None:
        """Code that is not ours is about to run as our role: use nothing any more that it could have put in place."""
        self._statements.distrust()

    async def utility(self, statement: str) -> None:
        """Run REFRESH or ANALYZE of a view: a statement whose text is of use once."""
        self._may_hold_locks = self._may_know_sequences = True
        await self._statements.run_once(statement)

    async def refresh(self, statement: str, *, before: str) -> None:
        """Run REFRESH, together with the statement after it where that may be: then readers, who wait for what REFRESH
        has locked, wait for no round trip besides.

        Both leave in one piece: in between, too, the server would wait for us under no timeout but TCP's own.
        """
        if self._statements.may_go_ahead(before=before):
            self._may_hold_locks = self._may_know_sequences = True
            self._statements.put_once_ahead(statement, queries.REFRESHED)
        else:
            await self.utility(statement)

    async def parse(self, statement: str) -> PreparedStatement[Row]:
        """Have the server read a statement that names a view, without running it: in a transaction whatever has the
        name is locked from now.

        It is sent again when it is fetched.
        """
        return await self._connection.prepare(statement)

    async def begin(self, *, at_one_snapshot: bool = False, before: str | None = None) -> None:
        """Start a job's one transaction; READ COMMITTED, so that each statement sees what was committed before it.

        The first statement is to make the search path safe, as PATH and the settings do. If it is given as `before`,
        BEGIN may be sent with it.
        What a view's query has left of sequences in the session is discarded, if that is ours alone.
        `at_one_snapshot`: REPEATABLE READ, so that all of them see what was committed before the first.
        """
        begin = queries.BEGIN_AT_ONE_SNAPSHOT if at_one_snapshot else queries.BEGIN
        texts = {begin: queries.BEGUN}
        if self._may_know_sequences and self.is_direct:
            texts[DISCARD_SEQUENCES] = queries.DISCARDED
        if before is not None and self._statements.may_go_ahead(*texts, before=before):
            for text, tag in texts.items():
                self._statements.put_ahead(text, tag)
        else:
            for text in texts:
                await self.rows(text)
        self._may_know_sequences = False

    async def commit(self) -> None:
        """Commit, and believe the tag only: COMMIT of an aborted transaction rolls back without an error."""
        statement = await self._statements.described(queries.COMMIT)
        await statement.fetch()
        if statement.get_statusmsg() != "COMMIT":
            raise Problem(RefreshReason.INTERNAL_ERROR, "The server rolled the transaction back at COMMIT.")

    async def rollback(self) -> None:
        """Undo the transaction, which also gives the locks back."""
        await self.rows(queries.ROLLBACK)

    async def describe(self, *statements: str) -> None:
        """Ask now what these statements take and return, so that each is one message when it is run.

        Between a description and its statement the server waits under no timeout, idle_in_transaction_session_timeout
        included: if we vanish there, it keeps its locks. So none is asked for once readers wait for us.
        """
        for statement in statements:
            await self._statements.described(statement)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.is_closed()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, be it one that failed."""
        return self._connection.is_in_transaction()

    async def close(self) -> None:
        """Close within two seconds."""
        await close(self._connection)


def _sample(before: datetime, server: datetime) -> tuple[timedelta, timedelta]:
    """Round trip, and server time minus the middle of it."""
    after = datetime.now(UTC)
    return after - before, server - (before + (after - before) / 2)
