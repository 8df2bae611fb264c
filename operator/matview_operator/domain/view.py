"""The name of one materialized view."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from matview_operator.domain.errors import InvalidName

TenantToken = NewType("TenantToken", str)
"""The tenant id, or GLOBAL."""

GLOBAL = TenantToken("GLOBAL")

IDENTIFIER_BYTES = 63
"""PostgreSQL truncates longer identifiers without a word, so that another view would be meant."""

QUOTED_BYTES = 2 * IDENTIFIER_BYTES + 2
"""The most that an identifier takes when it is quoted: each of its characters may be a double quote."""

_FOLD = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""PostgreSQL folds only ASCII letters in a multi-byte encoding."""

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*')


@dataclass(frozen=True, slots=True, order=True)
class ViewName:
    """Schema and name as the catalogue holds them: literal, unquoted, case as stored."""

    schema: str
    name: str

    def __post_init__(self) -> None:
        for part in (self.schema, self.name):
            if not part or "\0" in part:
                raise InvalidName("A schema or view name must not be empty or hold a NUL character.")
            try:
                size = len(part.encode())
            except UnicodeEncodeError:  # half a surrogate pair: an argument that is not UTF-8
                raise InvalidName("A schema or view name must be valid UTF-8.") from None
            if size > IDENTIFIER_BYTES:
                raise InvalidName(f"The name {part[:20]}… has {size} bytes; PostgreSQL keeps {IDENTIFIER_BYTES}.")

    def __str__(self) -> str:
        """The raw form that results, logs and lock keys use: the bare name for schema public, else schema.name."""
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"

    @classmethod
    def from_raw(cls, text: str) -> ViewName:
        """Read what `str` writes: `schema.name`, literal and unquoted, or a bare name for schema public.

        The first dot ends the schema, so a name with dots in schema public is written `public.a.b`.
        Raises InvalidName.
        """
        schema, dot, name = text.partition(".")
        return cls(schema, name) if dot else cls("public", text)

    @classmethod
    def from_sql(cls, text: str) -> ViewName:
        """Read a name as SQL would: unquoted parts fold to lower case, schema public if none is given.

        Raises InvalidName for anything that is not one identifier or two joined by a dot.
        """
        parts: list[str] = []
        position = 0
        while True:
            match = _PART.match(text, position)
            if match is None:
                break
            quoted, bare = match.groups()
            parts.append(quoted.replace('""', '"') if quoted is not None else bare.translate(_FOLD))
            position = match.end()
            if position == len(text) and len(parts) in (1, 2):
                return cls(*parts) if len(parts) == 2 else cls("public", parts[0])  # noqa: PLR2004 - schema and name
            if text[position : position + 1] != ".":
                break
            position += 1
        # A database's URL in a view's place would show its password.
        shown = "A URL" if "://" in text else repr(text[:80])
        raise InvalidName(
            f"{shown} is not a view name. Write NAME or SCHEMA.NAME, with double quotes around odd parts."
        )
