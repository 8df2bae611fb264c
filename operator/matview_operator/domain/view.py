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
            check_identifier(part, what="schema or view name")

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
            parts.append(_identifier(match))
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


def check_identifier(name: str, *, what: str) -> None:
    """Raise InvalidName for a name that the catalogue cannot hold; `what` says whose name it is."""
    if not name or "\0" in name:
        raise InvalidName(f"A {what} must not be empty or hold a NUL character.")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half a surrogate pair: an argument that is not UTF-8
        raise InvalidName(f"A {what} must be valid UTF-8.") from None
    if size > IDENTIFIER_BYTES:
        raise InvalidName(f"The name {name[:20]}… has {size} bytes; PostgreSQL keeps {IDENTIFIER_BYTES}.")


def name_from_sql(text: str, *, kind: str) -> str:
    """Read the name of a column or schema as SQL would. Raises InvalidName for anything but one identifier."""
    match = _PART.fullmatch(text)
    if match is None:
        raise InvalidName(f"{text[:80]!r} is not a {kind} name. Write NAME, with double quotes if it is an odd one.")
    return _identifier(match)


def _identifier(match: re.Match[str]) -> str:
    quoted, bare = match.groups()
    return quoted.replace('""', '"') if quoted is not None else bare.translate(_FOLD)
