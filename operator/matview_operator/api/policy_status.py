"""The status of a policy: what its last slots and runs did."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from matview_operator.api.condition import Conditions
from matview_operator.api.model import Model, Optional, Undescribed
from matview_operator.api.outcome import RefreshMode, RefreshOutcome
from matview_operator.api.scalar import Count, Message, OneOf, Reason, Time, Token


class ViewStatus(Model):
    """The newest run of one view; a fixed projection of RefreshResult."""

    schema_name: Annotated[OneOf[str], Field(alias="schema", min_length=1, max_length=63)]
    """Schema of the view."""
    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the view."""
    outcome: Optional[RefreshOutcome] = None
    """How the newest run ended. SUCCESS: refreshed. SKIPPED_COVERED: another run that began at or after this
    slot did the work. SKIPPED_LOCK_HELD: another session was refreshing the view, and the slot's time ran
    out. REJECTED_BY_GUARD: the new rows were not what the view's guard asks for, and the old ones stay.
    INTERRUPTED: stopped before COMMIT, nothing changed. UNKNOWN: the connection was lost during COMMIT.
    FAILED: see reason and message."""
    reason: Optional[Reason] = None
    """One word for why, if there is a why."""
    message: Optional[Message] = None
    """The same for people, with what to do about it. Never holds rows or passwords."""
    mode: Optional[RefreshMode] = None
    """How the refresh ran: Concurrent let readers read, Blocking made them wait."""
    correlation_id: Optional[Token] = None
    """The id that this run has in the logs, in events and in the ledger; a request's token if it was
    requested."""
    started_at: Optional[Time] = None
    """When the run started, on the operator's clock."""
    duration_ms: Optional[Count] = None
    """How long the run took, in milliseconds."""
    data_as_of: Optional[Time] = None
    """The moment that the view's rows reflect, on the server's clock."""
    verified_at: Optional[Time] = None
    """When the rows were last known to be current, on the server's clock."""
    rows_inserted: Optional[Count] = None
    """Rows that the refresh added. After a Concurrent run exactly the difference, where a changed row counts
    as one added and one removed; after a Blocking run all rows."""
    rows_deleted: Optional[Count] = None
    """Rows that the refresh removed; only a Concurrent run knows."""
    estimated_rows: Optional[Count] = None
    """Rows of the view as the server's statistics estimate them."""
    size_bytes: Optional[Count] = None
    """Size of the view with its indexes, in bytes."""
    rows_before: Optional[Count] = None
    """Rows before the refresh, counted; only where the view's guard has maxRowLossPercent or keepTenants."""
    rows_after: Optional[Count] = None
    """Rows after the refresh, counted; only where the view has a guard. After REJECTED_BY_GUARD these are
    the rows that were rolled back."""
    tenants_before: Optional[Count] = None
    """Values of the guard's keepTenants column before the refresh."""
    tenants_lost: Optional[Count] = None
    """How many of them the new rows do not have."""
    attempts: Optional[Count] = None
    """Attempts that this slot took."""
    consecutive_failures: Optional[Count] = None
    """Slots in a row that failed for this view; 0 after a success."""


@dataclass(config=Model.model_config, slots=True, kw_only=True)
class HistoryEntry(Undescribed):
    """One slot or request, all views together. As a Model it would take twice the memory, and a policy keeps many."""

    slot_time: Optional[Time] = None
    """The instant at which the schedule made the policy due; absent for a request."""
    request: Optional[Token] = None
    """The token of the request; absent for a scheduled slot."""
    outcome: RefreshOutcome
    """The worst outcome among the views."""
    started_at: Time
    """When the first view's run started."""
    duration_ms: Count
    """From the first view's start to the last one's end, in milliseconds."""
    views: Count
    """How many views the slot had."""
    failed: Count
    """How many of them failed."""
    message: Optional[Message] = None
    """What the worst outcome's run had to say."""
    correlation_id: Optional[Token] = None
    """The id that the slot has in the logs, in events and in the ledger."""


ViewStatuses = Annotated[
    tuple[ViewStatus, ...],
    Field(
        max_length=100,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["schema", "name"],
        },
    ),
]
History = Annotated[
    tuple[HistoryEntry, ...], Field(max_length=50, json_schema_extra={"x-kubernetes-list-type": "atomic"})
]


class MatviewRefreshPolicyStatus(Model):
    """What the operator knows about a policy; written by the operator alone, once when a slot ended, and before
    that once while a view waits to be tried again.
    """

    observed_generation: Optional[Count] = None
    """The metadata.generation of the newest spec that the operator has acted on."""
    conditions: Conditions = ()
    """Ready: the policy can run, and did not fail three slots in a row. Fresh: every view was verified at or
    after the newest due slot. Stalled, present only when True: a person has to mend something.
    Reconciling, present only when True: a change or a request is being worked on. TargetMissed, present only
    when True: the rows will be older than schedule.maxStalenessSeconds before the next ones are there."""
    schedule: Optional[Annotated[OneOf[str], Field(max_length=256)]] = None
    """The schedule in words: every 30s, at most 300s old, or the cron expression with its time zone."""
    last_slot_time: Optional[Time] = None
    """The newest slot that ended, whatever its outcome."""
    next_slot_time: Optional[Time] = None
    """The next slot of the schedule; absent while the policy is suspended or its spec invalid."""
    missed_slots: Optional[Count] = None
    """Slots that were not run, because they were later than startingDeadlineSeconds allows."""
    consecutive_failures: Optional[Count] = None
    """Slots in a row with a failed view; 0 after a success."""
    last_success_time: Optional[Time] = None
    """When a slot last ended with every view fresh."""
    last_handled_request: Optional[Token] = None
    """The token of the newest request that was answered. It is written after all views ended, failed ones
    too, so that `kubectl wait --for=jsonpath='{.status.lastHandledRequest}'=TOKEN` waits for the answer."""
    views: ViewStatuses = ()
    """The newest run of each view."""
    history: History = ()
    """The newest slots and requests, newest first; as many as spec.historyLimit says."""
