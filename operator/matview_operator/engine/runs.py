"""What the executor is asked to do for one view of a policy."""

from __future__ import annotations

from matview_operator.api.database import DatabaseLimits, MatviewDatabaseSpec
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.view import ViewSpec
from matview_operator.domain.run import Run
from matview_operator.domain.slot import Slot
from matview_operator.domain.view import ViewName
from matview_operator.engine.registry import Policy


def run_of(
    policy: Policy,
    view: ViewSpec,
    slot: Slot,
    *,
    spec: MatviewRefreshPolicySpec,
    database: MatviewDatabaseSpec | None,
) -> Run:
    """The run of one view for a slot; a view's own field wins over the policy's, the policy's over the database's."""
    limits = DatabaseLimits() if database is None else database.limits
    return Run(
        view=ViewName(view.schema_name, view.name),
        tenant_id=spec.tenant_id,
        isolation=spec.isolation,
        tenant_setting=spec.tenant_setting,
        concurrently=view.concurrently or spec.concurrently,
        timeout_seconds=view.timeout_seconds or limits.timeout_seconds,
        lock_timeout_millis=limits.lock_timeout_millis,
        allow_superuser=database is not None and database.allow_superuser,
        policy_uid=policy.uid,
        slot_id=slot.id,
        due_at=None if slot.request is not None else slot.due_at,
        correlation_id=slot.correlation_id(policy.uid),
        analyze=spec.analyze,
        search_path=() if database is None else database.search_path,
        guard=view.guard,
    )
