"""The rules of each begin: what may be begun, how much at once, how late, how soon again, and after what."""

from __future__ import annotations

from datetime import timedelta

from tests.simulation.seen import DATABASE, NEVER, POLICY, Seen
from tests.simulation.sessions import Call
from tests.simulation.windows import is_closed

from matview_operator.domain.run import Run
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

_TO_READ_SECONDS = 5.0
"""The longest that a Secret takes, between the place that was given and the call."""


def check_budget(seen: Seen, call: Call, policy: Policy | None) -> None:
    """Places, the database's suspension and its windows. `policy` is the one that it is made for, if there is one."""
    ground, process, owner = seen.ground, seen.process, Key(*call.owner.split("/"))
    calls = process.sessions.calls
    # One more for each database: whoever runs nothing gets a place beside those that are held for long.
    most = process.places + len({other.owner for other in calls} | {call.owner})
    if len(calls) + 1 > most:
        ground.violate(f"{process} refreshes {len(calls) + 1} views at once, not {most}")
    database = process.supervisor.registry.databases.get(owner)
    if database is None or database.spec is None or seen.is_news(DATABASE, owner):
        return
    if database.spec.suspend:
        ground.violate(f"{process} begins a refresh on {owner}, which is suspended")
    # A slot that has begun goes on to its end, with all its views, but nothing is tried again.
    goes_on = policy is not None and policy.spec is not None and _goes_on(seen, policy, call.runs[0])
    if is_closed(database.spec.windows, ground.clock.now()) and not goes_on:
        ground.violate(f"{process} begins a refresh on {owner} while its window is closed")
    most = min(database.spec.limits.max_concurrent_refreshes, (process.places + 1) // 2)
    there = sum(other.owner == call.owner for other in calls)
    if there + 1 > most:
        ground.violate(f"{process} refreshes {there + 1} views of {owner} at once, not {most}")


def begins_its_slot(seen: Seen, policy: Policy, run: Run) -> bool:
    """Whether nothing of the slot was begun before. One that another run covers a view of is begun without a call."""
    assert policy.spec is not None  # the caller's condition
    if (policy.ref.uid, run.slot_id) in seen.begun or run.due_at is None:
        return False
    due, owner = seen.ground.now - (seen.ground.clock.now() - run.due_at).total_seconds(), str(policy.database_key)
    others = (view.name for view in policy.spec.views if view.name != run.view.name)
    return all(seen.begun_at.get((owner, other), NEVER) < due for other in others)


def _goes_on(seen: Seen, policy: Policy, run: Run) -> bool:
    """Whether its slot has begun, and this view of it was not tried yet."""
    slot, now = (policy.ref.uid, run.slot_id), seen.ground.clock.now()
    ended = [
        seen.ground.now - (now - entry.started_at).total_seconds() + entry.duration_ms / 1000
        for entry in policy.status.history
        if entry.slot_time == run.due_at is not None
    ]
    if not ended:
        return not begins_its_slot(seen, policy, run) and (*slot, str(run.view)) not in seen.tried
    # What a preflight brings back after it has ended is begun anew.
    tried = {view for (*of, view), at in seen.tried.items() if tuple(of) == slot and at > ended[0] + 0.001}
    return bool(tried) and str(run.view) not in tried


def check_policy(seen: Seen, policy: Policy, call: Call, run: Run) -> None:
    """Deadline, suspension and other tenants' rows."""
    ground, process, spec = seen.ground, seen.process, policy.spec
    assert spec is not None  # the caller's condition
    if seen.is_news(POLICY, policy.key):
        return
    if call.is_first and run.due_at is not None:
        deadline = run.due_at + timedelta(seconds=spec.starting_deadline_seconds)
        late = (ground.clock.now() - deadline).total_seconds()
        waited = ground.now - max(ground.jumped_at, process.disturbed_at)
        # The Secret is read after the place was given, in the last moment that may be.
        # A slot that could not read its Secret was begun before, and is tried again.
        is_again = seen.lacks_a_secret(policy.key.namespace)
        # It keeps the deadline that it was taken up with.
        is_again |= seen.heard_of(POLICY, policy.key) > ground.now - (ground.clock.now() - run.due_at).total_seconds()
        if late > _TO_READ_SECONDS and waited > spec.starting_deadline_seconds and not is_again:
            ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid} {late:.0f} s too late")
        if run.due_at > ground.clock.now() and not ground.clock.set_back:
            ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid} before it is due")
        if spec.suspend:
            ground.violate(f"{process} begins {run.slot_id} of {policy.ref.uid}, which is suspended")
    rivals = [
        other
        for other in process.supervisor.registry.policies.values()
        # The run may be of the policy as it was, on the database that it named.
        if str(other.database_key) == call.owner and other is not policy and other.lock_token != run.lock_token
        if other.spec is not None and any(view.name == run.view.name for view in other.spec.views)
    ]
    if rivals and not any(seen.is_news(POLICY, rival.key) for rival in rivals):
        ground.violate(f"{process} refreshes {run.view} of {policy.ref.uid}, which another tenant names")


def check_order(seen: Seen, policy: Policy, call: Call, run: Run) -> None:
    """What a view reads, and is due at the same instant, is begun before it, and has ended."""
    ground, place = seen.ground, policy.database_key
    assert policy.spec is not None  # the caller's condition
    work = policy.ref.uid, run.slot_id, str(run.view)
    if run.due_at is None or place is None or work in seen.tried:
        return
    # Floats: what begins in the slot's very instant is not before it.
    due = ground.now - (ground.clock.now() - run.due_at).total_seconds() - 0.001
    is_set_back = due > ground.now  # the clock, since then: nothing is known of what was due before what
    if seen.disturbed_at > due or is_set_back or seen.is_news(DATABASE, place) or seen.is_news(POLICY, policy.key):
        return
    has_long_read = seen.heard_of(POLICY, policy.key) < due
    if not has_long_read and (policy.ref.uid, run.slot_id) in seen.begun:
        return  # it goes on by what the policy said when the slot began
    reads = [ref.name for view in policy.spec.views if view.name == run.view.name for ref in view.depends_on or ()]
    for name in reads:
        if any(each.view.name == name for each in call.runs):
            continue  # they are a group
        if seen.begun_at.get((call.owner, name), NEVER) < due and _is_due(seen, place, name, run):
            ground.violate(f"{seen.process} refreshes {run.view} of {policy.key} before {name}, which it reads")
        at_work = [other for each in seen.process.sessions.calls if each.owner == call.owner for other in each.runs]
        if has_long_read and any(other.view.name == name and other.due_at == run.due_at for other in at_work):
            ground.violate(f"{seen.process} refreshes {run.view} while {name}, which it reads, is being refreshed")


def _is_due(seen: Seen, place: Key, name: str, run: Run) -> bool:
    """Whether a policy is due with a view at the run's instant, and has not had it refreshed yet."""
    supervisor = seen.process.supervisor
    for policy in supervisor.registry.policies_of(place):
        lane = supervisor.agenda.dispatcher._lanes.get(policy.key)
        slots = () if lane is None else (lane.current, lane.slot)
        if (
            policy.spec is not None
            and any(view.name == name for view in policy.spec.views)
            and any(slot is not None and slot.request is None and slot.due_at == run.due_at for slot in slots)
            and not any(slot is not None and slot.deadline < seen.ground.clock.now() for slot in slots)
            and not seen.is_news(POLICY, policy.key)
            and (policy.ref.uid, run.slot_id, name) not in seen.done
        ):
            return True
    return False


def check_pace(seen: Seen, call: Call, run: Run) -> None:
    """A slot that had to wait for a place may be begun up to half an interval early. What is asked for, or tried again,
    does not wait for it.
    """
    ground, owner = seen.ground, Key(*call.owner.split("/"))
    before, ended = seen.refreshed_at.get((call.owner, str(run.view)), (NEVER, NEVER))
    seen.refreshed_at[call.owner, str(run.view)] = max(call.at, before), ground.now
    database = seen.process.supervisor.registry.databases.get(owner)
    is_first = call.is_first and not seen.lacks_a_secret(owner.namespace)
    if ended > call.at or run.due_at is None or not is_first or database is None or database.spec is None:
        return
    if seen.process.counts.retried_at.get(str(run.policy_uid), NEVER) >= call.at - _TO_READ_SECONDS:
        return  # a run that it waited for was its first attempt
    if database.has_ledger is not seen.process.sessions.servers[database.spec.secret_ref.name].has_ledger:
        return  # it is another server now, and has not been looked at
    least, pause = database.spec.limits.min_interval_seconds, call.at - before
    if max(ground.jumped_at, seen.heard_of(DATABASE, owner)) < before and pause < least / 2:
        ground.violate(f"{seen.process} refreshes {run.view} {pause:.0f} s after it did, too soon by {least} s")
