"""What rows of ours say of a server and of a view, as the domain reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matview_operator.api.database import Bookkeeping
from matview_operator.domain.preflight import ViewFacts
from matview_operator.domain.result import MESSAGE_BYTES
from matview_operator.domain.server import VERSION_BYTES, ServerFacts
from matview_operator.domain.text import shown
from matview_operator.domain.view import IDENTIFIER_BYTES, QUOTED_BYTES

if TYPE_CHECKING:
    from matview_operator.adapters.postgres.wire.authentication import Row

_FORBIDDEN, _FLAWED = "Forbidden", "Flawed"
_BOOKKEEPING = {
    **{state.value: state for state in Bookkeeping},
    _FORBIDDEN: Bookkeeping.MISSING,
    # It is there, and not as `migrate` makes it.
    _FLAWED: Bookkeeping.OUTDATED,
}


def server_facts(row: Row) -> ServerFacts:
    """Read the row of queries.SERVER."""
    state, _, flaw = row.bookkeeping.partition(": ")
    return ServerFacts(
        version=shown(row.version.partition(" ")[0], size=VERSION_BYTES),
        version_num=row.version_num,
        database=shown(row.database, size=IDENTIFIER_BYTES),
        role=shown(row.role, size=IDENTIFIER_BYTES),
        quoted_role=shown(row.quoted_role, size=QUOTED_BYTES),
        quoted_database=shown(row.quoted_database, size=QUOTED_BYTES),
        inherits=bool(row.inherits),
        superuser=bool(row.superuser),
        in_recovery=bool(row.in_recovery),
        bookkeeping=_BOOKKEEPING[state],
        bookkeeping_forbidden=state == _FORBIDDEN,
        bookkeeping_flaw=shown(flaw, size=MESSAGE_BYTES) or None,
    )


def view_facts(row: Row | None) -> ViewFacts | None:
    """Read a row of either lookup."""
    if row is None:
        return None
    return ViewFacts(
        oid=row.oid,
        quoted=row.quoted,
        relkind=row.relkind,
        populated=row.populated,
        usable_index=row.usable_index,
        may_refresh=row.may_refresh,
        may_use_schema=row.may_use_schema,
        schema=row.schema,
        owner=row.owner,
        is_member=row.is_member,
        owner_has_temp=row.owner_has_temp,
    )
