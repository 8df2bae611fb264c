"""What the engine needs of the world, as Protocols. Adapters fit them without knowing them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

from matview_operator.api.database import MatviewDatabaseStatus
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import Transition
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import MatviewError, Problem
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.view import ViewName

Status = MatviewRefreshPolicyStatus | MatviewDatabaseStatus


class Key(NamedTuple):
    """An object's place in the cluster, until it is deleted."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """One object, this very one: another of the same name has another UID."""

    kind: Literal["MatviewRefreshPolicy", "MatviewDatabase"]
    key: Key
    uid: str


class ObjectGone(MatviewError):
    """The object was deleted, or another took its name."""


class StatusRefused(MatviewError):
    """The API server will never take this document; trying again is useless."""


class ApiUnavailable(MatviewError):
    """The API server could not be asked, or asks to wait."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds, if the server named them."""


class SecretUnread(Problem):
    """The API server could not be asked for a Secret."""


class StatusConflict(MatviewError):
    """The object changed since it was last seen."""

    def __init__(self, *, resource_version: str, stored: object) -> None:
        super().__init__("the object changed meanwhile")
        self.resource_version = resource_version
        self.stored = stored
        """The object as it is now, raw."""


class Executor(Protocol):
    """Refreshes one view, or several together."""

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        """Never raises but CancelledError; ends within the run's timeout + 5 s."""
        ...

    async def refresh_group(
        self, *, target: ConnectionTarget, runs: Sequence[Run], timeout_seconds: float
    ) -> tuple[RefreshResult, ...]:
        """All of them at one snapshot or none; one result per run. As `refresh`, within this timeout for all."""
        ...

    async def connect_ahead(self, *, target: ConnectionTarget, tenant_setting: str | None, count: int) -> None:
        """Be connected for so many runs that are due within seconds, as far as connections are kept; raises Problem.

        `tenant_setting` is the custom setting that they will make, if any.
        """
        ...


class Inspector(Protocol):
    """Looks at a database without touching it."""

    async def inspect(
        self,
        *,
        target: ConnectionTarget,
        checks: Iterable[ViewCheck],
        allow_superuser: bool,
        managed: Collection[ViewName] = (),
    ) -> Inspection:
        """Raises Problem when the server itself is the obstacle. `managed`: whose order is asked for."""
        ...


class Pruner(Protocol):
    """Lets a ledger forget old runs."""

    async def prune(self, *, target: ConnectionTarget, keep_days: int, allow_superuser: bool) -> int | None:
        """Return how many rows went, None without a ledger; raises Problem."""
        ...


class Secrets(Protocol):
    """Reads one Secret at use and keeps nothing."""

    async def read(self, *, namespace: str, name: str, field: str) -> Mapping[str, bytes]:
        """Return the data, decoded from base64; raises Problem, SecretUnread if the API server does not answer.

        `field` of the MatviewDatabase holds the name.
        """
        ...


class StatusWriter(Protocol):
    """Writes the status subresource."""

    async def write(self, ref: ObjectRef, status: Status, *, resource_version: str) -> str:
        """Return the new resourceVersion; raises ObjectGone, StatusConflict, StatusRefused or ApiUnavailable."""
        ...


class Events(Protocol):
    """Writes Kubernetes events, best effort, without making the caller wait."""

    def record(self, ref: ObjectRef, transition: Transition) -> None:
        """Queue one event."""
        ...


class Metrics(Protocol):
    """Counts what happens."""

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        """Count one run of one view by outcome and reason, and how long it took."""
        ...

    def slot_started(self, *, lag_seconds: float) -> None:
        """Observe how long after its due time a slot's first run began."""
        ...

    def slots_missed(self, key: Key, count: int) -> None:
        """Count slots that were not run."""
        ...

    def retried(self, key: Key, reason: RefreshReason) -> None:
        """Count that a view is tried again in its slot, by the reason why."""
        ...

    def policy_gone(self, key: Key) -> None:
        """Drop the series of a deleted policy."""
        ...


class Clock(Protocol):
    """The wall clock; virtual in tests."""

    def now(self) -> datetime:
        """The time, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.now(UTC)
