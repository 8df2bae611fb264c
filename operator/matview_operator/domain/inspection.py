"""What a preflight asks of a database and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice
from matview_operator.domain.server import ServerFacts
from matview_operator.domain.view import ViewName


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewCheck:
    """One question: could this view be refreshed in this way? Equal questions are asked once."""

    view: ViewName
    concurrently: Concurrently
    isolation: Isolation
    guard: Guard | None = None
    grouped: bool = False
    """Whether it is refreshed in one transaction with the other views of its policy."""
    search_path: tuple[str, ...] = ()
    """The database's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The answers of one connection."""

    server: ServerFacts
    answers: Mapping[ViewCheck, ModeChoice | Problem]
    reads: Mapping[ViewName, Collection[ViewName]] = field(default_factory=dict)
    """Of the managed views: which others of them each reads, through ordinary views too."""
