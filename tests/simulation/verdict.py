"""The end of a history, long after the last fault: what is stored is true, and everybody is served."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.simulation.accounts import Accounts, Book
from tests.simulation.cluster import Cluster
from tests.simulation.ground import Ground
from tests.simulation.process import Process
from tests.simulation.seen import DATABASE, POLICY

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.model import REQUESTED_AT
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.conditions import WINDOW_CLOSED
from matview_operator.domain.result import was_begun
from matview_operator.domain.run import request_id
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.slot import is_fresh
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

_NOT_KNOWN = (RefreshOutcome.INTERRUPTED, RefreshOutcome.SKIPPED_LOCK_HELD, RefreshOutcome.UNKNOWN)
_MISSED = ("SlotMissed", WINDOW_CLOSED)
_LATEST_SECONDS = 90.0
_LATEST_OF_ALL_SECONDS = 300.0
"""How long before the end a slot is due that must have ended: longer than all views take, in a row."""


class Verdict:
    """Compares what exists, what the engine holds and what is stored."""

    def __init__(self, ground: Ground, *, cluster: Cluster, process: Process, accounts: Accounts) -> None:
        self._ground = ground
        self._objects = {place: body for place, body in cluster.api.objects.items() if process.owns(body)}
        self._process = process
        self._registry = process.supervisor.registry
        self._accounts = accounts

    def pronounce(self) -> None:
        """Say all that is wrong."""
        if not self._knows_what_is_there():
            return
        self._check_stored()
        for key, policy in self._registry.policies.items():
            book = self._accounts.books[policy.ref.uid]
            self._check_request(policy)
            timetable = policy.timetable
            if not isinstance(timetable, Timetable):
                continue
            reporter = self._process.supervisor.reporter
            if reporter.has_written(policy.ref):  # statuses may wait for runs
                self._check_books(key, policy, timetable, book)
            agenda = self._process.supervisor.agenda
            if not self._registry.is_suspended(policy):
                self._check_service(key, policy, timetable)
                if key not in agenda.dispatcher._lanes:  # else it may say that it tries again
                    self._check_conditions(key, policy)
            if key not in agenda.dispatcher._lanes:  # else it tells at the end
                self._check_views(key, policy, book)

    def _knows_what_is_there(self) -> bool:
        known = {
            **{(POLICY, key): policy.ref.uid for key, policy in self._registry.policies.items()},
            **{(DATABASE, key): database.ref.uid for key, database in self._registry.databases.items()},
        }
        there = {place: body["metadata"]["uid"] for place, body in self._objects.items()}
        if known != there:
            self._ground.violate(f"the operator knows {sorted(known)}, but there are {sorted(there)}")
        if {*self._registry.resource_versions} != {*there.values()}:
            self._ground.violate("the operator keeps versions of objects that are gone, or lacks some")
        return known == there

    def _check_stored(self) -> None:
        for (kind, key), body in self._objects.items():
            held = self._registry.policies[key] if kind == POLICY else self._registry.databases[key]
            if held.generation != body["metadata"]["generation"]:
                self._ground.violate(f"the operator knows an old spec of {key}")
            document = {name: value for name, value in status_document(held.status).items() if value is not None}
            if self._process.supervisor.reporter.has_written(held.ref) and document != body.get("status", {}):
                self._ground.violate(f"the status of {kind} {key} is not what the operator holds")

    def _check_request(self, policy: Policy) -> None:
        """The newest token is answered or being refreshed for, but where a window has opened just now."""
        token = self._objects[POLICY, policy.key]["metadata"].get("annotations", {}).get(REQUESTED_AT)
        if token is None or policy.status.last_handled_request == token:
            return
        database = self._registry.database_of(policy)
        is_at_work = policy.key in self._process.supervisor.agenda.dispatcher._lanes
        if is_at_work and database is not None and database.spec is not None and database.spec.windows:
            return
        if is_at_work and self._process.supervisor.agenda._turns.follows(policy.key):
            return  # its slot may wait for what it reads, which is tried again after minutes
        if policy.working_on == token and policy.key in self._process.supervisor.agenda._pauses._waiting:
            return  # a lock is held by another run, and looked at again within seconds
        work = policy.uid, request_id(token)
        if not any((run.policy_uid, run.slot_id) == work for call in self._process.sessions.calls for run in call.runs):
            self._ground.violate(f"{policy.key} does not answer {token}")

    def _check_books(self, key: Key, policy: Policy, timetable: Timetable, book: Book) -> None:
        """Each slot is run, covered or counted as missed, in the status and in the metric."""
        status, last = policy.status, policy.status.last_slot_time
        missed = status.missed_slots or 0
        # Before it was created: the clock was set back so far that nothing of before was believed.
        if book.is_plain and last is not None and last >= policy.created_at:
            owed = timetable.due_between(policy.created_at, last).slots
            lane = self._process.supervisor.agenda.dispatcher._lanes.get(key)
            current = None if lane is None else lane.current
            # A slot at work may be older than one that was missed meanwhile, for a window that has closed.
            at_work = set() if current is None or current.request is not None else {current.due_at}
            handled = {slot for slot in book.handled | at_work if slot <= last}
            # Those that were superseded since the last one that ended may be counted with it.
            since = timetable.due_between(last, max(last, self._ground.clock.now())).slots
            told = missed + len(handled - book.missed_too)
            # One that came back when a newer one had been missed is counted, and not told yet.
            if not owed - policy.missed <= told <= owed + since:
                self._ground.violate(
                    f"{key} owed {owed} slots until {last}: {len(handled)} handled, {len(handled & book.missed_too)} "
                    f"of them missed too, and {missed} missed are not so many"
                )
        uid = policy.ref.uid
        counted = self._process.missed_before.get(uid, 0) + self._process.counts.missed[uid]
        if counted != missed + policy.missed:
            self._ground.violate(f"{key} says {missed} missed, and the metric {counted}")

    def _check_service(self, key: Key, policy: Policy, timetable: Timetable) -> None:
        """Its newest slots have ended, and its next one is told."""
        status, now = policy.status, self._ground.clock.now()
        latest = min(_LATEST_OF_ALL_SECONDS, _LATEST_SECONDS + self._all_seconds())
        newest, last = timetable.newest_at(now - timedelta(seconds=latest)), status.last_slot_time
        is_handled = last is not None and last >= newest
        is_pending = (
            key in self._process.supervisor.agenda.dispatcher._lanes
        )  # it may be tried again until the next one
        if newest > policy.created_at and not (is_handled or is_pending or self._is_forgiven(policy, newest)):
            self._ground.violate(f"{key} was due at {newest}, and its last slot is {last}")
        if last is not None and now >= last >= timetable.newest_at(now):  # else the clock was set back
            following = timetable.next_after(max(now, policy.taken_until))
            if status.next_slot_time != following:
                self._ground.violate(f"{key} says after {last} that it is due at {status.next_slot_time}")

    def _all_seconds(self) -> float:
        """How long all views of all policies take, if all are refreshed one after another, at the longest."""
        views = sum(len(policy.spec.views) for policy in self._registry.policies.values() if policy.spec is not None)
        return 1.5 * views * max(server.seconds for server in self._process.sessions.servers.values())

    def _is_forgiven(self, policy: Policy, slot: datetime) -> bool:
        """Whether the schedule changed, or was resumed, after the slot; by the clock too, which may have been ahead."""
        if self._ground.clock.set_back and slot <= self._process.heard_until:
            return True
        place = policy.database_key
        changed = self._process.news_at.get((POLICY, policy.key), 0.0)
        if place is not None:
            changed = max(changed, self._process.news_at.get((DATABASE, place), 0.0))
        ago = (self._ground.clock.now() - slot).total_seconds()
        return self._ground.now - ago <= changed

    def _check_conditions(self, key: Key, policy: Policy) -> None:
        """Ready and Fresh say what the newest slot and the other policies mean for it."""
        status = policy.status
        order = self._process.supervisor.order
        is_well = self._registry.sharing_problem(policy) is None and order.problem(policy) is None
        conditions = {condition.type: condition for condition in status.conditions}
        ready, fresh = conditions.get("Ready"), conditions.get("Fresh")
        newest = status.history[0] if status.history else None
        is_good = newest is None or is_fresh(newest.outcome)
        if (
            ready is None
            or (ready.status == "True" and not is_well)
            or (ready.status == "False" and is_well and is_good)
        ):
            self._ground.violate(f"{key} is {'' if is_well else 'not '}well, and says {ready}")
        is_told = fresh is not None and (fresh.reason in _MISSED or is_good is (fresh.status == "True"))
        # A slot that a dead process tried again may be ahead of a clock that was set back; until then it stays told.
        has_forgotten = self._ground.clock.set_back and self._process.started_at > self._ground.jumped_at
        is_told |= has_forgotten and fresh is not None and fresh.reason == "Retrying"
        if newest is not None and not is_told:
            self._ground.violate(f"{key} says {fresh} after {newest}")

    def _check_views(self, key: Key, policy: Policy, book: Book) -> None:
        """What is said of each view is what the executor said last."""
        for view in policy.status.views:
            answer = book.answers.get(f"{view.correlation_id} {view.name}")
            if answer is None or (answer.is_again and answer.process != str(self._process)):
                continue  # what came of a slot that was run once more died with that process
            outcome = view.outcome
            asked = outcome is not None and outcome not in _NOT_KNOWN and was_begun(outcome, view.reason)
            if not asked and answer.process != str(self._process):
                continue  # who was told so died before it was stored, and the next got less far, or cannot know
            said = answer.outcome
            is_told = outcome is RefreshOutcome.SUCCESS or is_fresh(said)
            if is_told and said is not outcome:
                self._ground.violate(f"{key} says {outcome} of {view.name}, and the executor said {said}")
