"""What a guard makes of its counts, and what it tells people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.view import Guard
from matview_operator.domain.errors import InvalidName, InvalidRequest
from matview_operator.domain.guard import (
    Readable,
    Rejection,
    Tally,
    check_readable,
    check_tally,
    check_tenants,
    guard_of,
)

FACTS = Readable(view='public."Odd"', role="operator", may_read=True)
COLUMN = replace(
    FACTS,
    column_exists=True,
    may_read_column=True,
    column="tenant_id",
    type_name="uuid",
    base_type="pg_catalog.uuid",
)
KEEP = Guard(keep_tenants="tenant_id")


def reason(guard: Guard, **counts: int | None) -> RefreshReason | None:
    try:
        check_tally(guard, Tally(**counts))
    except Rejection as rejection:
        return rejection.reason
    return None


@pytest.mark.parametrize(
    ("allowed", "before", "after", "passes"),
    [
        (50, 10, 5, True),
        (50, 10, 4, False),
        (0, 10, 10, True),
        (0, 10**12, 10**12 - 1, False),
        (33, 3, 2, False),  # a third is more than 33 percent
        (34, 3, 2, True),
        (99, 100, 1, True),
        (99, 100, 0, False),
        (0, 0, 0, True),
        (0, 5, 50, True),
    ],
)
def test_guard_the_allowed_percentage_is_exact(allowed: int, before: int, after: int, *, passes: bool) -> None:
    lost = reason(Guard(max_row_loss_percent=allowed), rows_before=before, rows_after=after)
    assert lost is (None if passes else RefreshReason.TOO_MANY_ROWS_LOST)


def test_guard_the_gravest_reason_comes_first() -> None:
    guard = Guard(min_rows=5, max_row_loss_percent=10, keep_tenants="t")
    assert reason(guard, rows_before=9, rows_after=4, tenants_before=3, tenants_lost=1) is RefreshReason.TENANTS_LOST
    assert reason(guard, rows_before=9, rows_after=4, tenants_before=3, tenants_lost=0) is (
        RefreshReason.TOO_MANY_ROWS_LOST
    )
    assert reason(guard, rows_before=4, rows_after=4, tenants_before=3, tenants_lost=0) is RefreshReason.TOO_FEW_ROWS
    assert reason(guard, rows_before=5, rows_after=5, tenants_before=3, tenants_lost=0) is None


@pytest.mark.parametrize(
    ("guard", "facts", "why", "said"),
    [
        (Guard(min_rows=1), replace(FACTS, may_read=False), "PermissionDenied", 'GRANT SELECT ON public."Odd" TO'),
        (KEEP, replace(COLUMN, may_read_column=False), "PermissionDenied", "GRANT SELECT ON"),
        (KEEP, FACTS, "GuardFailed", "no column tenant_id"),
        (KEEP, replace(COLUMN, base_type=None, type_name="point"), "GuardFailed", "whose type is point"),
    ],
)
def test_guard_what_keeps_it_from_being_checked_is_told(guard: Guard, facts: Readable, why: str, said: str) -> None:
    with pytest.raises(Rejection) as caught:
        check_readable(guard, facts)
    assert caught.value.reason == why
    assert said in caught.value.message


def test_guard_well_it_can_be_checked() -> None:
    check_readable(KEEP, COLUMN)
    check_readable(Guard(min_rows=1), FACTS)
    check_tenants(KEEP, tenants=10_000, longest_bytes=256)


@pytest.mark.parametrize(
    "options",
    [
        {"min_rows": 0},
        {"max_row_loss_percent": 100},
        {"max_row_loss_percent": -1},
        {"min_rows": "many"},
    ],
)
def test_guard_numbers_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        guard_of(**({"min_rows": None, "max_row_loss_percent": None, "keep_tenants": None} | options))


@pytest.mark.parametrize("column", ["", "a\0b", "é" * 32])
def test_guard_columns_that_no_catalogue_holds_are_refused(column: str) -> None:
    with pytest.raises(InvalidName, match=r"column name|63"):
        guard_of(min_rows=None, max_row_loss_percent=None, keep_tenants=column)


def test_guard_without_options_there_is_none() -> None:
    assert guard_of(min_rows=None, max_row_loss_percent=None, keep_tenants=None) is None
