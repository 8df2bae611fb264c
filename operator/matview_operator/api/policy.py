"""MatviewRefreshPolicy: which views of which tenant are refreshed, when, and how."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from matview_operator.api.model import ClosedSet, CustomObject, Model, Optional
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.api.scalar import Cron, ObjectName, OneOf, TenantId, TenantSetting, TimeZone, rule, rules
from matview_operator.api.view import Concurrently, Views


class Isolation(ClosedSet):
    """Whose rows the views hold."""

    SHARED = "Shared"
    TENANT = "Tenant"


class Analyze(ClosedSet):
    """Whether the planner's statistics of a view are renewed with its rows."""

    AUTO = "Auto"
    NEVER = "Never"


class Consistency(ClosedSet):
    """Whether the views of a policy agree with each other."""

    VIEW = "View"
    GROUP = "Group"


class DatabaseRef(Model):
    """A MatviewDatabase of the same namespace."""

    name: ObjectName
    """Name of a MatviewDatabase in the same namespace as this policy."""


class Schedule(Model):
    """When the views are due: exactly one of cron, everySeconds and maxStalenessSeconds."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.cron), has(self.everySeconds), has(self.maxStalenessSeconds)].filter(x, x).size() == 1",
                "write exactly one of schedule.cron, schedule.everySeconds and schedule.maxStalenessSeconds",
            )
        )
    )

    cron: Optional[Cron] = None
    """Five cron fields: minute, hour, day of month, month, day of week; for example */5 * * * * for every
    five minutes or 30 2 * * MON-FRI for half past two on weekdays. A fixed local time that a change to or
    from daylight saving time leaves out or repeats is run once; every five minutes stays every five minutes."""
    time_zone: TimeZone = "Etc/UTC"
    """The time zone that cron's fields are meant in, by its name in the IANA database, as in Europe/Berlin.
    Without effect on everySeconds."""
    every_seconds: Optional[Annotated[int, Field(ge=5, le=31_536_000)]] = None
    """A fixed interval in seconds, at least 5. Slots are the multiples of it since 1970-01-01T00:00:00Z, so
    that policies with the same interval are due at the same instants, and a restart moves nothing."""
    max_staleness_seconds: Optional[Annotated[int, Field(ge=10, le=31_536_000)]] = None
    """How old the rows of the oldest view may become, in seconds, at least 10. Each refresh is begun so early, by
    how long the last ones took, that the next rows are there before that. The first one runs at once. Where a
    refresh takes too long for it, the condition TargetMissed says so and by how much."""


class Retry(Model):
    """How often and after how long a view that failed is tried again in the same slot."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                # Both are there, but for the API server's look at the default of the whole object, which is empty.
                "!has(self.backoffSeconds) || !has(self.maxBackoffSeconds) || "
                "self.backoffSeconds <= self.maxBackoffSeconds",
                "retry.backoffSeconds must not be more than retry.maxBackoffSeconds: raise the one or lower the other",
            )
        )
    )

    limit: Annotated[int, Field(ge=0, le=20)] = 3
    """How many times a view that failed may be tried again in one slot or for one request; 0: never. A lock
    that somebody else holds is waited for besides."""
    backoff_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """The longest pause before the first of them, in seconds. It doubles with each; the pause is a random part
    of it."""
    max_backoff_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """The longest pause of all, in seconds. What lasts, as a full disk or a query that fails, is tried again
    after half of it at the earliest."""


class MatviewRefreshPolicySpec(Model):
    """Which views, when, and how."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.isolation != 'Tenant' || has(self.tenantId)",
                "isolation Tenant needs a tenantId: write whose views these are, or use isolation Shared",
            ),
            rule(
                "self.consistency != 'Group' || (self.concurrently != 'Never' && "
                "self.views.all(view, !has(view.concurrently) || view.concurrently != 'Never'))",
                "consistency Group and concurrently Never exclude each other: readers would wait for the whole group",
            ),
            rule(
                "!has(self.schedule.everySeconds) || self.jitterSeconds <= self.schedule.everySeconds",
                "jitterSeconds must be no more than schedule.everySeconds",
            ),
            rule(
                "!has(self.schedule.maxStalenessSeconds) || self.jitterSeconds == 0",
                "jitterSeconds and schedule.maxStalenessSeconds exclude each other: its slots are spread by themselves",
            ),
        )
    )

    database_ref: OneOf[DatabaseRef]
    """The MatviewDatabase that has the views."""
    tenant_id: Optional[TenantId] = None
    """The tenant that this policy belongs to, in 1 to 63 printable characters. Under isolation Shared it is a
    label only; under Tenant it is also given to the view's query and is part of the lock."""
    isolation: Isolation = Isolation.SHARED
    """Shared: the views hold the rows of many tenants; they are refreshed whole, with row-level security off,
    and fail rather than lose another tenant's rows. Tenant: the views are this tenant's alone, and the
    refresh runs with the tenant's setting; it needs a tenantId."""
    tenant_setting: TenantSetting = "app.current_tenant_id"
    """Under isolation Tenant: the PostgreSQL setting that holds the tenant id during the refresh, for the
    policies of row-level security to read. It is set for the one transaction only."""
    views: Views
    """The materialized views, 1 to 100, begun in this order, as many at once as there are places. A view that reads
    others comes after those, and after those of other policies that are due no later."""
    consistency: Consistency = Consistency.VIEW
    """View: each view is refreshed for itself, and shows its own instant. Group: all views are refreshed in one
    transaction and show the same instant, or all keep their old rows; a view comes after those of the group
    that it reads. It is for reports that read several views and must not contradict themselves. Every view
    needs a unique index on plain columns, one that fails holds back all, and their timeouts are added up to the
    group's, at most limits.timeoutSeconds of the MatviewDatabase."""
    schedule: OneOf[Schedule]
    """When the views are due. Nothing is run when a policy is applied, but under maxStalenessSeconds: the next
    slot is the first."""
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] = 0
    """By how many seconds at most the slots of this policy come later than its schedule says, so that a thousand
    policies with the same schedule do not all begin at the same instant. How much of it a policy takes follows
    from its UID and never changes: its slots are as far apart as without. No longer than the shortest time
    between two of the schedule's slots."""
    starting_deadline_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    """How late a slot may start, in seconds. A later one is missed and counted, not run; after a pause only
    the newest slot that is still in time is run."""
    concurrently: Concurrently = Concurrently.IF_POSSIBLE
    """Whether readers may go on reading during a refresh. IfPossible: yes where the view has a usable unique
    index, else they wait, and a condition says so. Always: yes, and a view without such an index is an
    error. Never: readers wait; the fastest way to rebuild a view that nobody reads meanwhile."""
    analyze: Analyze = Analyze.AUTO
    """Whether to run ANALYZE on a view after a blocking refresh, which rewrites it whole and leaves the planner
    with the old rows' statistics. It runs after COMMIT, on the view alone, and never fails the refresh. Auto:
    yes. Never: leave it to autovacuum. After a refresh that let readers read, autovacuum sees to it anyway."""
    suspend: bool = False
    """Whether to stop the schedule. A requested refresh still runs: annotate the policy with
    matviews.skeldir.io/requestedAt to ask for one."""
    retry: OneOf[Retry] = Retry()
    """What becomes of a view that failed for a reason that may pass, as a server that restarts. It is tried
    again in the same slot, never past the next one; the policy's other views do not wait for it."""
    history_limit: Annotated[int, Field(ge=0, le=50)] = 5
    """How many past slots status.history keeps."""


class MatviewRefreshPolicy(CustomObject):
    """MatviewRefreshPolicy says which materialized views of a database are kept fresh, when, and how."""

    KIND: ClassVar[str] = "MatviewRefreshPolicy"
    PLURAL: ClassVar[str] = "matviewrefreshpolicies"

    spec: MatviewRefreshPolicySpec
    """Which views are refreshed, when, and how."""
    status: Optional[MatviewRefreshPolicyStatus] = None
    """What the operator did and found. Written by the operator alone."""
