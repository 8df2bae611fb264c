"""Whether, and after how long, what failed in a slot is tried again in it: one table, by reason."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from random import Random

from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Retry
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.slot import is_fresh


class RetryClass(IntEnum):
    """How soon another attempt is worth its cost, the soonest first. Of views that go together the latest counts."""

    AT_ONCE = 1
    """Gone with the attempt itself: once more at once, then with back-off."""
    BACK_OFF = 2
    """Over in seconds or minutes: after a random part of a time that doubles."""
    LADDER = 3
    """Somebody else is at work, or only the server knows: see `lock_held_pause`. Not counted against the limit."""
    SLOW = 4
    """Lasts, and an attempt costs the view's whole query: after most of the longest pause."""
    ON_CHANGE = 5
    """Not until a person changed something that a preflight can see."""
    NEXT_SLOT = 6
    """Not in this slot: nothing is wrong, we stopped it ourselves, or nothing tells us that it was mended."""


RETRY_CLASSES: dict[Reason, RetryClass] = {
    Reason.COVERED: RetryClass.NEXT_SLOT,
    Reason.RECOVERED: RetryClass.NEXT_SLOT,
    Reason.FIRST_POPULATE: RetryClass.NEXT_SLOT,
    Reason.UPSTREAM_FAILED: RetryClass.NEXT_SLOT,
    Reason.GROUP_ROLLED_BACK: RetryClass.NEXT_SLOT,
    Reason.INVALID_SPEC: RetryClass.ON_CHANGE,
    Reason.DEPENDENCY_CYCLE: RetryClass.ON_CHANGE,
    Reason.DEPENDENCY_MISSING: RetryClass.ON_CHANGE,
    Reason.DATABASE_NOT_FOUND: RetryClass.ON_CHANGE,
    Reason.DATABASE_NOT_READY: RetryClass.ON_CHANGE,
    Reason.DATABASE_SUSPENDED: RetryClass.NEXT_SLOT,
    Reason.SECRET_NOT_FOUND: RetryClass.ON_CHANGE,
    Reason.SECRET_FORBIDDEN: RetryClass.ON_CHANGE,
    Reason.SECRET_INVALID: RetryClass.ON_CHANGE,
    Reason.HOST_NOT_ALLOWED: RetryClass.ON_CHANGE,
    Reason.SHARED_VIEW: RetryClass.ON_CHANGE,
    Reason.VIEW_NOT_FOUND: RetryClass.ON_CHANGE,
    # No look at the catalogue reads what a function's body names.
    Reason.UNSAFE_SEARCH_PATH: RetryClass.SLOW,
    Reason.NOT_MATERIALIZED_VIEW: RetryClass.ON_CHANGE,
    Reason.NOT_POPULATED: RetryClass.ON_CHANGE,
    Reason.NO_UNIQUE_INDEX: RetryClass.ON_CHANGE,
    Reason.DUPLICATE_ROWS: RetryClass.SLOW,
    Reason.PERMISSION_DENIED: RetryClass.ON_CHANGE,
    Reason.ROW_SECURITY_HAZARD: RetryClass.ON_CHANGE,
    Reason.TENANT_SETTING_INVALID: RetryClass.NEXT_SLOT,
    # The pooler's next session may be a clean one.
    Reason.TENANT_SETTING_LEAKED: RetryClass.BACK_OFF,
    Reason.VIEW_QUERY_FAILED: RetryClass.SLOW,
    Reason.VIEW_REPLACED: RetryClass.AT_ONCE,
    Reason.SUPERUSER_REFUSED: RetryClass.ON_CHANGE,
    Reason.VULNERABLE_SERVER: RetryClass.ON_CHANGE,
    Reason.READ_ONLY_SERVER: RetryClass.BACK_OFF,
    Reason.SERVER_RESOURCES: RetryClass.SLOW,
    Reason.SERVER_BUSY: RetryClass.BACK_OFF,
    Reason.TOO_FEW_ROWS: RetryClass.NEXT_SLOT,
    Reason.TOO_MANY_ROWS_LOST: RetryClass.NEXT_SLOT,
    Reason.TENANTS_LOST: RetryClass.NEXT_SLOT,
    Reason.GUARD_FAILED: RetryClass.ON_CHANGE,
    Reason.LOCK_HELD: RetryClass.LADDER,
    Reason.LOCK_TIMEOUT: RetryClass.BACK_OFF,
    Reason.TIMEOUT: RetryClass.SLOW,
    # Whoever cancelled it had a reason, and would be annoyed ten seconds later.
    Reason.CANCELLED: RetryClass.SLOW,
    Reason.DEADLOCK: RetryClass.AT_ONCE,
    Reason.SHUTDOWN: RetryClass.NEXT_SLOT,
    Reason.CONNECTION_FAILED: RetryClass.BACK_OFF,
    Reason.CONNECTION_LOST: RetryClass.AT_ONCE,
    Reason.COMMIT_UNKNOWN: RetryClass.LADDER,
    Reason.AUTHENTICATION_FAILED: RetryClass.ON_CHANGE,
    Reason.CONNECT_REJECTED: RetryClass.ON_CHANGE,
    Reason.TLS_FAILED: RetryClass.ON_CHANGE,
    Reason.INTERNAL_ERROR: RetryClass.SLOW,
}
_DOUBLINGS = 16
"""Beyond any cap: a back-off of one second has grown to 18 hours."""


def retry_class(results: Iterable[RefreshResult]) -> RetryClass | None:
    """Of one attempt, several views of a group included; None if nothing of it failed or was skipped."""
    classes = [
        RetryClass.NEXT_SLOT if result.error_type is None else RETRY_CLASSES[result.error_type]
        for result in results
        # A view that was rolled back with its group is tried again with the one that failed.
        if not is_fresh(result.outcome) and result.error_type is not Reason.GROUP_ROLLED_BACK
    ]
    return max(classes, default=None)


def retry_pause(kind: RetryClass, *, retries: int, retry: Retry, requested: bool, random: Random) -> float | None:
    """Seconds until the next attempt after so many retries; None if there is none.

    Back-off has full jitter, so that a server that comes back is not met by all at once. A request is answered instead
    of waiting for what lasts: a person waits for it.
    """
    if retries >= retry.limit:
        return None
    match kind:
        case RetryClass.AT_ONCE:
            return _back_off(retries - 1, retry=retry, random=random) if retries else 0.0
        case RetryClass.BACK_OFF:
            return _back_off(retries, retry=retry, random=random)
        case RetryClass.SLOW:
            return None if requested else retry.max_backoff_seconds * random.uniform(0.5, 1.0)
        case _:
            return None


def _back_off(doublings: int, *, retry: Retry, random: Random) -> float:
    longest: int = retry.backoff_seconds * 2 ** min(doublings, _DOUBLINGS)
    return random.uniform(0.0, min(longest, retry.max_backoff_seconds))
