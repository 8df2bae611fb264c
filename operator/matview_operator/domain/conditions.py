"""The conditions of a policy and of a database, and the events that their transitions make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from matview_operator.api.condition import Condition, ConditionStatus
from matview_operator.api.outcome import RefreshReason

READY = "Ready"
FRESH = "Fresh"
STALLED = "Stalled"
RECONCILING = "Reconciling"
TARGET_MISSED = "TargetMissed"

RUN_TOO_LONG = "RunTooLong"
"""The rows are older than maxStalenessSeconds before a run that follows on the last one has ended."""
RUN_FAILED = "RunFailed"
"""They are, because of a failure."""

BLOCKING = "BlockingRefresh"
"""Ready, but readers wait during a refresh."""

PACED = "Paced"
"""Ready, but the database lets a view be refreshed less often than the schedule wants."""

LEDGER_NOT_USED = "LedgerNotUsed"
"""Ready, but a ledger that is there makes no slot happen exactly once."""

WINDOW_CLOSED = "WindowClosed"
"""Not fresh, because a slot fell in a time when no refresh may start on its database."""

_WARNINGS = frozenset({BLOCKING, LEDGER_NOT_USED, RUN_TOO_LONG, RUN_FAILED, RefreshReason.VULNERABLE_SERVER.value})
"""Reasons of a True condition that are to be seen nevertheless."""

FAILED_SLOTS_UNTIL_NOT_READY = 3

NEEDS_A_PERSON = frozenset(
    {
        RefreshReason.INVALID_SPEC,
        RefreshReason.SHARED_VIEW,
        RefreshReason.DEPENDENCY_CYCLE,
        RefreshReason.DEPENDENCY_MISSING,
        RefreshReason.NOT_MATERIALIZED_VIEW,
        RefreshReason.NO_UNIQUE_INDEX,
        RefreshReason.PERMISSION_DENIED,
        RefreshReason.ROW_SECURITY_HAZARD,
        RefreshReason.GUARD_FAILED,
        RefreshReason.SUPERUSER_REFUSED,
        RefreshReason.VULNERABLE_SERVER,
    }
)
"""Reasons for Stalled: trying again changes nothing."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a condition is to say now; when it began to is worked out against the former condition."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Transition:
    """One event: a condition came to say something else."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def not_ready(reason: RefreshReason, message: str) -> list[Statement]:
    """Ready is False; Stalled too if only a person can mend it."""
    statements = [Statement(READY, "False", reason, message)]
    if reason in NEEDS_A_PERSON:
        statements.append(Statement(STALLED, "True", reason, message))
    return statements


def merge(
    previous: Iterable[Condition], statements: Iterable[Statement], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Make conditions of statements; lastTransitionTime moves only where the status did. Others are dropped."""
    before = {condition.type: condition for condition in previous}
    merged = []
    for said in statements:
        former = before.get(said.type)
        unchanged = former is not None and former.status == said.status
        merged.append(
            Condition(
                type=said.type,
                status=said.status,
                reason=said.reason,
                message=said.message,
                last_transition_time=former.last_transition_time if former is not None and unchanged else now,
                observed_generation=generation,
            )
        )
    return tuple(merged)


def statement_of(conditions: Iterable[Condition], kind: str) -> Statement | None:
    """What a condition says, to be said again."""
    for condition in conditions:
        if condition.type == kind:
            return Statement(condition.type, condition.status, condition.reason, condition.message)
    return None


def transitions(previous: Iterable[Condition], current: Iterable[Condition]) -> list[Transition]:
    """The events of a change of status or reason. Stalled only repeats Ready, and Reconciling the user."""
    before = {condition.type: (condition.status, condition.reason) for condition in previous}
    events: list[Transition] = []
    for condition in current:
        former = before.get(condition.type)
        if condition.type not in (READY, FRESH, TARGET_MISSED) or former == (condition.status, condition.reason):
            continue
        if condition.status == "False" or condition.reason in _WARNINGS:
            events.append(Transition("Warning", condition.reason, condition.message))
        elif condition.status == "True" and (former is None or former[0] != "True"):
            events.append(Transition("Normal", condition.reason, condition.message))
    return events
