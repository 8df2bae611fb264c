"""Which schemas a search path may name besides those that it always has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.view import IDENTIFIER_BYTES

_RESERVED = "pg_"
"""The server's own schemas. A pg_temp before the others would let any session's temporary objects stand in for them."""
_USER = "$user"
"""Not a schema, even in double quotes: it stands for whoever the session belongs to."""


def search_path_problems(schemas: Sequence[str]) -> Iterator[str]:
    """Say what is wrong with each schema; each sentence begins with its index in brackets."""
    for index, schema in enumerate(schemas):
        if not schema or "\0" in schema:
            yield f"[{index}]: a PostgreSQL name cannot be empty or hold a NUL character."
        elif len(schema.encode()) > IDENTIFIER_BYTES:
            # The server would cut it, and mean another schema.
            yield f"[{index}]: a PostgreSQL name has at most {IDENTIFIER_BYTES} bytes; shorten it."
        elif schema.startswith(_RESERVED) or schema == _USER:
            yield (
                f"[{index}]: name schemas of yours; pg_catalog comes first and pg_temp last anyway, and other schemas "
                "of the server and $user have no place there."
            )


def open_schemas_problem(schemas: Sequence[str]) -> Problem:
    """Say that everybody may create objects in these schemas, which are quoted, and how to end that."""
    return Problem(
        RefreshReason.UNSAFE_SEARCH_PATH,
        f"spec.searchPath names {', '.join(schemas)}, where every role may create functions: refreshes would run them "
        "as the views' owners. Take that right away, or leave the schema out. "
        f"Run: {' '.join(f'REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC;' for schema in schemas)}",
    )
