"""Watches the processes, and asks the rules at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.simulation.accounts import Accounts
from tests.simulation.begins import begins_its_slot, check_budget, check_order, check_pace, check_policy
from tests.simulation.ground import Ground
from tests.simulation.process import Process
from tests.simulation.seen import POLICY, TO_ACT_SECONDS, Seen
from tests.simulation.sessions import Call
from tests.simulation.waiting import check_views, check_waiting
from tests.unit.memory_api import Body

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.slot import is_fresh
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

_AGAIN = frozenset({RefreshOutcome.SKIPPED_LOCK_HELD, RefreshOutcome.UNKNOWN})


class Judge:
    """What a process cannot know yet is not held against it."""

    def __init__(
        self,
        ground: Ground,
        *,
        accounts: Accounts,
        objects: Mapping[tuple[str, Key], Body],
        processes: Sequence[Process],
    ) -> None:
        """`objects`: as they are stored. `processes`: those of now."""
        self._ground = ground
        self._accounts = accounts
        self._objects = objects
        self._processes = processes
        self._seen: dict[Process, Seen] = {}
        self._begun_at: dict[tuple[str, str], float] = {}
        self.calls = 0

    def loaded(self, process: Process) -> None:
        """Note what the stored statuses tell it."""
        done = self._of(process).done
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
        ground, seen, run = self._ground, self._of(process), call.runs[0]
        uid = str(run.policy_uid)
        self.calls += 1
        ground.tell(f"{process} begins {run.slot_id} of {uid[:8]}: {', '.join(str(run.view) for run in call.runs)}")
        self._check_alone(process, call)
        exists = self._exists(uid)
        if not exists:
            for server in process.sessions.servers.values():
                server.excused.update((uid, each.slot_id, str(each.view)) for each in call.runs)
        known = process.supervisor.registry.policies.values()
        policy = next((policy for policy in known if policy.ref.uid == uid), None)
        check_budget(seen, call, policy)
        done = [each for each in call.runs if (uid, each.slot_id, str(each.view)) in seen.done]
        # A policy may become a group in the middle of a slot: one that is settled in part is refreshed again.
        for each in done if len(done) == len(call.runs) and exists else ():
            ground.violate(f"{process} begins {each.slot_id} of {uid} again, though {each.view} was done for it")
        if policy is not None and policy.spec is not None:
            call.is_first = begins_its_slot(seen, policy, run)
            check_policy(seen, policy, call, run)
            for each in call.runs:
                check_order(seen, policy, call, each)
        seen.begun.add((uid, run.slot_id))
        seen.tried |= {(uid, each.slot_id, str(each.view)): ground.now for each in call.runs}
        seen.active[uid] = ground.now
        seen.starts.setdefault(call.owner, []).append(ground.now)
        self._begun_at.update({(call.owner, str(each.view)): ground.now for each in call.runs})

    def call_ended(self, process: Process, call: Call, results: Sequence[RefreshResult]) -> None:
        """Note what came of it."""
        seen, uid = self._of(process), str(call.runs[0].policy_uid)
        seen.active[uid] = seen.ended[call.owner] = self._ground.now
        for run, result in zip(call.runs, results, strict=True):
            self._ground.tell(f"{process} hears {result.outcome} {result.error_type} of {uid[:8]} {run.view}")
            if is_fresh(result.outcome):
                seen.done.add((uid, run.slot_id, str(run.view)))
            if result.outcome is RefreshOutcome.SUCCESS and result.error_type is not RefreshReason.RECOVERED:
                check_pace(seen, call, run)
            # Nobody writes what one hears that leads no more.
            if result.outcome not in _AGAIN and process.leads():
                self._accounts.answered(str(process), uid, run, result)

    def look(self, process: Process) -> None:
        """Check what nobody's step shows: sizes, and who waits too long."""
        supervisor, seen = process.supervisor, self._of(process)
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
            ("queues", len(supervisor.budget._queues), len({*registry.databases} | _named(process))),
            ("failed slots", len(agenda._recoveries._failed), len(uids)),
            ("unwell policies", len(agenda._recoveries._unwell), len(uids)),
            ("questions", len(supervisor.preflights._asked), len(known)),
        ):
            if held > most and not (what == "stopping runs" and process.is_stopping):
                self._ground.violate(f"{process} keeps {held} {what}, where {most} are enough")
        if seen.is_undisturbed:
            if not supervisor.healthy():
                self._ground.violate(f"{process} is not healthy")
            for policy in registry.policies.values():
                check_waiting(seen, policy)
                check_views(seen, policy)
                self._check_stored(seen, policy)

    def _of(self, process: Process) -> Seen:
        seen = self._seen.get(process)
        if seen is None:
            seen = Seen(ground=self._ground, process=process, begun_at=self._begun_at)
            self._seen[process] = seen
        return seen

    def _check_alone(self, process: Process, call: Call) -> None:
        """One process leads, and works on one slot of a policy at once."""
        ground, run = self._ground, call.runs[0]
        for other in self._processes:
            if other is not process and other.shard == process.shard and other.alive and other.leads():
                ground.violate(f"{process} begins a refresh while {other} leads")
        for theirs in (other.runs for other in process.sessions.calls):
            if theirs[0].policy_uid != run.policy_uid:
                continue
            if theirs[0].slot_id != run.slot_id:
                ground.violate(f"{process} works on {run.slot_id} and {theirs[0].slot_id} of {run.policy_uid} at once")
            if any(each.view == run.view for each in theirs):
                ground.violate(f"{process} refreshes {run.view} of {run.policy_uid} twice at once")

    def _exists(self, uid: str) -> bool:
        """Not that of a policy that was deleted: late news may bring it to life again for a moment."""
        return any(body["metadata"]["uid"] == uid for body in self._objects.values())

    def _check_stored(self, seen: Seen, policy: Policy) -> None:
        """What the engine has held for a while, and does not want to write any more, is stored."""
        reporter, held = seen.process.supervisor.reporter, policy.status
        former, is_right = seen.held.get(policy.ref.uid, (None, False))
        if former is not held:
            seen.held[policy.ref.uid] = (held, False)
        elif not is_right and reporter.has_written(policy.ref):
            body = self._objects.get((POLICY, policy.key), {})
            document = {name: value for name, value in status_document(held).items() if value is not None}
            # It may be another shard's since a moment ago.
            is_its = bool(body) and body["metadata"]["uid"] == policy.ref.uid and seen.process.owns(body)
            if is_its and document != body.get("status", {}):
                self._ground.violate(f"the status of {policy.key} is not what the operator holds")
            seen.held[policy.ref.uid] = (held, True)

    def _calls_of_strangers(self, process: Process, uids: set[str]) -> int:
        # A run of a deleted policy, and what waited for a place with it, is gone within a moment.
        strangers = {str(call.runs[0].policy_uid) for call in process.sessions.calls} - uids
        return len(strangers) + sum(at > self._ground.now - TO_ACT_SECONDS for at in process.news_at.values())


def _named(process: Process) -> set[Key]:
    """The databases that policies name, and those where runs go on that were begun when they did."""
    policies = process.supervisor.registry.policies.values()
    named = {policy.database_key for policy in policies if policy.database_key is not None}
    return named | {Key(*call.owner.split("/")) for call in process.sessions.calls}
