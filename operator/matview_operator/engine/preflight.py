"""Looks at databases and their policies' views before anything is due, so that a bad policy shows at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime

from matview_operator.api.database import CHECK_INTERVAL_SECONDS, MatviewDatabaseStatus, ServerStatus
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Consistency
from matview_operator.domain.conditions import BLOCKING, LEDGER_NOT_USED, PACED, READY, Statement, merge, not_ready
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.server import ServerFacts, ledger_advice, search_path_advice, version_advice
from matview_operator.domain.spec_check import too_dense
from matview_operator.domain.view import ViewName
from matview_operator.engine.order import Order
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import Clock, Inspector, Key
from matview_operator.engine.registry import Database, Policy, Registry
from matview_operator.engine.reporter import Reporter
from matview_operator.engine.targets import Targets, usable

log = logging.getLogger(__name__)

_OFTENEST_SECONDS = 30.0
"""The shortest interval that a MatviewDatabase may ask for."""
_WORKERS = 4
_JUDGED_AT_ONCE = 50
"""Then the event loop gets its turn: thousands of policies of one database would delay slots by half a second."""


class Preflights:
    """One connection per database and round, however many policies ask."""

    def __init__(
        self,
        *,
        registry: Registry,
        inspector: Inspector,
        targets: Targets,
        reporter: Reporter,
        clock: Clock,
        judged: Callable[[Policy], None],
        order: Order,
        permits: Permits,
    ) -> None:
        """`judged` is told when a policy's problem or note was found anew."""
        self._registry = registry
        self._inspector = inspector
        self._targets = targets
        self._reporter = reporter
        self._clock = clock
        self._judged = judged
        self._order = order
        self._permits = permits
        self._asked: dict[Key, set[Key]] = {}
        self._busy: set[Key] = set()
        self._changed = asyncio.Event()

    def ask(self, database: Key, policies: Iterable[Key] = ()) -> None:
        """Have the database looked at soon, and these policies' views with it."""
        self._asked.setdefault(database, set()).update(policies)
        self._changed.set()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WORKERS):
                tasks.create_task(self._look_forever())
            tasks.create_task(self._ask_periodically())

    async def _ask_periodically(self) -> None:
        """Ask at the multiples of each database's interval since the start, so that few instants serve all."""
        loop = asyncio.get_running_loop()
        started, last = loop.time(), 0.0
        while True:
            pauses = {every - last % every for every in map(self._interval, self._registry.named_databases())}
            # Never long: an interval may be shortened meanwhile.
            await asyncio.sleep(min({_OFTENEST_SECONDS} | pauses))
            now = loop.time() - started
            for key in self._registry.named_databases():
                every = self._interval(key)
                if now // every > last // every:
                    self.ask(key, [policy.key for policy in self._registry.policies_of(key)])
            last = now

    def _interval(self, key: Key) -> int:
        database = self._registry.databases.get(key)
        if database is None or database.spec is None:
            return CHECK_INTERVAL_SECONDS
        return database.spec.inventory.check_interval_seconds

    async def _look_forever(self) -> None:
        while True:
            database = next((key for key in self._asked if key not in self._busy), None)
            if database is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            keys = self._asked.pop(database)
            self._busy.add(database)
            try:
                await self._look(database, keys)
            except Exception:  # One database's surprise stops nobody else's preflight.
                log.exception("preflight failed", extra={"action": "preflight", "database": str(database)})
            finally:
                self._busy.discard(database)
                self._changed.set()

    async def _look(self, key: Key, asked: Iterable[Key]) -> None:
        # One that names another database by now has asked there.
        found = map(self._registry.policies.get, asked)
        policies = [policy for policy in found if policy is not None and policy.database_key == key]
        database = self._registry.databases.get(key)
        path = () if database is None or database.spec is None else database.spec.search_path
        checks = {policy.key: _checks(policy, path) for policy in policies}
        inspection: Inspection | None = None
        problem: Problem | None = None
        try:
            spec = usable(database, key)
            target = await self._targets.resolve(spec, key)
            inspection = await self._inspector.inspect(
                target=target,
                checks=(check for each in checks.values() for check in each.values()),
                allow_superuser=spec.allow_superuser,
                managed=frozenset(self._registry.views.get(key, ())),
            )
        except Problem as found:
            problem = found
        finally:
            self._order.learn(key, None if inspection is None else inspection.reads)
        if database is not None and self._registry.databases.get(key) is database:
            self._report_database(database, problem, inspection)
        for number, policy in enumerate(policies):
            if number % _JUDGED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._registry.policies.get(policy.key) is not policy:
                continue  # changed or gone meanwhile; the change has asked again
            policy.problem = self._permits.problem_of(policy) or problem
            policy.is_judged = True
            if policy.problem is None and inspection is not None:
                policy.problem, blocking = _judge(checks[policy.key], inspection)
                policy.note = blocking or _pace(policy, database, now=self._clock.now())
            self._judged(policy)
        others = self._order.stirred(key).difference(asked)
        if others:
            self.ask(key, others)

    def _report_database(self, database: Database, problem: Problem | None, inspection: Inspection | None) -> None:
        problem = database.problem or problem
        statements = (
            [_connected(database, inspection)] if problem is None else not_ready(problem.reason, problem.message)
        )
        if problem is not None and problem.reason is RefreshReason.DATABASE_SUSPENDED:
            statements = [Statement(READY, "True", "Suspended", "Nothing runs on this database until it is resumed.")]
        self._reporter.database(
            database,
            MatviewDatabaseStatus(
                observed_generation=database.generation,
                conditions=merge(
                    database.conditions, statements, generation=database.generation, now=self._clock.now()
                ),
                server=database.status.server if inspection is None else _server_status(inspection.server),
            ),
        )


def _checks(policy: Policy, search_path: tuple[str, ...]) -> dict[ViewName, ViewCheck]:
    spec = policy.spec
    if spec is None:
        return {}
    names = {ViewName(view.schema_name, view.name): view for view in spec.views}
    return {
        name: ViewCheck(
            view=name,
            concurrently=view.concurrently or spec.concurrently,
            isolation=spec.isolation,
            guard=view.guard,
            grouped=spec.consistency is Consistency.GROUP,
            search_path=search_path,
        )
        for name, view in names.items()
    }


def _judge(checks: dict[ViewName, ViewCheck], inspection: Inspection) -> tuple[Problem | None, Statement | None]:
    blocking: list[str] = []
    for name, check in checks.items():
        answer = inspection.answers[check]
        if isinstance(answer, Problem):
            return answer, None
        if answer.reason is RefreshReason.NO_UNIQUE_INDEX:
            blocking.append(str(name))
    if not blocking:
        return None, None
    return None, Statement(
        READY,
        "True",
        BLOCKING,
        f"Readers wait while {', '.join(blocking)} is refreshed: it has no unique index on plain columns without "
        "WHERE. Create one, and refreshes will run CONCURRENTLY.",
    )


def _pace(policy: Policy, database: Database | None, *, now: datetime) -> Statement | None:
    timetable = policy.timetable
    if database is None or database.spec is None or not isinstance(timetable, Timetable):
        return None
    dense = too_dense(timetable, limits=database.spec.limits, now=now)
    return None if dense is None else Statement(READY, "True", PACED, dense)


def _connected(database: Database, inspection: Inspection | None) -> Statement:
    well = "The server answers, and the role may work there."
    if inspection is None:
        return Statement(READY, "True", "Connected", well)
    facts = inspection.server
    ledger = ledger_advice(facts)
    path = search_path_advice(facts, () if database.spec is None else database.spec.search_path)
    outdated = version_advice(facts)
    if outdated is not None:
        return Statement(READY, "True", RefreshReason.VULNERABLE_SERVER, _joined(outdated, ledger, path))
    if ledger is not None and not facts.ledger_is_absent:
        return Statement(READY, "True", LEDGER_NOT_USED, _joined(ledger, path))
    return Statement(READY, "True", "Connected", _joined(well, ledger, path))


def _joined(*sentences: str | None) -> str:
    return " ".join(sentence for sentence in sentences if sentence is not None)


def _server_status(facts: ServerFacts) -> ServerStatus:
    return ServerStatus(
        version=facts.version,
        system_identifier=facts.system_identifier or "",
        database=facts.database,
        role=facts.role,
        superuser=facts.superuser,
        in_recovery=facts.in_recovery,
        bookkeeping=facts.bookkeeping,
    )
