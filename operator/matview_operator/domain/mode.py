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


def choose_mode(
    concurrently: Concurrently, *, populated: bool, usable_index: bool, view: str, grouped: bool = False
) -> ModeChoice:
    """Choose the mode; raises Problem where Always, or the view's group, cannot be had. `view` as the server quotes it.

    CONCURRENTLY needs a populated view and a unique, valid, immediate index without WHERE or expressions.
    """
    if grouped:
        _check_group(concurrently, usable_index=usable_index, view=view)
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


def _check_group(concurrently: Concurrently, *, usable_index: bool, view: str) -> None:
    """A group holds the locks of all its views until the last one is done.

    In blocking mode readers of the first would wait for the last, and a query that reads two could deadlock with the
    refresh. Only a view that was never populated, which nobody can read, is filled in blocking mode.
    """
    if concurrently is Concurrently.NEVER:
        raise Problem(
            RefreshReason.INVALID_SPEC,
            f"concurrently: Never and consistency: Group exclude each other: readers of {view} would wait until the "
            "whole group is done. Remove one of them.",
        )
    if not usable_index:
        raise Problem(
            RefreshReason.NO_UNIQUE_INDEX,
            f"{view} has no unique index that REFRESH … CONCURRENTLY can use, and consistency: Group needs one on "
            "every view. Take it out of the group, or create one on plain columns without WHERE. "
            f"Run, with the columns that tell its rows apart: CREATE UNIQUE INDEX ON {view} (…);",
        )
