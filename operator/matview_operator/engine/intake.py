"""What the watch and the list say, turned into changes of the registry. Stale and repeated news changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from matview_operator.api.model import REQUESTED_AT, ObjectMeta
from matview_operator.domain.errors import Problem
from matview_operator.domain.reading import (
    InvalidObject,
    read_database,
    read_database_status,
    read_metadata,
    read_policy,
    read_policy_status,
)
from matview_operator.domain.status import for_views, views_of
from matview_operator.engine.ports import Clock, Key, ObjectRef
from matview_operator.engine.registry import Database, Policy
from matview_operator.engine.supervisor import Supervisor, invalid_spec

log = logging.getLogger(__name__)


class Intake:
    """Feeds the supervisor with raw objects of the API server."""

    def __init__(self, *, supervisor: Supervisor, clock: Clock) -> None:
        self._supervisor = supervisor
        self._registry = supervisor.registry
        self._clock = clock

    def policy_seen(self, body: object) -> None:
        """A policy was added, changed or listed."""
        meta = self._metadata(body)
        if meta is None:
            return
        request = meta.annotations.get(REQUESTED_AT)
        former = self._registry.policies.get(_key(meta))
        if former is not None and former.ref.uid != meta.uid:
            self._forget_policy(former)
            former = None
        if former is not None and former.generation == meta.generation:
            # Our own status writes come back as such news. Metadata does not bump the generation.
            if former.request != request:
                former.request = request
                self._supervisor.consider_request(former)
            return
        policy = self._policy_of(body, meta, former)
        policy.request = request
        rivals = set() if former is None else self._registry.rivals(former)
        self._registry.add_policy(policy)
        if former is not None and _owes_nothing(former, policy):
            self._supervisor.resume(policy)
        self._supervisor.schedule(policy)
        self._supervisor.announce(policy)
        if policy.database_key is None:
            self._supervisor.publish(policy, policy.status)
        else:
            self._supervisor.preflights.ask(policy.database_key, {policy.key})
        self._ask_again(rivals | self._registry.rivals(policy))
        self._supervisor.consider_request(policy)

    def policy_gone(self, body: object) -> None:
        """A policy was deleted."""
        meta = self._metadata(body)
        former = None if meta is None else self._registry.policies.get(_key(meta))
        if meta is not None and former is not None and former.ref.uid == meta.uid:
            self._forget_policy(former)

    def database_seen(self, body: object) -> None:
        """A database was added, changed or listed."""
        meta = self._metadata(body)
        if meta is None:
            return
        former = self._registry.databases.get(_key(meta))
        if former is not None and (former.ref.uid, former.generation) == (meta.uid, meta.generation):
            return
        database = self._database_of(body, meta, former)
        self._registry.databases[database.ref.key] = database
        resumed = former is not None and former.spec is not None and former.spec.suspend
        for policy in self._registry.policies_of(database.ref.key):
            if resumed:
                self._supervisor.resume(policy)
            self._supervisor.schedule(policy)
        self._ask_all(database.ref.key)

    def database_gone(self, body: object) -> None:
        """A database was deleted; its policies say so."""
        meta = self._metadata(body)
        former = None if meta is None else self._registry.databases.get(_key(meta))
        if meta is not None and former is not None and former.ref.uid == meta.uid:
            self._forget_database(former)

    def known_uids(self) -> set[str]:
        """The objects known now; taken before a list, so that what is created meanwhile is not pruned."""
        policies, databases = self._registry.policies, self._registry.databases
        return {policy.ref.uid for policy in policies.values()} | {known.ref.uid for known in databases.values()}

    def prune(self, *, known_before: set[str], listed: set[str]) -> None:
        """Forget what was known before a list and is not in it: its deletion was lost over a re-list."""
        lost = known_before - listed
        for policy in [policy for policy in self._registry.policies.values() if policy.ref.uid in lost]:
            self._forget_policy(policy)
        for database in [known for known in self._registry.databases.values() if known.ref.uid in lost]:
            self._forget_database(database)

    def _metadata(self, body: object) -> ObjectMeta | None:
        try:
            meta = read_metadata(body)
        except InvalidObject as error:
            log.warning("an object without usable metadata: %s", error, extra={"action": "intake"})
            return None
        if meta.resource_version is not None:
            self._registry.resource_versions[meta.uid] = meta.resource_version
        return meta

    def _policy_of(self, body: object, meta: ObjectMeta, former: Policy | None) -> Policy:
        problem: Problem | None = None
        try:
            spec = read_policy(body).spec
        except InvalidObject as error:
            spec, problem = None, invalid_spec([str(error)])
        created = meta.creation_timestamp or self._clock.now()
        if former is None:
            status = read_policy_status(body)
            taken_until = max(created, status.last_slot_time or created)
        else:
            status, taken_until = former.status, former.taken_until
            if problem is None and former.spec is not None:
                problem = former.problem  # until the preflight says otherwise
        return Policy(
            ref=ObjectRef(kind="MatviewRefreshPolicy", key=_key(meta), uid=meta.uid),
            generation=meta.generation,
            created_at=created,
            spec=spec,
            problem=problem,
            status=status if spec is None else for_views(status, views_of(spec)),
            working_on=None if former is None else former.working_on,
            missed=0 if former is None else former.missed,
            taken_until=taken_until,
        )

    def _database_of(self, body: object, meta: ObjectMeta, former: Database | None) -> Database:
        problem: Problem | None = None
        try:
            spec = read_database(body).spec
        except InvalidObject as error:
            spec, problem = None, invalid_spec([str(error)])
        known = former is not None and former.ref.uid == meta.uid
        return Database(
            ref=ObjectRef(kind="MatviewDatabase", key=_key(meta), uid=meta.uid),
            generation=meta.generation,
            spec=spec,
            problem=problem,
            status=former.status if former is not None and known else read_database_status(body),
        )

    def _forget_policy(self, policy: Policy) -> None:
        rivals = self._registry.rivals(policy)
        self._registry.remove_policy(policy.key)
        self._registry.resource_versions.pop(policy.ref.uid, None)
        self._supervisor.forget(policy)
        self._ask_again(rivals)

    def _forget_database(self, database: Database) -> None:
        key = database.ref.key
        if self._registry.databases.get(key) is database:
            del self._registry.databases[key]
        self._registry.resource_versions.pop(database.ref.uid, None)
        self._supervisor.reporter.forget(database.ref)
        self._ask_all(key)

    def _ask_all(self, database: Key) -> None:
        policies = self._registry.policies_of(database)
        self._supervisor.preflights.ask(database, [policy.key for policy in policies])

    def _ask_again(self, keys: Iterable[Key]) -> None:
        for key in keys:
            policy = self._registry.policies.get(key)
            if policy is not None and policy.database_key is not None:
                self._supervisor.preflights.ask(policy.database_key, [key])


def _owes_nothing(former: Policy, policy: Policy) -> bool:
    """Whether slots before now are none of the policy's: its schedule is new, or was suspended or unreadable."""
    if former.spec is None or policy.spec is None:
        return True
    return former.spec.schedule != policy.spec.schedule or (former.spec.suspend and not policy.spec.suspend)


def _key(meta: ObjectMeta) -> Key:
    return Key(meta.namespace, meta.name)
