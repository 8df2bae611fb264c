"""The rule of each look: how long what is due may wait."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime, timedelta

from tests.simulation.seen import DATABASE, NEVER, POLICY, TO_BEGIN_SECONDS, Seen
from tests.simulation.windows import is_closed

from matview_operator.domain.schedule import Timetable
from matview_operator.domain.slot import is_fresh
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

_PLACES_IN_A_ROW = 1
"""How often each view of a database may be begun while one slot waits for a place there."""


def check_waiting(seen: Seen, policy: Policy) -> None:
    """A slot is begun soon, unless something is in its way."""
    ground, process, place = seen.ground, seen.process, policy.database_key
    registry = process.supervisor.registry
    database = None if place is None else registry.databases.get(place)
    if policy.timetable is None or place is None or database is None or registry.is_suspended(policy):
        return
    since = max(
        seen.heard_of(POLICY, policy.key), seen.heard_of(DATABASE, place), process.loaded_at or 0.0, ground.jumped_at
    )
    due = _overdue(seen, policy, since=since)
    if due is None or _is_in_hand(seen, policy) or _may_have_to_wait(seen, policy, place):
        return
    ago = (ground.clock.now() - due).total_seconds()
    owner, calls = str(place), process.sessions.calls
    on_it = [call for call in calls if call.owner == owner]
    most = 1 if database.spec is None else database.spec.limits.max_concurrent_refreshes
    starts = seen.starts.get(owner, [])
    begun = len(starts) - bisect_right(starts, ground.now - ago + TO_BEGIN_SECONDS)
    in_all = sum(len(other.spec.views) for other in registry.policies_of(place) if other.spec is not None)
    if begun > _PLACES_IN_A_ROW * in_all:
        ground.violate(f"{process} lets {policy.key} wait while {begun} other views were begun")
    is_full = len(on_it) >= min(most, (process.places + 1) // 2) or len(calls) >= process.places
    recently = bool(starts) and starts[-1] > ground.now - TO_BEGIN_SECONDS
    if not is_full and not recently:
        ground.violate(f"{process} does not begin the slot {due} of {policy.key}, {ago:.0f} s after it was due")


def check_views(seen: Seen, policy: Policy) -> None:
    """A view of a slot that has begun waits for what it reads and for a place, and for no other one."""
    ground, process, place, uid = seen.ground, seen.process, policy.database_key, policy.ref.uid
    lane = process.supervisor.agenda.dispatcher._lanes.get(policy.key)
    registry = process.supervisor.registry
    database = None if place is None else registry.databases.get(place)
    slot = None if lane is None else lane.current
    if slot is None or slot.request is not None or place is None or policy.spec is None:
        return
    if database is None or database.spec is None:
        return
    owner, calls = str(place), process.sessions.calls
    on_it = [call for call in calls if call.owner == owner]
    long_ago, due = ground.now - TO_BEGIN_SECONDS, ground.now - (ground.clock.now() - slot.due_at).total_seconds()
    own = [call for call in on_it if str(call.runs[0].policy_uid) == uid and call.at < long_ago]
    most = min(database.spec.limits.max_concurrent_refreshes, (process.places + 1) // 2)
    is_full = len(on_it) >= most or len(calls) >= process.places
    last = max(seen.starts.get(owner, [NEVER])[-1], seen.ended.get(owner, NEVER))
    # Of any policy there: one that is gone may have said what the view reads.
    changed = max(at for (_, key), at in process.news_at.items() if key.namespace == place.namespace)
    may_not = registry.sharing_problem(policy) or process.supervisor.order.problem(policy)
    if not own or is_full or last > long_ago or max(changed, ground.jumped_at) > due or may_not is not None:
        return
    specs = [other.spec for other in registry.policies_of(place) if other.spec is not None]
    reading = {view.name for spec in specs for view in spec.views if view.depends_on}  # whichever policy says so
    at_work = {run.view.name for call in on_it for run in call.runs}  # it may be waited for, as long as one's own takes
    for view in policy.spec.views:
        is_begun = (uid, slot.id, view.name) in seen.tried or seen.begun_at.get((owner, view.name), NEVER) >= due
        may_wait = view.name in reading or view.name in at_work or seen.lacks_a_secret(policy.key.namespace)
        if not (is_begun or may_wait):
            ground.violate(f"{process} lets {view.name} of {policy.key} wait behind {own[0].runs[0].view}")


def _overdue(seen: Seen, policy: Policy, *, since: float) -> datetime | None:
    """The slot that should have been begun by now, and was not; None if there is none, or something changed `since`."""
    ground, now = seen.ground, seen.ground.clock.now()
    latest, timetable = now - timedelta(seconds=TO_BEGIN_SECONDS), policy.timetable
    if isinstance(timetable, Timetable):
        due = timetable.newest_at(latest)
        is_old = due <= policy.created_at or (ground.clock.set_back and due <= seen.process.heard_until)
        if is_old or _is_handled(seen, policy, due):
            return None
    else:
        assert timetable is not None  # the caller's condition
        # Its rows are too old now. What failed has pauses of its own.
        newest = policy.status.history[0] if policy.status.history else None
        told = 0.0 if newest is None else ground.now - (now - newest.started_at).total_seconds()
        good = max(since, told, seen.active.get(policy.ref.uid, 0.0)) + timetable.seconds
        if ground.now - TO_BEGIN_SECONDS <= good or (newest is not None and not is_fresh(newest.outcome)):
            return None
        due = latest
    return due if ground.now - (now - due).total_seconds() > since else None


def _is_in_hand(seen: Seen, policy: Policy) -> bool:
    """Whether a run of its own, or one that may cover it, is at work or was, or its Secret cannot be read."""
    if seen.active.get(policy.ref.uid, NEVER) > seen.ground.now - TO_BEGIN_SECONDS:
        return True
    views = {view.name for view in policy.spec.views} if policy.spec is not None else set()
    runs = [run for call in seen.process.sessions.calls for run in call.runs]
    is_at_work = any(str(run.policy_uid) == policy.ref.uid or run.view.name in views for run in runs)
    return is_at_work or seen.lacks_a_secret(policy.key.namespace)


def _may_have_to_wait(seen: Seen, policy: Policy, place: Key) -> bool:
    """For a window that opens, or has opened just now, for the least interval, or for what it reads."""
    registry = seen.process.supervisor.registry
    database, spec = registry.databases.get(place), policy.spec
    if database is None or database.spec is None or spec is None:
        return False
    now = seen.ground.clock.now()
    lately = (now - timedelta(seconds=seconds) for seconds in (0.0, TO_BEGIN_SECONDS / 2, TO_BEGIN_SECONDS))
    if any(is_closed(database.spec.windows, instant) for instant in lately):
        return True
    paced_since = seen.ground.now - database.spec.limits.min_interval_seconds - TO_BEGIN_SECONDS
    if seen.ground.clock.set_back:
        paced_since -= database.spec.limits.min_interval_seconds  # by the clock
    if any(seen.begun_at.get((str(place), view.name), NEVER) > paced_since for view in spec.views):
        return True
    # Its status does not say on which database the views of these names were refreshed: it may have been another one.
    told = {view.name: view.started_at for view in policy.status.views}
    ages = [(now - at).total_seconds() for at in (told.get(view.name) for view in spec.views) if at is not None]
    if any(age < seen.ground.now - paced_since for age in ages):
        return True
    lanes = seen.process.supervisor.agenda.dispatcher._lanes
    is_following = seen.process.supervisor.turns.follows(policy.key)
    return is_following and any(other.key in lanes for other in registry.policies_of(place) if other is not policy)


def _is_handled(seen: Seen, policy: Policy, due: datetime) -> bool:
    last = policy.status.last_slot_time
    return (last is not None and last >= due) or (policy.ref.uid, f"slot:{due:%Y-%m-%dT%H:%M:%SZ}") in seen.begun
