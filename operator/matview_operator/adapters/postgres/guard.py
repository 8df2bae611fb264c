"""The guard's reads, before REFRESH and after it, in its transaction. What they mean is decided in domain/guard.py.

Each read is made in a savepoint that is rolled back: a blocking REFRESH must not meet a lock of our own on the view, or
two sessions could deadlock (40P01). The run's advisory locks were taken before the savepoint and stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg

from matview_operator.adapters.postgres.sql import guard as queries
from matview_operator.adapters.postgres.sql.queries import QuotedName
from matview_operator.adapters.postgres.sqlstate import problem_of
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.domain.guard import (
    MAX_TENANT_BYTES,
    MAX_TENANTS,
    Readable,
    Rejection,
    Tally,
    check_readable,
    check_tally,
    check_tenants,
)

if TYPE_CHECKING:
    from matview_operator.adapters.postgres.session import Session
    from matview_operator.adapters.postgres.wire.authentication import Row
    from matview_operator.api.view import Guard
    from matview_operator.domain.view import ViewName

_NOT_THE_GUARDS = frozenset(
    {
        RefreshReason.CONNECTION_LOST,
        RefreshReason.CANCELLED,
        RefreshReason.TIMEOUT,
        RefreshReason.LOCK_TIMEOUT,
        RefreshReason.DEADLOCK,
        RefreshReason.SERVER_RESOURCES,
    }
)
"""What can happen to any statement, and says nothing about this guard."""


class Watch:
    """One guarded view during its refresh: what it had before, and the verdict on what it has then."""

    def __init__(self, *, guard: Guard, session: Session, view: ViewName, oid: int, facts: Readable) -> None:
        """Hold the parts; `watch` is the way to one."""
        self.tally = Tally()
        self._guard = guard
        self._session = session
        self._view = view
        self._oid = oid
        self._facts = facts
        self._kept: list[str] = []
        self._counters: Row | None = None
        """The transaction's row counters of before, where they tell how many rows there were."""

    async def look(self, *, counters: Row | None) -> None:
        """Read what REFRESH is about to replace. Without `counters` the rows are counted."""
        self._counters = counters
        guard = self._guard
        if guard.keep_tenants is not None:
            rows, _ = await self._read(queries.list_tenants(self._quoted, self._column), MAX_TENANTS, MAX_TENANT_BYTES)
            found = rows[0]
            check_tenants(guard, tenants=found.tenants, longest_bytes=found.longest)
            self._kept = [row.kept for row in rows if row.kept is not None]
            self.tally = replace(self.tally, rows_before=found.rows, tenants_before=found.tenants)
        elif guard.max_row_loss_percent is not None and counters is None:
            rows, _ = await self._read(queries.count_rows(self._quoted))
            self.tally = replace(self.tally, rows_before=rows[0].rows)

    def was_empty(self) -> None:
        """There is nothing to lose: the view was never populated."""
        self.tally = Tally(rows_before=0, tenants_before=None if self._guard.keep_tenants is None else 0)

    async def check(self) -> None:
        """Read what REFRESH has made, before anybody else can. Raises Rejection."""
        if self._guard.keep_tenants is None:
            rows, now = await self._read(queries.count_rows(self._quoted))
            self.tally = replace(self.tally, rows_after=rows[0].rows)
        else:
            statement = queries.count_lost_tenants(self._quoted, self._column, self._type)
            rows, now = await self._read(statement, self._kept)
            self.tally = replace(self.tally, rows_after=rows[0].rows, tenants_lost=rows[0].lost)
        if self._counters is not None:
            # Exact even if somebody else refreshed the view a moment before we did.
            inserted, deleted = now.inserted - self._counters.inserted, now.deleted - self._counters.deleted
            self.tally = replace(self.tally, rows_before=rows[0].rows - inserted + deleted)
        check_tally(self._guard, self.tally)

    async def _read(self, statement: str, *arguments: Any) -> tuple[list[Row], Row]:
        """The rows of a read of this view and of nothing else, at least one, and the view's counters."""
        session = self._session
        try:
            await session.rows(queries.SAVEPOINT)
            # Parsed but not yet run, it holds a lock on whatever has the name now: only then is it asked what that is.
            # Else an owner could put an ordinary view there, whose functions would run as our role.
            parsed = await session.parse(statement)
            same = await session.row(queries.SAME_VIEW, self._view.schema, self._view.name, self._oid)
            if same is None:
                raise Rejection(
                    RefreshReason.VIEW_REPLACED,
                    f"Another relation took the name {self._facts.view} while it was guarded; everything was rolled "
                    "back.",
                )
            rows = await parsed.fetch(*arguments)
            await session.rows(queries.BACK)
            await session.rows(queries.RELEASE)
        except asyncpg.PostgresError as error:
            problem = problem_of(error)
            if problem.reason in _NOT_THE_GUARDS:
                raise
            raise Rejection(
                RefreshReason.GUARD_FAILED,
                # Not in the server's words: they could be those of a function of the owner's, and hold rows.
                f"The guard could not read {self._facts.view} (SQLSTATE {problem.sqlstate}). The server log says why.",
                sqlstate=problem.sqlstate,
            ) from error
        return rows, same

    @property
    def _quoted(self) -> QuotedName:
        return QuotedName(self._facts.view)

    @property
    def _column(self) -> queries.QuotedColumn:
        return queries.QuotedColumn(self._facts.column or "")

    @property
    def _type(self) -> queries.QuotedType:
        return queries.QuotedType(self._facts.base_type or "")


async def watch(
    session: Session, guard: Guard | None, *, view: ViewName, found: Row, mode: RefreshMode
) -> Watch | None:
    """Look at a view that is about to be refreshed; call `check` on the answer before COMMIT. None without a guard.

    `found` is the lookup's row. The transaction is open and the view's locks are held. Raises Rejection.
    """
    if guard is None:
        return None
    session.distrust()
    facts, counted = await read_facts(session, guard, oid=found.oid, quoted=found.quoted)
    check_readable(guard, facts)
    watching = Watch(guard=guard, session=session, view=view, oid=found.oid, facts=facts)
    if not found.populated:
        watching.was_empty()
    else:
        exact = mode is RefreshMode.CONCURRENT and counted and guard.max_row_loss_percent is not None
        await watching.look(counters=found if exact else None)
    return watching


async def read_facts(session: Session, guard: Guard, *, oid: int, quoted: str) -> tuple[Readable, bool]:
    """What the catalogue says of a guarded view, and whether rows that a transaction writes are counted."""
    row = await session.row(queries.READABLE, oid, guard.keep_tenants)
    if row is None:
        raise Rejection(RefreshReason.VIEW_REPLACED, f"{quoted} was dropped while it was looked at; nothing changed.")
    facts = Readable(
        view=quoted,
        role=session.facts.role,
        may_read=row.may_read,
        column_exists=row.column_exists,
        may_read_column=row.may_read_column,
        column=row.column,
        type_name=row.type_name,
        base_type=row.base_type,
    )
    return facts, row.counted
