"""What the watch and the list say, turned into changes of the registry. Stale and repeated news changes nothing."""

from __future__ import annotations

import logging
from dataclasses import replace

from matview_operator.api.model import REQUESTED_AT, ObjectMeta
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec, Schedule
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.errors import Problem
from matview_operator.domain.reading import (
    InvalidObject,
    read_database,
    read_database_name,
    read_database_status,
    read_metadata,
    read_policy,
    read_policy_status,
)
from matview_operator.domain.shard import Shard
from matview_operator.domain.status import for_views, views_of
from matview_operator.engine.ports import Clock, Key, ObjectRef
from matview_operator.engine.registry import Database, Policy
from matview_operator.engine.supervisor import Supervisor

log = logging.getLogger(__name__)

WHOLE = Shard()


class Intake:
    """Feeds the supervisor with raw objects of the API server."""

    def __init__(self, *, supervisor: Supervisor, clock: Clock, shard: Shard = WHOLE) -> None:
        self._shard = shard
        self._supervisor = supervisor
        self._registry = supervisor.registry
        self._clock = clock

    def policy_seen(self, body: object) -> None:
        """A policy was added, changed or listed."""
        meta = self._metadata(body)
        if meta is None:
            return
        if not self._shard.owns(namespace=meta.namespace, database=read_database_name(body)):
            self.policy_gone(body)  # it may have been ours, and name another database now
            return
        self._seen(meta)
        agenda = self._supervisor.agenda
        request = meta.annotations.get(REQUESTED_AT)
        former = self._registry.policies.get(_key(meta))
        if former is not None and former.ref.uid != meta.uid:
            self._supervisor.forget_policy(former)
            former = None
        if former is not None and meta.generation < former.generation:
            return  # late news
        if former is not None and former.generation == meta.generation:
            # Our own status writes come back as such news. Metadata does not bump the generation.
            if former.request != request:
                former.request = request
                agenda.consider_request(former)
            return
        policy = self._policy_of(body, meta, former)
        policy.request = request
        rivals = set() if former is None else self._registry.rivals(former)
        self._registry.add_policy(policy)
        if former is not None and self._owes_nothing(former, policy):
            agenda.resume(policy)
        agenda.schedule(policy)
        agenda.announce(policy)
        if policy.database_key is None:
            agenda.chronicle.publish(policy)
        if former is not None and former.database_key != policy.database_key:
            rivals |= self._supervisor.order.stirred(former.database_key)
        self._supervisor.ask_again({policy.key} | rivals | self._registry.rivals(policy))
        agenda.consider_request(policy)

    def policy_gone(self, body: object) -> None:
        """A policy was deleted."""
        meta = self._metadata(body)
        former = None if meta is None else self._registry.policies.get(_key(meta))
        if meta is not None and former is not None and former.ref.uid == meta.uid:
            self._supervisor.forget_policy(former)

    def database_seen(self, body: object) -> None:
        """A database was added, changed or listed."""
        meta = self._metadata(body)
        if meta is None or not self._shard.owns(namespace=meta.namespace, database=meta.name):
            return
        self._seen(meta)
        former = self._registry.databases.get(_key(meta))
        if former is not None and former.ref.uid != meta.uid:
            self._supervisor.forget_database(former)
            former = None
        if former is not None and meta.generation <= former.generation:
            return
        database = self._database_of(body, meta, former)
        self._registry.databases[database.ref.key] = database
        self._supervisor.budget.limit_changed(database.ref.key)
        resumed = former is not None and former.spec is not None and former.spec.suspend
        suspended = database.spec is not None and database.spec.suspend
        policies = self._registry.policies_of(database.ref.key)
        for policy in policies:
            if resumed:
                self._supervisor.agenda.resume(policy)
            self._supervisor.agenda.schedule(policy)
            if suspended:
                self._supervisor.agenda.stop(policy)
        self._supervisor.preflights.ask(database.ref.key, [policy.key for policy in policies])

    def database_gone(self, body: object) -> None:
        """A database was deleted; its policies say so."""
        meta = self._metadata(body)
        former = None if meta is None else self._registry.databases.get(_key(meta))
        if meta is not None and former is not None and former.ref.uid == meta.uid:
            self._supervisor.forget_database(former)

    def knows(self, uid: str) -> bool:
        """Whether it is that of a policy or database that is known already."""
        return uid in self._registry.resource_versions

    def known_uids(self) -> set[str]:
        """The objects known now; taken before a list, so that what is created meanwhile is not pruned."""
        policies, databases = self._registry.policies, self._registry.databases
        return {policy.ref.uid for policy in policies.values()} | {known.ref.uid for known in databases.values()}

    def prune(self, *, known_before: set[str], listed: set[str]) -> None:
        """Forget what was known before a list and is not in it: its deletion was lost over a re-list."""
        lost = known_before - listed
        for policy in [policy for policy in self._registry.policies.values() if policy.ref.uid in lost]:
            self._supervisor.forget_policy(policy)
        for database in [known for known in self._registry.databases.values() if known.ref.uid in lost]:
            self._supervisor.forget_database(database)

    def _metadata(self, body: object) -> ObjectMeta | None:
        try:
            meta = read_metadata(body)
        except InvalidObject as error:
            log.warning("an object without usable metadata: %s", error, extra={"action": "intake"})
            return None
        return meta

    def _seen(self, meta: ObjectMeta) -> None:
        if meta.resource_version is not None:
            self._registry.resource_versions[meta.uid] = meta.resource_version

    def _policy_of(self, body: object, meta: ObjectMeta, former: Policy | None) -> Policy:
        problem: Problem | None = None
        try:
            spec = read_policy(body).spec
        except InvalidObject as error:
            spec, problem = None, Problem(RefreshReason.INVALID_SPEC, str(error))
        if former is None:
            created = meta.creation_timestamp or self._clock.now()
            status = read_policy_status(body)
            return Policy(
                ref=ObjectRef(kind="MatviewRefreshPolicy", key=_key(meta), uid=meta.uid),
                generation=meta.generation,
                created_at=created,
                spec=spec,
                problem=problem,
                is_judged=problem is not None,
                status=_for_spec(status, spec),
                taken_until=max(created, status.last_slot_time or created),
            )
        # All that slots in flight have told it stays; what the former spec was judged to be, until the preflight
        # speaks again.
        policy = replace(former, generation=meta.generation, spec=spec, status=_for_spec(former.status, spec))
        if problem is not None or former.spec is None:
            policy.problem, policy.note, policy.is_judged = problem, None, problem is not None
        return policy

    def _database_of(self, body: object, meta: ObjectMeta, former: Database | None) -> Database:
        problem: Problem | None = None
        try:
            spec = read_database(body).spec
        except InvalidObject as error:
            spec, problem = None, Problem(RefreshReason.INVALID_SPEC, str(error))
        return Database(
            ref=ObjectRef(kind="MatviewDatabase", key=_key(meta), uid=meta.uid),
            generation=meta.generation,
            spec=spec,
            problem=problem,
            status=read_database_status(body) if former is None else former.status,
        )

    def _owes_nothing(self, former: Policy, policy: Policy) -> bool:
        """Whether slots before now are none of the policy's: its schedule is new, or was suspended or unreadable."""
        if former.spec is None or policy.spec is None or _plan(former.spec) != _plan(policy.spec):
            return True
        suspended = self._supervisor.registry.is_suspended
        return suspended(former) and not suspended(policy)


def _plan(spec: MatviewRefreshPolicySpec) -> tuple[Schedule, int]:
    return spec.schedule, spec.jitter_seconds


def _for_spec(status: MatviewRefreshPolicyStatus, spec: MatviewRefreshPolicySpec | None) -> MatviewRefreshPolicyStatus:
    return status if spec is None else for_views(status, views_of(spec))


def _key(meta: ObjectMeta) -> Key:
    return Key(meta.namespace, meta.name)
