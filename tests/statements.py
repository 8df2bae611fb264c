"""What a server was really asked to do: its own log, statement by statement, of one role in one database."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from tests.database import MV_OPERATOR

from matview_operator.adapters.postgres import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.database import Database

_ENTRY = re.compile(r"\S+ \S+ \S+ \[\d+\] (?P<role>\S+)@(?P<database>\S+) LOG:  (?P<said>.*)", re.DOTALL)
_SAID = re.compile(r"(?:(?P<simple>statement)|execute [^:]*|execute fetch from [^:]*): (?P<text>.*)", re.DOTALL)


class Statement(NamedTuple):
    """One statement, to the letter."""

    protocol: Literal["simple", "extended"]
    text: str


@dataclass(slots=True)
class StatementLog:
    """The statements of a role since this was made, or since `forget`."""

    database: Database
    role: str = MV_OPERATOR
    offset: int = 0

    def __post_init__(self) -> None:
        self.offset = self.database.server.log.stat().st_size

    def read(self) -> Iterator[Statement]:
        """Yield them in the order in which the server began them."""
        with self.database.server.log.open("rb") as log:
            log.seek(self.offset)
            # Whatever a statement holds: PostgreSQL puts a tab behind each of its line breaks.
            entries = re.split(r"\n(?!\t)", log.read().decode(errors="surrogateescape"))
        for entry in entries:
            found = _ENTRY.fullmatch(entry)
            if found and (found["role"], found["database"]) == (self.role, self.database.name):
                said = _SAID.fullmatch(found["said"].replace("\n\t", "\n"))
                if said:
                    yield Statement("simple" if said["simple"] else "extended", said["text"])

    def forget(self) -> None:
        """Cut the server's log back to where this began; the server appends to it."""
        os.truncate(self.database.server.log, self.offset)


def fixed_statements() -> set[str]:
    """Every statement that the adapter knows as a constant."""
    modules = [name for _, name, _ in pkgutil.iter_modules(sql.__path__)]
    assert modules
    return {
        statement
        for name in modules
        for constant, value in vars(importlib.import_module(f"{sql.__name__}.{name}")).items()
        if constant.isupper()
        for statement in (value.values() if isinstance(value, dict) else [value])
        if isinstance(statement, str)
    }
