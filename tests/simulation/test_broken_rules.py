"""Each rule that the simulation watches, broken on purpose in the engine: the histories show it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.simulation.simulation import simulate, watched

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.domain.shard import Shard
from matview_operator.domain.staleness import StalenessTarget
from matview_operator.engine import targets
from matview_operator.engine.agenda import Agenda
from matview_operator.engine.attempts import Attempts
from matview_operator.engine.budget import Budget
from matview_operator.engine.chronicle import Chronicle
from matview_operator.engine.dispatcher import Dispatcher, _Lane
from matview_operator.engine.holds import Holds
from matview_operator.engine.intake import Intake
from matview_operator.engine.leadership import Leadership
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import ApiUnavailable, Key, StatusConflict
from matview_operator.engine.preflight import Preflights
from matview_operator.engine.registry import Policy
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.step import Stage, Step
from matview_operator.engine.supervisor import Supervisor
from matview_operator.engine.timers import Timers
from matview_operator.engine.turns import Work

HISTORIES = 400
"""So many are tried until one shows it."""

Break = Callable[[pytest.MonkeyPatch], None]


def no_limit_per_database(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Supervisor, "_limit_of", lambda *_: 100)


def places_that_are_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    release = Budget.release

    def keep(self: Budget, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Budget, "_admit", lambda *_: None)
            release(self, *args)

    patch.setattr(Budget, "release", keep)


def slots_that_are_taken_twice(patch: pytest.MonkeyPatch) -> None:
    take = Agenda._take

    def forgetful(self: Agenda, policy: Policy, newest: datetime, *, count: int, begins_after: timedelta) -> None:
        until = policy.taken_until
        take(self, policy, newest, count=count, begins_after=begins_after)
        policy.taken_until = until

    patch.setattr(Agenda, "_take", forgetful)


def superseded_slots_that_nobody_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chronicle, "superseded", lambda *_: None)


def downtime_that_counts_for_nothing(patch: pytest.MonkeyPatch) -> None:
    known = Intake._policy_of

    def unburdened(self: Intake, *args: Any) -> Policy:
        policy = known(self, *args)
        policy.taken_until = max(policy.taken_until, self._clock.now())
        return policy

    patch.setattr(Intake, "_policy_of", unburdened)


def a_deadline_that_is_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "seconds_for_a_place", lambda *_: None)
    patch.setattr(Permits, "check_begin", lambda *_, **__: None)


def two_slots_of_a_policy_at_once(patch: pytest.MonkeyPatch) -> None:
    pump = Dispatcher._pump

    def eager(self: Dispatcher, key: Key, lane: _Lane) -> None:
        lane.task = None
        pump(self, key, lane)

    patch.setattr(Dispatcher, "_pump", eager)


def lanes_that_stay(patch: pytest.MonkeyPatch) -> None:
    forget = Dispatcher.forget

    def kept(self: Dispatcher, key: Key) -> None:
        lane = self._lanes.get(key, _Lane())
        forget(self, key)
        self._lanes[key] = lane

    patch.setattr(Dispatcher, "forget", kept)


def versions_of_the_dead(patch: pytest.MonkeyPatch) -> None:
    forget = Supervisor.forget_policy

    def kept(self: Supervisor, policy: Policy) -> None:
        forget(self, policy)
        self.registry.resource_versions[policy.ref.uid] = "1"

    patch.setattr(Supervisor, "forget_policy", kept)


def statuses_that_an_outage_loses(patch: pytest.MonkeyPatch) -> None:
    write = Reporter._write

    async def once(self: Reporter, *args: Any) -> None:
        with suppress(ApiUnavailable):
            await write(self, *args)

    patch.setattr(Reporter, "_write", once)


def statuses_that_a_conflict_loses(patch: pytest.MonkeyPatch) -> None:
    begin = Reporter.__init__

    class Careless:
        def __init__(self, writer: Any) -> None:
            self._writer = writer

        async def write(self, ref: Any, status: Any, *, resource_version: str) -> str:
            try:
                return str(await self._writer.write(ref, status, resource_version=resource_version))
            except StatusConflict as conflict:
                return conflict.resource_version

    def careless(self: Reporter, *, writer: Any, **ports: Any) -> None:
        begin(self, writer=Careless(writer), **ports)

    patch.setattr(Reporter, "__init__", careless)


def requests_that_get_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Agenda, "consider_request", lambda *_: None)


def rows_of_another_tenant(patch: pytest.MonkeyPatch) -> None:
    def careless(self: Permits, policy: Policy) -> MatviewDatabaseSpec:
        key = policy.database_key
        assert key is not None
        return targets.usable(self._registry.databases.get(key), key)

    patch.setattr(Permits, "database_of", careless)


def timers_that_fire_once(patch: pytest.MonkeyPatch) -> None:
    fire = Agenda._fire

    def once(self: Agenda, key: Key, due: datetime) -> None:
        fire(self, key, due)
        self.timers.cancel(key)

    patch.setattr(Agenda, "_fire", once)


def a_timer_loop_that_ends(patch: pytest.MonkeyPatch) -> None:
    async def run(self: Timers) -> None:
        self.last_beat = self._clock.now()
        self._fire_next(self.last_beat)

    patch.setattr(Timers, "run", run)


def problems_that_are_looked_at_once(patch: pytest.MonkeyPatch) -> None:
    async def never(_: Preflights) -> None:
        pass

    patch.setattr(Preflights, "_ask_periodically", never)


def runs_that_a_shutdown_leaves_behind(patch: pytest.MonkeyPatch) -> None:
    async def drain(self: Dispatcher, **_: float) -> None:
        self._closed = True

    patch.setattr(Dispatcher, "drain", drain)


def windows_that_are_always_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holds, "closed_until", lambda *_: None)


def an_interval_that_is_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holds, "paced_until", lambda *_: None)


def views_that_wait_for_no_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Work, "is_turn", lambda *_: True)


def views_that_wait_for_no_more_than_a_begin(patch: pytest.MonkeyPatch) -> None:
    begins = Attempts.begins

    def early(self: Attempts, step: Step) -> None:
        begins(self, step)
        for view in self.work.steps[step.index]:
            self.work.turns._close(self.work, view)

    patch.setattr(Attempts, "begins", early)


def views_that_are_refreshed_one_after_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "_is_asking", property(lambda self: self._is_under_way))


def views_that_are_given_out_twice(patch: pytest.MonkeyPatch) -> None:
    is_ready = Attempts._is_ready
    twice: set[Step] = set()

    def careless(self: Attempts, step: Step, now: float) -> bool:
        if step.stage is Stage.WORKS and step not in twice:
            twice.add(step)
            step.stage = Stage.RESTS
        return is_ready(self, step, now)

    patch.setattr(Attempts, "_is_ready", careless)


def a_leader_that_believes_in_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leadership, "holds", lambda self: self._until is not None)


def no_limit_in_all(patch: pytest.MonkeyPatch) -> None:
    begin = Budget.__init__

    def boundless(self: Budget, *, limit_of: Any, **_: Any) -> None:
        begin(self, limit_of=limit_of, limit_in_all=1000)

    patch.setattr(Budget, "__init__", boundless)


def targets_of_staleness_without_a_timer(patch: pytest.MonkeyPatch) -> None:
    def stop(self: Chronicle, policy: Policy, _: object) -> None:
        if isinstance(policy.timetable, StalenessTarget):
            self._timers.cancel(policy.key)

    patch.setattr(Chronicle, "_retime", stop)


def shards_that_take_all(patch: pytest.MonkeyPatch) -> None:
    begin = Intake.__init__

    def greedy(self: Intake, **ports: Any) -> None:
        begin(self, **ports | {"shard": Shard()})

    patch.setattr(Intake, "__init__", greedy)


def deletions_that_a_broken_watch_loses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "prune", lambda *_, **__: None)


BREAKS: dict[Break, str] = {
    no_limit_per_database: "views of .* at once, not",
    places_that_are_not_handed_on: "does not begin|lets .* wait|was due at",
    slots_that_are_taken_twice: "begins .* again, though|owed .* slots until",
    superseded_slots_that_nobody_counts: "owed .* slots until",
    downtime_that_counts_for_nothing: "owed .* slots until",
    a_deadline_that_is_none: "s too late",
    two_slots_of_a_policy_at_once: "at once",
    lanes_that_stay: "lanes, where",
    versions_of_the_dead: "versions",
    statuses_that_an_outage_loses: "is not what the operator holds",
    statuses_that_a_conflict_loses: "is not what the operator holds",
    requests_that_get_lost: "does not answer",
    rows_of_another_tenant: "which another tenant names",
    timers_that_fire_once: "does not begin the slot|due at",
    a_timer_loop_that_ends: "is not healthy",
    problems_that_are_looked_at_once: "is well, and says",
    windows_that_are_always_open: "while its window is closed",
    an_interval_that_is_none: "too soon by",
    views_that_wait_for_no_other: "before ., which it reads",
    views_that_wait_for_no_more_than_a_begin: "while ., which it reads, is being refreshed",
    views_that_are_refreshed_one_after_another: "lets .* wait behind",
    views_that_are_given_out_twice: "twice at once",
    a_leader_that_believes_in_itself: "begins a refresh while .* leads",
    no_limit_in_all: "at once, not",
    targets_of_staleness_without_a_timer: "does not begin the slot",
    runs_that_a_shutdown_leaves_behind: "left .* runs on their servers",
    shards_that_take_all: "the operator knows",
    deletions_that_a_broken_watch_loses: "the operator knows",
}


@pytest.fixture(autouse=True)
def only_errors() -> Iterator[None]:
    """As in the simulation's own processes."""
    with watched():
        yield


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_rule_that_is_broken_is_seen(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    for seed in range(HISTORIES):
        # One broken rule breaks others, and which is seen first is chance.
        if re.search(BREAKS[broken], " ".join(simulate(seed).violations)):
            return
    pytest.fail(f"{HISTORIES} histories did not show it")
