"""What the executor is asked to do: refresh one view for one slot or one request."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NewType

from matview_operator.api.database import DatabaseLimits
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Analyze, Isolation, MatviewRefreshPolicySpec
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.lock_keys import LockKeys, lock_keys
from matview_operator.domain.result import MESSAGE_BYTES, RefreshResult
from matview_operator.domain.text import shown
from matview_operator.domain.view import GLOBAL, TenantToken, ViewName

SlotId = NewType("SlotId", str)
"""`slot:<instant>` or `request:<token>`: what the ledger knows a piece of work by."""

_FUNCTION_NAMESPACE = uuid.UUID("5f0f9a0e-6a0c-5d43-9f3b-6a3cf7a1d5f2")
"""Policy UIDs of runs that belong to no policy: the command line's and the Python functions'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One attempt to refresh one view. Times are UTC, durations have their unit in the name."""

    view: ViewName
    tenant_id: str | None
    isolation: Isolation
    tenant_setting: str
    concurrently: Concurrently
    timeout_seconds: float
    lock_timeout_millis: int | None
    """None: the server's deadlock_timeout + 500 ms."""
    allow_superuser: bool
    policy_uid: uuid.UUID
    slot_id: SlotId
    due_at: datetime | None
    """The slot on the operator's clock; None for a request, which no earlier run can cover."""
    correlation_id: str
    analyze: Analyze = Analyze.AUTO
    """Whether the planner's statistics are renewed after a blocking refresh."""
    search_path: tuple[str, ...] = ()
    """Schemas between pg_catalog and pg_temp, literal; without effect on PostgreSQL 17 and later."""
    guard: Guard | None = None
    """What the new rows must be like, or the run is rejected."""
    depends_on: tuple[ViewName, ...] = ()
    """Views that it reads beside those that the catalogue knows of; for the order within a group."""

    @property
    def lock_token(self) -> TenantToken:
        """Whose lock this run takes."""
        return lock_token(self.isolation, self.tenant_id)

    @property
    def lock_keys(self) -> LockKeys:
        """The keys of this run's own lock; the (view, GLOBAL) pair is taken besides."""
        return lock_keys(str(self.view), None if self.lock_token == GLOBAL else self.lock_token)

    def result(
        self,
        outcome: RefreshOutcome,
        *,
        started_at: datetime,
        ended_at: datetime,
        reason: RefreshReason | None = None,
        message: str | None = None,
        **known: Any,
    ) -> RefreshResult:
        """How the run ended, with what is known besides: a skip, a failure, an interruption know nothing of rows.

        Raises ValidationError for numbers and times that no server can mean.
        """
        return RefreshResult(
            view_name=str(self.view),
            tenant_id=self.tenant_id,
            correlation_id=self.correlation_id,
            outcome=outcome,
            started_at=started_at,
            duration_ms=max(0, round((ended_at - started_at).total_seconds() * 1000)),
            error_type=reason,
            error_message=None if message is None else shown(message, size=MESSAGE_BYTES),
            lock_key_debug=str(self.lock_keys),
            **known,
        )


def lock_token(isolation: Isolation, tenant_id: str | None) -> TenantToken:
    """Under Shared the view is everybody's, whatever tenant the policy is labelled with."""
    return GLOBAL if isolation is Isolation.SHARED or tenant_id is None else TenantToken(tenant_id)


def group_timeout(spec: MatviewRefreshPolicySpec, *, limits: DatabaseLimits) -> float:
    """How long the views of a consistent group may take together, in seconds: their timeouts added up, to the limit."""
    return min(limits.timeout_seconds, sum(view.timeout_seconds or limits.timeout_seconds for view in spec.views))


def session_setting(isolation: Isolation, tenant_setting: str) -> str | None:
    """The custom setting that a run makes in its session, as the server folds its name; None if it makes none."""
    return tenant_setting.lower() if isolation is Isolation.TENANT else None


@lru_cache(maxsize=1024)
def slot_id(instant: datetime) -> SlotId:
    """Name the slot at this instant, the same in every process and after every restart."""
    return SlotId(f"slot:{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")


def request_id(token: str) -> SlotId:
    """Name the work of one request."""
    return SlotId(f"request:{token}")


def function_policy_uid(isolation: Isolation, token: TenantToken) -> uuid.UUID:
    """The ledger's policy UID of the command line and the Python functions."""
    return uuid.uuid5(_FUNCTION_NAMESPACE, f"{isolation.value}{token}")
