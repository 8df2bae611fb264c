"""Our statements on one connection: what the server has said of each, and those that it keeps for us, planned.

Planning is what most of them cost. So on a connection that is ours alone the server keeps each under a name, and plans
it once. The name is made of the text: behind a pooler that we did not notice, whoever has prepared that name has
prepared that statement.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.protocol.protocol import PreparedStatementState

from matview_operator.adapters.postgres.wire.ahead import Ahead, kept, unnamed
from matview_operator.adapters.postgres.wire.authentication import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

NOT_KEPT = frozenset({"26000", "42P05"})
"""SQLSTATEs by which a server says that it does not know a name of ours, or knew it before we said it."""
_NAME_DIGITS = 32


def name_of(text: str) -> str:
    """The name under which a server keeps a statement for us."""
    return f"matview_{sha256(text.encode()).hexdigest()[:_NAME_DIGITS]}"


class Statements:
    """Of one connection. Bounded, because the texts are our constants."""

    def __init__(self, connection: asyncpg.Connection[Row]) -> None:
        self._connection = connection
        self._descriptions: dict[str, PreparedStatement[Row]] = {}
        self._names: dict[str, str] = {}
        """Of those that the server keeps; what was described before it was to keep any has none."""
        self._columns: dict[str, list[str]] = {}
        self._forgotten: list[PreparedStatement[Row]] = []
        """The driver would close what nobody refers to, with a message of its own for each."""
        self._ahead: list[Ahead] = []
        self.are_kept = False
        """Whether the server keeps them. If not, the driver sends the text with each execution, in the same message."""

    async def described(self, text: str) -> PreparedStatement[Row]:
        """What the server says of a statement; it is asked once."""
        known = self._descriptions.get(text)
        if known is None:
            name = name_of(text) if self.are_kept else None
            known = self._descriptions[text] = await self._connection.prepare(text, name=name)
            if name is not None:
                self._names[text] = name
        return known

    def may_go_ahead(self, *texts: str, before: str) -> bool:
        """Whether the server keeps these, and need not be asked any more what the one after them returns.

        That would come before them, and be a transaction with a snapshot by then.
        """
        return self.are_kept and before in self._descriptions and all(text in self._names for text in texts)

    def put_ahead(self, text: str, tag: str, arguments: Sequence[str | float | None] | None = None) -> None:
        """Send one that may go ahead together with the next one: see ahead.py."""
        self._ahead.append(kept(self._names[text], tag, arguments))

    def put_once_ahead(self, text: str, tag: str) -> None:
        """The same of one as `run_once` runs."""
        self._ahead.append(unnamed(text, tag))

    @property
    def have_ahead(self) -> bool:
        """Whether there are such."""
        return bool(self._ahead)

    @property
    def is_refused_ahead(self) -> bool:
        """Whether what failed last was such a statement, and not the one that it went out with."""
        return bool(self._protocol.answers.is_refused)

    async def fetch(self, text: str, *arguments: Any) -> list[Row]:
        """Run a statement and return its rows."""
        ahead, self._ahead = self._ahead, []
        described = await self.described(text)
        self._protocol.send_ahead(ahead)
        return await described.fetch(*arguments)

    def told_ahead(self, text: str) -> dict[str, str | None]:
        """The row of a statement that was sent ahead. Raises InterfaceError if it makes no sense."""
        if text not in self._columns:
            self._columns[text] = [attribute.name for attribute in self._descriptions[text].get_attributes()]
        row: dict[str, str | None] = self._protocol.answers.row(self._columns[text])
        return row

    def keep(self) -> None:
        """From now on have the server keep them: nobody else uses the connection's session."""
        self.are_kept = True

    def distrust(self) -> None:
        """Use no name any more: somebody else's code may have put a statement of its own under it."""
        if self.are_kept:
            self._forgotten += self._descriptions.values()
            self._descriptions, self._names = {}, {}
        self.are_kept = False

    async def run_once(self, text: str) -> None:
        """Run a statement without parameters and rows, whose text is of use once: all in one message.

        Asked beforehand what it returns, the server would wait for us under no timeout.
        """
        # The driver's own way describes each statement first.
        state = PreparedStatementState("", text, self._protocol, Row, True)
        state.mark_unprepared()
        connection: Any = self._connection
        await PreparedStatement(connection, text, state).fetch()

    @property
    def _protocol(self) -> Any:
        connection: Any = self._connection
        return connection._protocol  # noqa: SLF001 - ours: see authentication.py
