"""The policies and databases that exist, as the API server last said."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field
from datetime import datetime

from matview_operator.api.condition import Condition
from matview_operator.api.database import Bookkeeping, MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.policy import Isolation, MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import Statement
from matview_operator.domain.errors import Problem
from matview_operator.domain.jitter import delay, part_of_second
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.sharing import sharing_problem
from matview_operator.domain.staleness import StalenessTarget, staleness_target
from matview_operator.domain.status import Standing, views_of
from matview_operator.domain.view import GLOBAL, TenantToken, ViewName
from matview_operator.domain.windows import Outlook
from matview_operator.engine.ports import Key, ObjectRef


@dataclass(slots=True, kw_only=True)
class Policy:
    """One policy. `spec` is None while it is invalid; then `problem` says why."""

    ref: ObjectRef
    generation: int
    created_at: datetime
    spec: MatviewRefreshPolicySpec | None
    problem: Problem | None = None
    """What the spec or the newest preflight found wrong."""
    note: Statement | None = None
    is_judged: bool = False
    """Whether `problem` and `note` are known; after a start they are not, and the stored conditions are repeated."""
    status: MatviewRefreshPolicyStatus
    request: str | None = None
    """The value of the requestedAt annotation."""
    refused_request: str | None = None
    """The newest value that cannot be a request, so that it is told once."""
    working_on: str | None = None
    held_request: tuple[str, datetime] | None = None
    """The token of a request that waits for a window of the database, and when that opens."""
    request_begun_at: datetime | None = None
    missed: int = 0
    """Slots that a newer one superseded since the last status."""
    missed_until: datetime | None = None
    """The newest of them."""
    taken_until: datetime
    """Slots at or before this instant are none of ours any more: taken up, missed, or before the policy was so."""
    uid: uuid.UUID = field(init=False)
    """By which the ledger knows the policy."""
    views: tuple[ViewName, ...] = field(init=False)
    """Those that it names, in its order; none while the spec is invalid."""
    database_key: Key | None = field(init=False)
    """The MatviewDatabase it names, of the same namespace always; None while the spec is invalid."""
    _timetable: Timetable | None = field(init=False)

    def __post_init__(self) -> None:
        # Worked out once: each slot asks for them dozens of times.
        self.uid = uuid.UUID(self.ref.uid)
        self.views = () if self.spec is None else views_of(self.spec)
        self.database_key = None if self.spec is None else Key(self.ref.key.namespace, self.spec.database_ref.name)
        self._timetable = None if self.spec is None else _fixed_timetable(self.spec, self.uid)

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.ref.key

    @property
    def timetable(self) -> Timetable | StalenessTarget | None:
        """Its slots; None while the spec is invalid."""
        return self.timetable_by(self.status)

    def timetable_by(self, status: MatviewRefreshPolicyStatus) -> Timetable | StalenessTarget | None:
        """Its slots when this is its status, from which those of a target follow."""
        if self.spec is not None and self.spec.schedule.max_staleness_seconds is not None:
            return staleness_target(self.spec.schedule.max_staleness_seconds, spec=self.spec, status=status)
        return self._timetable

    @property
    def lock_token(self) -> TenantToken:
        """What its runs are locked by, beside the view."""
        if self.spec is not None and self.spec.isolation is Isolation.TENANT and self.spec.tenant_id is not None:
            return TenantToken(self.spec.tenant_id)
        return GLOBAL

    def standing(self) -> Standing:
        """What its conditions are made of."""
        return Standing(
            generation=self.generation,
            problem=self.problem,
            note=self.note,
            is_judged=self.is_judged,
            suspended=self.spec is not None and self.spec.suspend,
            working_on=self.working_on,
            held_request=self.held_request,
        )


@dataclass(slots=True, kw_only=True)
class Database:
    """One MatviewDatabase. `spec` is None while it is invalid; then `problem` says why."""

    ref: ObjectRef
    generation: int
    spec: MatviewDatabaseSpec | None
    problem: Problem | None = None
    status: MatviewDatabaseStatus
    outlook: Outlook | None = None
    """What its windows say of now; worked out when somebody asks."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Its conditions as last computed."""
        return self.status.conditions

    @property
    def has_ledger(self) -> bool:
        """Whether the newest look at it found a ledger that may be trusted."""
        return self.status.server is not None and self.status.server.bookkeeping is Bookkeeping.INSTALLED


@dataclass(slots=True)
class Registry:
    """Who exists, and who shares a view. The newest resourceVersion of each object is kept for status writes."""

    policies: dict[Key, Policy] = field(default_factory=dict)
    databases: dict[Key, Database] = field(default_factory=dict)
    resource_versions: dict[str, str] = field(default_factory=dict)
    """By UID."""
    revisions: dict[Key, int] = field(default_factory=dict)
    """By database: another number after each change of its policies; none for one that no policy names."""
    views: dict[Key, set[ViewName]] = field(default_factory=lambda: defaultdict(set))
    """By database: those that its policies name."""
    dependent: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """By database: the policies that say what a view depends on."""
    _changes: int = 0
    _by_database: dict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))
    _by_view: dict[tuple[Key, ViewName], dict[TenantToken, set[Key]]] = field(default_factory=dict)

    def add_policy(self, policy: Policy) -> None:
        """Add it, or put it in the place of its former self."""
        self.remove_policy(policy.key)
        self.policies[policy.key] = policy
        if policy.database_key is not None:
            self._by_database[policy.database_key].add(policy.key)
            self._changed(policy.database_key)
            if policy.spec is not None and any(view.depends_on for view in policy.spec.views):
                self.dependent[policy.database_key].add(policy.key)
        for place in _places(policy):
            self.views[place[0]].add(place[1])
            self._by_view.setdefault(place, {}).setdefault(policy.lock_token, set()).add(policy.key)

    def remove_policy(self, key: Key) -> Policy | None:
        """Forget it, and return what it was."""
        policy = self.policies.pop(key, None)
        if policy is not None and policy.database_key is not None:
            self._by_database[policy.database_key].discard(key)
            self._changed(policy.database_key)
            self.dependent[policy.database_key].discard(key)
            for place in _places(policy):
                users = self._by_view[place]
                users[policy.lock_token].discard(key)
                if not users[policy.lock_token]:
                    del users[policy.lock_token]
                if not users:
                    del self._by_view[place]
                    self.views[place[0]].discard(place[1])
            if not self._by_database[policy.database_key]:
                for known in (self._by_database, self.revisions, self.views, self.dependent):
                    known.pop(policy.database_key, None)
        return policy

    def policies_of(self, database: Key) -> list[Policy]:
        """The policies that name this database."""
        return [self.policies[key] for key in self._by_database.get(database, ())]

    def database_of(self, policy: Policy) -> Database | None:
        """The database that it names, if there is one of this name."""
        return self.databases.get(policy.database_key) if policy.database_key else None

    def named_databases(self) -> set[Key]:
        """The databases that exist, and those that policies name."""
        return {*self.databases, *self._by_database}

    @property
    def view_count(self) -> int:
        """How many views policies name, over all databases."""
        return len(self._by_view)

    def naming(self, database: Key, view: ViewName) -> Iterator[Key]:
        """The policies that name this view."""
        for keys in self._by_view.get((database, view), {}).values():
            yield from keys

    def is_suspended(self, policy: Policy) -> bool:
        """Whether nothing is due, by the policy's own word or its database's."""
        database = self.database_of(policy)
        return (policy.spec is not None and policy.spec.suspend) or (
            database is not None and database.spec is not None and database.spec.suspend
        )

    def sharing_problem(self, policy: Policy) -> Problem | None:
        """Whether another policy makes it unsafe to refresh one of its views."""
        for place in _places(policy):
            problem = sharing_problem(place[1], policy.lock_token, self._by_view.get(place, {}))
            if problem is not None:
                return problem
        return None

    def named_views(self) -> KeysView[tuple[Key, ViewName]]:
        """The views that policies name, each with its database."""
        return self._by_view.keys()

    def rivals(self, policy: Policy) -> set[Key]:
        """The policies under another lock token that name one of its views."""
        return {
            key
            for place in _places(policy)
            for token, keys in self._by_view.get(place, {}).items()
            if token != policy.lock_token
            for key in keys
        }

    def _changed(self, database: Key) -> None:
        self._changes += 1
        self.revisions[database] = self._changes


def _fixed_timetable(spec: MatviewRefreshPolicySpec, uid: uuid.UUID) -> Timetable | None:
    """Its slots if no status has a say in them."""
    if spec.schedule.max_staleness_seconds is not None:
        return None
    jitter = spec.jitter_seconds
    return Timetable(
        schedule=spec.schedule,
        jitter_seconds=jitter,
        delay=delay(uid, jitter_seconds=jitter),
        begins_after=part_of_second(uid, jitter_seconds=jitter),
    )


def _places(policy: Policy) -> Iterator[tuple[Key, ViewName]]:
    if policy.database_key is not None:
        for view in policy.views:
            yield policy.database_key, view
