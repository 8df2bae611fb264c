"""The rules of each step: what may be begun, how much at once, how late, and how long what is due may wait."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from tests.simulation.accounts import Accounts
from tests.simulation.ground import Ground
from tests.simulation.process import Process
from tests.simulation.sessions import Call
from tests.unit.memory_api import Body

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.slot import is_fresh
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

POLICY = "MatviewRefreshPolicy"
DATABASE = "MatviewDatabase"

_TO_ACT_SECONDS = 20.0
"""From hearing of a change until nothing is begun any more that it forbids: a Secret may be read just then."""
_TO_MEND_SECONDS = 600.0
"""A slot that fails for its Secret may wait for another attempt until the next one is due."""
_TO_READ_SECONDS = 5.0
"""The longest that a Secret takes, between the place that was given and the call."""
_TO_BEGIN_SECONDS = 25.0
"""From a slot's instant, or the end of what was in its way, to its begin: the longest pause for a held lock, a Secret's
second, a clock that is looked at now and then."""
_PLACES_IN_A_ROW = 1
"""How often each view of a database may be begun while one slot waits for a place there."""

_AGAIN = frozenset({RefreshOutcome.SKIPPED_LOCK_HELD, RefreshOutcome.UNKNOWN})


class Judge:
    """Watches the processes. What a process cannot know yet is not held against it."""

    def __init__(self, ground: Ground, *, accounts: Accounts, objects: Mapping[tuple[str, Key], Body]) -> None:
        """`objects`: as they are stored."""
        self._ground = ground
        self._objects = objects
        self._held: defaultdict[Process, dict[str, tuple[object, bool]]] = defaultdict(dict)
        """By policy UID: the status at the last look, and whether it was found to be stored."""
        self._accounts = accounts
        self._done: dict[Process, set[tuple[str, str, str]]] = {}
        """Policy UID, slot id and view of what need not be done again, as the process knows."""
        self._begun: defaultdict[Process, set[tuple[str, str]]] = defaultdict(set)
        self._active: defaultdict[Process, dict[str, float]] = defaultdict(dict)
        """By policy UID: when a call of it last began or ended."""
        self._starts: defaultdict[tuple[Process, str], list[float]] = defaultdict(list)
        """By MatviewDatabase: when calls began."""
        self.calls = 0

    def loaded(self, process: Process) -> None:
        """Note what the stored statuses tell it."""
        done = self._done[process] = set()
        for policy in process.supervisor.registry.policies.values():
            for entry in policy.status.history:
                if is_fresh(entry.outcome) and entry.slot_time is not None:
                    slot = f"slot:{entry.slot_time:%Y-%m-%dT%H:%M:%SZ}"
                    done |= {(policy.ref.uid, slot, view.name) for view in policy.status.views}
            if policy.status.last_handled_request is not None:
                slot = f"request:{policy.status.last_handled_request}"
                done |= {(policy.ref.uid, slot, view.name) for view in policy.status.views}

    def call_begun(self, process: Process, call: Call) -> None:
        """Check what is begun."""
        ground = self._ground
        run = call.runs[0]
        uid = str(run.policy_uid)
        self.calls += 1
        ground.tell(f"{process} begins {run.slot_id} of {uid[:8]}: {', '.join(str(run.view) for run in call.runs)}")
        self._check_budget(process, call)
        for other in process.sessions.calls:
            theirs = other.runs[0]
            if theirs.policy_uid == run.policy_uid and theirs.slot_id != run.slot_id:
                ground.violate(f"{process} works on {run.slot_id} and {theirs.slot_id} of {uid} at once")
            if theirs.policy_uid == run.policy_uid and {each.view for each in other.runs} & {run.view}:
                ground.violate(f"{process} refreshes {run.view} of {uid} twice at once")
        done = [each for each in call.runs if (uid, each.slot_id, str(each.view)) in self._done.get(process, ())]
        # A policy may become a group in the middle of a slot: one that is settled in part is refreshed again.
        for each in done if len(done) == len(call.runs) and self._exists(uid) else ():
            ground.violate(f"{process} begins {each.slot_id} of {uid} again, though {each.view} was done for it")
        policy = next((known for known in self._known(process) if known.ref.uid == uid), None)
        if policy is not None and policy.spec is not None:
            self._check_policy(process, policy, run)
        self._begun[process].add((uid, run.slot_id))
        self._active[process][uid] = ground.now
        self._starts[process, call.owner].append(ground.now)

    def _exists(self, uid: str) -> bool:
        """Not that of a policy that was deleted: late news may bring it to life again for a moment."""
        return any(body["metadata"]["uid"] == uid for body in self._objects.values())

    def call_ended(self, process: Process, call: Call, results: Sequence[RefreshResult]) -> None:
        """Note what came of it."""
        uid = str(call.runs[0].policy_uid)
        self._active[process][uid] = self._ground.now
        for run, result in zip(call.runs, results, strict=True):
            self._ground.tell(f"{process} hears {result.outcome} {result.error_type} of {uid[:8]} {run.view}")
            if is_fresh(result.outcome):
                self._done[process].add((uid, run.slot_id, str(run.view)))
            if result.outcome not in _AGAIN:
                self._accounts.answered(uid, run, result)

    def look(self, process: Process) -> None:
        """Check what nobody's step shows: sizes, and who waits too long."""
        supervisor = process.supervisor
        registry, agenda = supervisor.registry, supervisor.agenda
        uids = {policy.ref.uid for policy in registry.policies.values()}
        known = uids | {database.ref.uid for database in registry.databases.values()}
        # Names are the engine's own: what it holds is to be bounded by what exists.
        for what, held, most in (
            ("lanes", len(agenda.dispatcher._lanes), len(uids)),
            ("stopping runs", len(agenda.dispatcher._stopping), self._calls_of_strangers(process, uids)),
            ("timers", len(agenda.timers._due), len(uids)),
            ("statuses", supervisor.reporter.pending, len(known)),
            ("versions", len(registry.resource_versions), len(known)),
            ("queues", len(supervisor.budget._queues), len({*registry.databases} | _named(registry.policies.values()))),
            ("failed slots", len(agenda._recoveries._failed), len(uids)),
            ("unwell policies", len(agenda._recoveries._unwell), len(uids)),
            ("questions", len(supervisor.preflights._asked), len(known)),
        ):
            if held > most and not (what == "stopping runs" and process.is_stopping):
                self._ground.violate(f"{process} keeps {held} {what}, where {most} are enough")
        if not supervisor.healthy() and self._is_undisturbed(process):
            self._ground.violate(f"{process} is not healthy")
        if self._is_undisturbed(process):
            for policy in registry.policies.values():
                self._check_waiting(process, policy)
                self._check_stored(process, policy)

    def _check_stored(self, process: Process, policy: Policy) -> None:
        """What the engine has held for a while, and does not want to write any more, is stored."""
        reporter, held = process.supervisor.reporter, policy.status
        former, is_right = self._held[process].get(policy.ref.uid, (None, False))
        if former is not held:
            self._held[process][policy.ref.uid] = (held, False)
        elif not is_right and policy.ref not in reporter._pending and policy.ref not in reporter._writing:
            body = self._objects.get((POLICY, policy.key), {})
            document = {name: value for name, value in status_document(held).items() if value is not None}
            if body and body["metadata"]["uid"] == policy.ref.uid and document != body.get("status", {}):
                self._ground.violate(f"the status of {policy.key} is not what the operator holds")
            self._held[process][policy.ref.uid] = (held, True)

    def _known(self, process: Process) -> Sequence[Policy]:
        return [*process.supervisor.registry.policies.values()]

    def _calls_of_strangers(self, process: Process, uids: set[str]) -> int:
        # A run of a deleted policy, and what waited for a place with it, is gone within a moment.
        strangers = {str(call.runs[0].policy_uid) for call in process.sessions.calls} - uids
        return len(strangers) + sum(at > self._ground.now - _TO_ACT_SECONDS for at in process.news_at.values())

    def _check_budget(self, process: Process, call: Call) -> None:
        registry = process.supervisor.registry
        owner = Key(*call.owner.split("/"))
        # One more for each database: whoever runs nothing gets a place beside those that are held for long.
        most = process.places + len({other.owner for other in process.sessions.calls} | {call.owner})
        if len(process.sessions.calls) + 1 > most:
            self._ground.violate(f"{process} refreshes {len(process.sessions.calls) + 1} views at once, not {most}")
        database = registry.databases.get(owner)
        if database is None or database.spec is None or self._is_news(process, DATABASE, owner):
            return
        if database.spec.suspend:
            self._ground.violate(f"{process} begins a refresh on {owner}, which is suspended")
        most = min(database.spec.limits.max_concurrent_refreshes, (process.places + 1) // 2)
        there = sum(other.owner == call.owner for other in process.sessions.calls)
        if there + 1 > most:
            self._ground.violate(f"{process} refreshes {there + 1} views of {owner} at once, not {most}")

    def _check_policy(self, process: Process, policy: Policy, run: Run) -> None:
        spec = policy.spec
        assert spec is not None  # the caller's condition
        # A slot whose first view another run covers is begun without a call.
        is_first = (policy.ref.uid, run.slot_id) not in self._begun[process] and run.view.name == spec.views[0].name
        if self._is_news(process, POLICY, policy.key):
            return
        if is_first and run.due_at is not None:
            deadline = run.due_at + timedelta(seconds=spec.starting_deadline_seconds)
            late = (self._ground.clock.now() - deadline).total_seconds()
            waited = self._ground.now - max(self._ground.jumped_at, process.disturbed_at)
            # The Secret is read after the place was given, in the last moment that may be.
            # A slot that could not read its Secret was begun before, and is tried again.
            is_again = self._ground.now - process.unread_at.get(policy.key.namespace, -1e9) < _TO_MEND_SECONDS
            if late > _TO_READ_SECONDS and waited > spec.starting_deadline_seconds and not is_again:
                self._ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid} {late:.0f} s too late")
            if run.due_at > self._ground.clock.now() and not self._ground.clock.set_back:
                self._ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid} before it is due")
            if spec.suspend:
                self._ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid}, which is suspended")
        rivals = [
            other
            for other in process.supervisor.registry.policies.values()
            # The run may be of the policy as it was.
            if other.database_key == policy.database_key and other is not policy and other.lock_token != run.lock_token
            if other.spec is not None and any(view.name == run.view.name for view in other.spec.views)
        ]
        if rivals and not any(self._is_news(process, POLICY, rival.key) for rival in rivals):
            self._ground.violate(f"{process} refreshes {run.view} of {policy.ref.uid}, which another tenant names")

    def _check_waiting(self, process: Process, policy: Policy) -> None:
        ground, registry = self._ground, process.supervisor.registry
        timetable, place = policy.timetable, policy.database_key
        if timetable is None or place is None or process.supervisor.registry.is_suspended(policy):
            return
        now = ground.clock.now()
        due = timetable.newest_at(now - timedelta(seconds=_TO_BEGIN_SECONDS))
        ago = (now - due).total_seconds()
        since = max(
            process.news_at.get((POLICY, policy.key), 0.0),
            process.news_at.get((DATABASE, place), 0.0),
            process.loaded_at or 0.0,
            ground.jumped_at,
        )
        is_old = due <= policy.created_at or (ground.clock.set_back and due <= process.heard_until)
        if ground.now - ago <= since or is_old or self._is_handled(process, policy, due):
            return
        if self._active[process].get(policy.ref.uid, -1e9) > ground.now - _TO_BEGIN_SECONDS:
            return
        views = {view.name for view in policy.spec.views} if policy.spec is not None else set()
        if any(
            str(run.policy_uid) == policy.ref.uid or run.view.name in views  # one of its own, or one that may cover it
            for call in process.sessions.calls
            for run in call.runs
        ):
            return
        if ground.now - process.unread_at.get(policy.key.namespace, -1e9) < _TO_MEND_SECONDS:
            return
        owner = str(place)
        on_it = [call for call in process.sessions.calls if call.owner == owner]
        database = registry.databases.get(place)
        most = 1 if database is None or database.spec is None else database.spec.limits.max_concurrent_refreshes
        starts = self._starts[process, owner]
        begun = len(starts) - bisect_right(starts, ground.now - ago + _TO_BEGIN_SECONDS)
        in_all = sum(len(other.spec.views) for other in registry.policies_of(place) if other.spec is not None)
        if begun > _PLACES_IN_A_ROW * in_all:
            ground.violate(f"{process} lets {policy.key} wait while {begun} other views were begun")
        is_full = len(on_it) >= min(most, (process.places + 1) // 2) or len(process.sessions.calls) >= process.places
        recently = bool(starts) and starts[-1] > ground.now - _TO_BEGIN_SECONDS
        if not is_full and not recently:
            ground.violate(f"{process} does not begin the slot {due} of {policy.key}, {ago:.0f} s after it was due")

    def _is_handled(self, process: Process, policy: Policy, due: datetime) -> bool:
        last = policy.status.last_slot_time
        return (last is not None and last >= due) or (
            (policy.ref.uid, f"slot:{due:%Y-%m-%dT%H:%M:%SZ}") in self._begun[process]
        )

    def _is_news(self, process: Process, kind: str, key: Key) -> bool:
        return self._ground.now - process.news_at.get((kind, key), -1e9) < _TO_ACT_SECONDS

    def _is_undisturbed(self, process: Process) -> bool:
        """Whether it has had its time since it was loaded, paused or cut off."""
        return (
            process.loaded_at is not None
            and not process.is_stopping
            and self._ground.now - max(process.loaded_at, process.disturbed_at, self._ground.jumped_at)
            > _TO_BEGIN_SECONDS
        )


def _named(policies: Iterable[Policy]) -> set[Key]:
    return {policy.database_key for policy in policies if policy.database_key is not None}
