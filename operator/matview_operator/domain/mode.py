"""Whether a view is refreshed with or without CONCURRENTLY."""

from __future__ import annotations

from typing import NamedTuple, assert_never

from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import Problem


class ModeChoice(NamedTuple):
    """The mode and, where it is not the one wished for, why."""

    mode: RefreshMode
    reason: RefreshReason | None = None


def choose_mode(concurrently: Concurrently, *, populated: bool, usable_index: bool, view: str) -> ModeChoice:
    """Choose the mode; raises Problem where Always cannot be had. `view` as the server quotes it.

    CONCURRENTLY needs a populated view and a unique, valid, immediate index without WHERE or expressions.
    """
    match concurrently:
        case Concurrently.NEVER:
            return ModeChoice(RefreshMode.BLOCKING)
        case Concurrently.ALWAYS:
            if not usable_index:
                raise Problem(
                    RefreshReason.NO_UNIQUE_INDEX,
                    f"{view} has no unique index that REFRESH … CONCURRENTLY can use, and the policy says "
                    "concurrently: Always. Create a unique index on plain columns without WHERE, or set IfPossible. "
                    f"Run, with the columns that tell its rows apart: CREATE UNIQUE INDEX ON {view} (…);",
                )
            if not populated:
                raise Problem(
                    RefreshReason.NOT_POPULATED,
                    f"{view} is not populated yet, and the policy says concurrently: Always. Set IfPossible, or "
                    f"populate it once. Run: REFRESH MATERIALIZED VIEW {view};",
                )
            return ModeChoice(RefreshMode.CONCURRENT)
        case Concurrently.IF_POSSIBLE:
            if not populated:
                return ModeChoice(RefreshMode.BLOCKING, RefreshReason.FIRST_POPULATE)
            if not usable_index:
                return ModeChoice(RefreshMode.BLOCKING, RefreshReason.NO_UNIQUE_INDEX)
            return ModeChoice(RefreshMode.CONCURRENT)
        case _:
            assert_never(concurrently)
