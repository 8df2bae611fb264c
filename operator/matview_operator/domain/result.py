"""RefreshResult: what one run did. The one model behind status, logs, the ledger and the command line."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.scalar import Count

MESSAGE_BYTES = 1024

FAILURES = frozenset(
    {
        RefreshOutcome.FAILED,
        RefreshOutcome.REJECTED_BY_GUARD,
        RefreshOutcome.INTERRUPTED,
        RefreshOutcome.UNKNOWN,
    }
)
"""Outcomes after which the command line exits with 1 and a slot counts as failed."""

NOT_LET_IN = frozenset(
    {
        RefreshReason.AUTHENTICATION_FAILED,
        RefreshReason.CONNECT_REJECTED,
        RefreshReason.CONNECTION_FAILED,
        RefreshReason.TLS_FAILED,
    }
)
"""Failures to connect: nothing was begun on the server. A Secret that was rotated meanwhile may explain them."""

_NOT_ASKED = NOT_LET_IN | {
    RefreshReason.DATABASE_NOT_FOUND,
    RefreshReason.DATABASE_NOT_READY,
    RefreshReason.DATABASE_SUSPENDED,
    RefreshReason.DEPENDENCY_CYCLE,
    RefreshReason.DEPENDENCY_MISSING,
    RefreshReason.HOST_NOT_ALLOWED,
    RefreshReason.INVALID_SPEC,
    RefreshReason.SECRET_FORBIDDEN,
    RefreshReason.SECRET_INVALID,
    RefreshReason.SECRET_NOT_FOUND,
    RefreshReason.SHARED_VIEW,
    RefreshReason.SHUTDOWN,
}
"""Failures before the server was asked for anything, and what we ourselves stopped."""

_NO_REFRESH = frozenset(
    {
        RefreshOutcome.SKIPPED_COVERED,
        RefreshOutcome.SKIPPED_LOCK_HELD,
        RefreshOutcome.SKIPPED_UNCHANGED,
        RefreshOutcome.SKIPPED_UPSTREAM,
    }
)


class RefreshResult(BaseModel):
    """What one attempt to refresh one view for one slot or request did. Times are UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view_name: str
    """Raw: the bare name for schema public, else schema.name."""
    tenant_id: str | None
    correlation_id: str
    outcome: RefreshOutcome
    started_at: datetime
    """The operator's clock."""
    duration_ms: int
    error_type: RefreshReason | None = None
    error_message: str | None = None
    """At most 1 KiB; never DETAIL, a DSN or a password."""
    lock_key_debug: str
    """`view_key=…,tenant_key=…`"""
    mode: RefreshMode | None = None
    data_as_of: AwareDatetime | None = None
    """The server's clock just before REFRESH: what the rows reflect."""
    verified_at: AwareDatetime | None = None
    """When the rows were last known to be current, on the server's clock."""
    rows_inserted: Count | None = None
    rows_deleted: Count | None = None
    estimated_rows: Count | None = None
    size_bytes: Count | None = None
    rows_before: Count | None = None
    """Counted by a guard, as the three below; None where it did not have to."""
    rows_after: Count | None = None
    """Of a rejected run: the rows that were rolled back."""
    tenants_before: Count | None = None
    tenants_lost: Count | None = None
    attempts: Count = 1

    def log_fields(self) -> dict[str, object]:
        """What a log line says of how it ended."""
        return {
            "action": "refresh",
            "outcome": self.outcome,
            "reason": self.error_type,
            "detail": self.error_message,
            "duration_ms": self.duration_ms,
            "mode": self.mode,
            "rows_inserted": self.rows_inserted,
            "rows_deleted": self.rows_deleted,
            "view_name": self.view_name,
            "correlation_id": self.correlation_id,
        }


def was_begun(outcome: RefreshOutcome, reason: str | None) -> bool:
    """Whether the server was asked to refresh, which may have failed."""
    return outcome not in _NO_REFRESH and reason not in _NOT_ASKED
