"""Whether refreshed rows may be seen: decided from counts, with what a person can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.view import Guard
from matview_operator.domain.errors import InvalidRequest, Problem
from matview_operator.domain.view import check_identifier

MAX_TENANTS = 10_000
MAX_TENANT_BYTES = 256
"""Both bound what a run keeps in memory: at most 2.5 MB of values."""


class Rejection(Problem):
    """The guard says no, or could not be asked: whatever REFRESH did is rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable:
    """What the catalogue says of a guarded view, and of its keepTenants column if there is to be one."""

    view: str
    """Schema and name as the server quotes them."""
    role: str
    may_read: bool
    column_exists: bool = False
    may_read_column: bool = False
    column: str | None = None
    """As the server quotes it."""
    type_name: str | None = None
    """For people."""
    base_type: str | None = None
    """As the server quotes it; None for a type that is not among those whose comparison is PostgreSQL's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a guard counted; None for what it did not have to, or not yet."""

    rows_before: int | None = None
    rows_after: int | None = None
    tenants_before: int | None = None
    tenants_lost: int | None = None


def guard_of(*, min_rows: int | None, max_row_loss_percent: int | None, keep_tenants: str | None) -> Guard | None:
    """The guard that a caller asks for, if any. Raises InvalidRequest and InvalidName."""
    if keep_tenants is not None:
        check_identifier(keep_tenants, what="column name")
    try:
        guard = Guard(min_rows=min_rows, max_row_loss_percent=max_row_loss_percent, keep_tenants=keep_tenants)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        raise InvalidRequest(f"The guard's {name} makes no sense: {first['msg']}.") from None
    return None if guard == Guard() else guard


def check_readable(guard: Guard, facts: Readable) -> None:
    """Raise Rejection where the guard cannot be checked, with the statement that mends it."""
    column = guard.keep_tenants
    if not facts.may_read or (column is not None and facts.column_exists and not facts.may_read_column):
        raise Rejection(
            RefreshReason.PERMISSION_DENIED,
            f"The guard reads {facts.view}, and the role {facts.role} may not. "
            f"Run: GRANT SELECT ON {facts.view} TO {facts.role};",
        )
    if column is None:
        return
    if not facts.column_exists:
        raise Rejection(
            RefreshReason.GUARD_FAILED,
            f"{facts.view} has no column {column}, which guard.keepTenants names. Correct it: names are literal, "
            "upper case matters.",
        )
    if facts.base_type is None:
        raise Rejection(
            RefreshReason.GUARD_FAILED,
            f"guard.keepTenants cannot compare the column {column} of {facts.view}, whose type is {facts.type_name}. "
            "Name one of type uuid, text, varchar, char, name, integer or numeric.",
        )


def check_tenants(guard: Guard, *, tenants: int, longest_bytes: int) -> None:
    """Raise Rejection where the values before are more than can be remembered."""
    if tenants > MAX_TENANTS:
        raise Rejection(
            RefreshReason.GUARD_FAILED,
            f"The column {guard.keep_tenants} has {tenants:,} values, and guard.keepTenants compares at most "
            f"{MAX_TENANTS:,}. Name a column with fewer, or use maxRowLossPercent.",
        )
    if longest_bytes > MAX_TENANT_BYTES:
        raise Rejection(
            RefreshReason.GUARD_FAILED,
            f"The column {guard.keep_tenants} has a value of {longest_bytes:,} bytes, and guard.keepTenants compares "
            f"at most {MAX_TENANT_BYTES}. Name a column with short values.",
        )


def check_tally(guard: Guard, tally: Tally) -> None:
    """Raise Rejection where the new rows are not what the guard asks for; the reason is the gravest one's."""
    violations = list(_violations(guard, tally))
    if violations:
        said = " ".join(sentence for _, sentence in violations)
        raise Rejection(
            violations[0][0],
            f"{said} The old rows stay. If the new rows are right, refresh once without the guard, or change it.",
        )


def _violations(guard: Guard, tally: Tally) -> Iterator[tuple[RefreshReason, str]]:
    before, after, lost = tally.rows_before, tally.rows_after, tally.tenants_lost
    if lost:
        had = f"Of {_count(tally.tenants_before, 'value')} that {guard.keep_tenants} had, the new rows lack {lost:,}"
        yield RefreshReason.TENANTS_LOST, f"{had}; guard.keepTenants allows none."
    allowed = guard.max_row_loss_percent
    if allowed is not None and before and after is not None and (before - after) * 100 > allowed * before:
        percent = (before - after) * 100 / before
        shrunk = f"{_count(before, 'row')} would have become {after:,}, {percent:.1f} percent less"
        yield RefreshReason.TOO_MANY_ROWS_LOST, f"{shrunk}; guard.maxRowLossPercent allows {allowed}."
    if guard.min_rows is not None and after is not None and after < guard.min_rows:
        few = f"The view would have {_count(after, 'row')}"
        yield RefreshReason.TOO_FEW_ROWS, f"{few}; guard.minRows asks for {guard.min_rows:,}."


def _count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
