"""The end of a history, long after the last fault: what is stored is true, and everybody is served."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tests.simulation.accounts import Book
from tests.simulation.judge import DATABASE, POLICY

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.model import REQUESTED_AT
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.domain.schedule import Timetable
from matview_operator.engine.ports import Key
from matview_operator.engine.registry import Policy

if TYPE_CHECKING:
    from tests.simulation.history import History

_LATEST_SECONDS = 90.0
"""How long before the end a slot is due that must have ended: longer than all views of one database take, in a row."""
_GOOD = {RefreshOutcome.SUCCESS, RefreshOutcome.SKIPPED_COVERED, RefreshOutcome.SKIPPED_UNCHANGED}


def pronounce(history: History) -> None:
    """Compare what exists, what the engine holds and what is stored."""
    ground, api = history.ground, history.cluster.api
    registry = history.process.supervisor.registry
    known = {
        **{(POLICY, key): policy.ref.uid for key, policy in registry.policies.items()},
        **{(DATABASE, key): database.ref.uid for key, database in registry.databases.items()},
    }
    there = {place: body["metadata"]["uid"] for place, body in api.objects.items()}
    if known != there:
        ground.violate(f"the operator knows {sorted(known)}, but there are {sorted(there)}")
        return
    if [*registry.resource_versions] and {*registry.resource_versions} != {*there.values()}:
        ground.violate("the operator keeps versions of objects that are gone")
    for (kind, key), body in api.objects.items():
        held = registry.policies[key] if kind == POLICY else registry.databases[key]
        if held.generation != body["metadata"]["generation"]:
            ground.violate(f"the operator knows an old spec of {key}")
        document = {name: value for name, value in status_document(held.status).items() if value is not None}
        if history.process.supervisor.reporter.pending == 0 and document != body.get("status", {}):
            ground.violate(f"the status of {kind} {key} is not what the operator holds")
    for key, policy in registry.policies.items():
        body = api.objects[POLICY, key]
        _check_slots(history, key, policy, history.accounts.books[policy.ref.uid])
        _check_request(history, policy, body["metadata"].get("annotations", {}).get(REQUESTED_AT))


def _check_slots(history: History, key: Key, policy: Policy, book: Book) -> None:
    ground, supervisor = history.ground, history.process.supervisor
    timetable, status = policy.timetable, policy.status
    if timetable is None:
        return
    last = status.last_slot_time
    if book.is_plain and last is not None:
        owed = timetable.due_between(policy.created_at, last).slots
        handled = {slot for slot in book.handled if slot <= last}
        told = (status.missed_slots or 0) + len(handled - book.missed_too)
        if told != owed:
            ground.violate(
                f"{key} owed {owed} slots until {last}: {len(handled)} handled, {len(handled & book.missed_too)} of them "
                f"missed too, {status.missed_slots} missed are {told}"
            )
    counted = history.process.missed_before.get(policy.ref.uid, 0) + history.process.counts.missed[policy.ref.uid]
    if counted != (status.missed_slots or 0) + policy.missed:
        ground.violate(f"{key} says {status.missed_slots} missed, and the metric {counted}")
    if supervisor.agenda.is_suspended(policy):
        return
    now = ground.clock.now()
    newest = timetable.newest_at(now - timedelta(seconds=_LATEST_SECONDS))
    if newest > max(policy.created_at, policy.taken_until) or (
        newest > policy.created_at and (last is None or last < newest) and policy.taken_until >= newest
        and not _is_resumed(history, policy, newest)
    ):  # fmt: skip
        ground.violate(f"{key} was due at {newest}, and its last slot is {last}")
    if last is not None and last >= timetable.newest_at(now) and status.next_slot_time != timetable.next_after(
        max(now, last)
    ):  # fmt: skip
        ground.violate(f"{key} says after {last} that it is due at {status.next_slot_time}")
    is_well = supervisor.registry.sharing_problem(policy) is None
    conditions = {condition.type: condition for condition in status.conditions}
    ready, fresh = conditions.get("Ready"), conditions.get("Fresh")
    newest_entry = status.history[0] if status.history else None
    is_good = newest_entry is None or newest_entry.outcome in _GOOD
    if ready is None or (ready.status == "True" and not is_well) or (ready.status == "False" and is_well and is_good):
        ground.violate(f"{key} is {'' if is_well else 'not '}well, and says {ready}")
    if fresh is None or (newest_entry is not None and fresh.reason != "SlotMissed" and is_good is not (fresh.status == "True")):
        ground.violate(f"{key} says {fresh} after {newest_entry}")
    for view in status.views:
        said = book.answers.get(f"{view.correlation_id} {view.name}")
        if is_well and view.outcome is not None and said is not None and said is not view.outcome:
            ground.violate(f"{key} says {view.outcome} of {view.name}, and the executor said {said}")


def _is_resumed(history: History, policy: Policy, newest: object) -> bool:
    """Whether a change of schedule or a resume let the slot go."""
    changed = history.process.news_at.get((POLICY, policy.key), 0.0)
    named = policy.database_key
    database = history.process.news_at.get((DATABASE, named), 0.0) if named is not None else 0.0
    ago = (history.ground.clock.now() - newest).total_seconds()  # type: ignore[operator]
    return history.ground.now - ago <= max(changed, database)


def _check_request(history: History, policy: Policy, token: str | None) -> None:
    if token is not None and policy.status.last_handled_request != token and not _suspended(history, policy):
        history.ground.violate(f"{policy.key} does not answer {token}")


def _suspended(history: History, policy: Policy) -> bool:
    key = policy.database_key
    database = None if key is None else history.process.supervisor.registry.databases.get(key)
    return database is not None and database.spec is not None and database.spec.suspend
