"""Whatever strings a tenant writes, the server is asked to refresh the views that exist under those very names.

The oracle is the server's own log, to the letter. FUZZ_CASES is how many policies are tried. Some of them are groups,
whose refreshes have to stand between the two ends of the cursor by which a group sees that nobody came between, and
which lives as long as one transaction.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, quoted
from tests.hostile import NEAR, Attack, Wish, attacks, group_attacks
from tests.statements import StatementLog, fixed_statements
from tests.unit.ports import MemoryMetrics, MemorySecrets

from matview_operator import RefreshOutcome
from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.sql import group as group_queries
from matview_operator.adapters.postgres.sql import guard as guard_queries
from matview_operator.adapters.postgres.sql.queries import QuotedName
from matview_operator.api.database import MatviewDatabaseSpec, MatviewDatabaseStatus
from matview_operator.api.model import REQUESTED_AT
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.policy import Consistency, MatviewRefreshPolicy
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import not_ready
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import Problem
from matview_operator.domain.reading import InvalidObject, read_database, read_policy, read_policy_status
from matview_operator.domain.slot import Slot, SlotReport, is_request_token, requested, scheduled
from matview_operator.domain.status import Standing, after_slot, fresh_after, with_conditions
from matview_operator.domain.text import is_printable
from matview_operator.domain.view import IDENTIFIER_BYTES
from matview_operator.engine.budget import Budget
from matview_operator.engine.flights import Flights
from matview_operator.engine.holds import Holds
from matview_operator.engine.order import Order
from matview_operator.engine.pauses import Pauses
from matview_operator.engine.permits import Permits
from matview_operator.engine.ports import Key, ObjectRef, SystemClock
from matview_operator.engine.registry import Database as KnownDatabase
from matview_operator.engine.registry import Policy, Registry
from matview_operator.engine.runner import SlotRunner
from matview_operator.engine.targets import Targets
from matview_operator.engine.turns import Turns

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from tests.database import Database
    from tests.databases import Databases

    from matview_operator.domain.result import RefreshResult

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
_PER_DATABASE = 1000
GROUPS = 4
"""One in so many policies is a group."""
NAMESPACE = "tenant"
REFRESH = "refresh materialized view"
ODD = {"standard_conforming_strings": "off", "quote_all_identifiers": "on", "client_encoding": "LATIN1"}
CANARY = ("public", "canary")
"""A table that hostile strings would drop."""
RESERVED = ("pg_", "information_schema", "matview_ops")


class End(NamedTuple):
    """How one view's run ended."""

    name: tuple[str, str]
    result: RefreshResult
    column: str | None
    """By which its guard tells tenants apart."""


class Target:
    """One database that hostile policies are aimed at, and what the server has to have been asked for."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.log = StatementLog(database)
        self.views: dict[tuple[str, str], bool] = {}
        """Those that exist, and whether they have a unique index."""
        self.expected: list[tuple[str, str | None, str | None]] = []
        """Commands with the view that they name, if they name one."""
        self.attacks = self.refused = self.refreshed = 0
        self.groups: Counter[RefreshOutcome] = Counter()
        """How groups of several views ended."""
        self.registry = Registry()
        self.secrets = MemorySecrets()
        # Kept as long as it can be: what one policy left in a session would meet the next one's run.
        self.pool = Pool(idle_seconds=60)
        budget = Budget(limit_of=lambda _: 1, limit_in_all=1)
        self.order = Order(registry=self.registry)
        holds = Holds(registry=Registry(), clock=SystemClock())  # that knows no database: nothing has to wait
        self.runner = SlotRunner(
            registry=self.registry,
            executor=Refresher(self.pool),
            targets=Targets(secrets=self.secrets, destinations=Destinations.read(["127.0.0.0/8"])),
            budget=budget,
            flights=Flights(budget=budget, clock=SystemClock()),
            pauses=Pauses(),
            metrics=MemoryMetrics(),
            holds=holds,
            permits=Permits(registry=self.registry, holds=holds, order=self.order, clock=SystemClock()),
            clock=SystemClock(),
            random=Random(1),  # noqa: S311 - jitter
            turns=Turns(registry=self.registry, order=self.order, clock=SystemClock()),
        )

    async def attack(self, attack: Attack) -> None:
        """Read, check and run one policy as the operator does, and see that a status can be made of what came of it."""
        self.attacks += 1
        views = [await self._named(wish) for wish in attack.wishes]
        body = {
            "metadata": {
                "name": "p",
                "namespace": NAMESPACE,
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "annotations": {} if attack.token is None else {REQUESTED_AT: attack.token},
            },
            "spec": {
                **attack.policy,
                "retry": {"limit": 0},
                "views": [
                    {"schema": schema, "name": name}
                    | ({} if wish.guard is None else {"guard": wish.guard})
                    | ({} if wish.depends_on is None else {"dependsOn": wish.depends_on})
                    for (schema, name), wish in zip(views, attack.wishes, strict=True)
                ],
            },
        }
        database = {"metadata": {**body["metadata"], "name": "db"}, "spec": {**attack.database, "sslMode": "disable"}}
        try:
            policy, reached = read_policy(body), read_database(database).spec
        except InvalidObject as error:
            self.refused += 1
            ready = not_ready(RefreshReason.INVALID_SPEC, Problem(RefreshReason.INVALID_SPEC, str(error)).message)[0]
            assert is_printable(ready.message)
            assert 0 < len(ready.message) <= 4096
            return
        report = await self._run(policy, reached, attack)
        right = not attack.secret and reached.database is None and policy.spec.database_ref.name == "db"
        ordered = all(wish.depends_on is None for wish in attack.wishes)  # else it says which names are missing
        can_work = right and ordered and policy.spec.isolation == "Shared"
        ends = []
        for (view, result), name, wish in zip(report.results, views, attack.wishes, strict=True):
            assert (view.schema, view.name) == name
            ends.append(End(name, result, None if wish.guard is None else wish.guard.get("keepTenants")))
        if policy.spec.consistency is Consistency.GROUP:
            self._judge_group(ends, can_work=can_work)
        else:
            for end in ends:
                self._judge(end, can_work=can_work)

    def _judge_group(self, ends: list[End], *, can_work: bool) -> None:
        """All are refreshed between the group's two looks at the catalogue, or one says why they are as before."""
        causes = [end for end in ends if end.result.error_type is not RefreshReason.GROUP_ROLLED_BACK]
        assert causes == ends or len(causes) == 1, ends
        (outcome,) = {end.result.outcome for end in causes}
        in_order = sorted(ends, key=lambda end: end.name)
        if outcome is RefreshOutcome.SUCCESS:
            assert causes == ends, ends
            self._expect(group_queries.WATCH)
            for end in in_order:
                assert self.views[end.name], end
                assert end.result.mode is RefreshMode.CONCURRENT, end
                self._judge(end, can_work=can_work)
            self._expect(group_queries.WATCHED)
        elif outcome is RefreshOutcome.REJECTED_BY_GUARD:
            self._expect(group_queries.WATCH)
            for end in in_order[: in_order.index(causes[0])]:
                # It was refreshed, and rolled back.
                self._expect(f"{REFRESH} concurrently", *end.name)
            self._judge(causes[0], can_work=can_work)
        elif can_work and causes[0].result.error_type is RefreshReason.NO_UNIQUE_INDEX:
            assert self.views[causes[0].name] is False, ends
        else:
            for end in causes:
                self._judge(end, can_work=can_work)
        if len(ends) > 1:
            self.groups[outcome] += 1

    def _expect(self, command: str, schema: str | None = None, name: str | None = None) -> None:
        self.expected.append((command, schema, name))

    def _judge(self, end: End, *, can_work: bool) -> None:
        name, result, column = end
        if result.outcome is RefreshOutcome.SUCCESS:
            assert name in self.views
            self.refreshed += 1
            concurrent = result.mode is RefreshMode.CONCURRENT
            for command in [f"{REFRESH} concurrently"] if concurrent else [REFRESH, "analyze"]:
                self._expect(command, *name)
        elif result.outcome is RefreshOutcome.REJECTED_BY_GUARD:
            assert name in self.views
            assert column not in (None, "id"), result
            assert result.error_type is RefreshReason.GUARD_FAILED
        else:
            assert result.error_message
            assert is_printable(result.error_message)
            assert not can_work or name not in self.views, result
            reason = RefreshReason.NOT_MATERIALIZED_VIEW if name == CANARY else RefreshReason.VIEW_NOT_FOUND
            assert not can_work or result.error_type is reason, result

    async def _run(self, policy: MatviewRefreshPolicy, database: MatviewDatabaseSpec, attack: Attack) -> SlotReport:
        meta, spec = policy.metadata, policy.spec
        key = Key(NAMESPACE, spec.database_ref.name)
        self.order.learn(key, {})  # nobody else looks
        known = KnownDatabase(
            ref=ObjectRef(kind="MatviewDatabase", key=key, uid="d"),
            generation=1,
            spec=database,
            status=MatviewDatabaseStatus(),
        )
        self.registry.databases = {key: known}
        self.secrets.data = {
            Key(NAMESPACE, database.secret_ref.name): {
                "host": "127.0.0.1",
                "port": str(self.database.server.port),
                "dbname": self.database.name,
                "username": MV_OPERATOR,
                "password": self.database.passwords[MV_OPERATOR],
                **attack.secret,
            }
        }
        now = SystemClock().now()
        ours = Policy(
            ref=ObjectRef(kind="MatviewRefreshPolicy", key=Key(NAMESPACE, "p"), uid=meta.uid),
            generation=1,
            created_at=now,
            spec=spec,
            status=MatviewRefreshPolicyStatus(),
            taken_until=now,
        )
        self.registry.add_policy(ours)
        timetable = ours.timetable
        assert timetable is not None
        assert len(timetable.describe()) <= 256
        report = await self.runner.run(ours, _slot(meta.annotations.get(REQUESTED_AT), timetable.next_after(now)))
        assert report is not None
        status = with_conditions(
            after_slot(ours.status, report, history_limit=5),
            Standing(generation=1, problem=None),
            timetable=timetable,
            next_slot=timetable.next_after(now),
            now=now,
            fresh=fresh_after(report),
        )
        stored = {"status": {name: value for name, value in status_document(status).items() if value is not None}}
        assert read_policy_status(stored) == status
        return report

    async def _named(self, wish: Wish) -> tuple[str, str]:
        if wish.known is not None and self.views:
            schema, name = [*self.views][wish.known % len(self.views)]
            return schema, name if wish.near is None else NEAR[wish.near](name)
        if wish.exists:
            await self._make(wish.schema, wish.name)
        return wish.schema, wish.name

    async def _make(self, schema: str, name: str) -> None:
        if any("\0" in part or not 0 < len(part.encode()) <= IDENTIFIER_BYTES for part in (schema, name)):
            return
        if (schema, name) in {CANARY, *self.views} or schema.startswith(RESERVED):
            return
        full = f"{quoted(schema)}.{quoted(name)}"
        if schema != "public":
            make = f"create schema if not exists {quoted(schema)} authorization {APP_OWNER}"
            await self.database.execute_as(SUPERUSER, make)
        indexed = len(self.views) % 8 < 7
        index = f"; create unique index on {full} (id)" if indexed else ""
        await self.database.execute_as(APP_OWNER, f"create materialized view {full} as select 1 as id{index}")
        self.views[schema, name] = indexed

    async def judge(self) -> None:
        """Compare, to the letter and in order, with what the server says that it was asked."""
        # REFRESH quotes no more than it must; ANALYZE, in a transaction of its own, as the server is told to.
        as_told = await self._written()
        await self.database.execute_as(SUPERUSER, "set quote_all_identifiers = off")
        expected = [
            told if told.startswith("analyze") else short
            for told, short in zip(as_told, await self._written(), strict=True)
        ]
        await self.pool.close()
        said = [*self.log.read()]
        assert {statement.protocol for statement in said} <= {"extended"}
        fixed = (fixed_statements() - {group_queries.WATCH, group_queries.WATCHED}) | {
            text for line in expected if line.startswith(REFRESH) for text in _guard_reads(line)
        }
        assert [statement.text for statement in said if statement.text not in fixed] == expected
        assert await self.database.value_as(SUPERUSER, "select to_regclass('canary') is not null")

    async def _written(self) -> list[str]:
        commands, schemas, names = zip(*self.expected, strict=True)
        rows = await self.database.fetch_as(
            SUPERUSER,
            "select case when n is null then c else format('%s %I.%I', c, s, n) end "
            "from unnest($1::text[], $2::text[], $3::text[]) with ordinality w(c, s, n, o) order by o",
            *(commands, schemas, names),
        )
        return [row[0] for row in rows]


def _guard_reads(refresh: str) -> list[str]:
    """What a guard may read of the view that this statement refreshes."""
    view = QuotedName(refresh.removeprefix(REFRESH).removeprefix(" concurrently").removeprefix(" "))
    column, type_name = guard_queries.QuotedColumn("id"), guard_queries.QuotedType("pg_catalog.int4")
    return [
        guard_queries.count_rows(view),
        guard_queries.list_tenants(view, column),
        guard_queries.count_lost_tenants(view, column, type_name),
    ]


def _slot(token: str | None, due_at: Any) -> Slot:
    if token is not None and is_request_token(token):
        return requested(token, now=due_at, starting_deadline_seconds=60)
    return scheduled(due_at, starting_deadline_seconds=60)


@pytest.mark.timeout(120 + CASES)
@pytest.mark.parametrize(
    ("databases", "defaults"), [(15, ODD), (16, {}), (18, ODD)], indirect=["databases"], ids=["pg15", "pg16", "pg18"]
)
def test_t1_nothing_but_refresh_of_the_very_view_is_run_whatever_a_tenant_writes(
    databases: Databases, defaults: dict[str, str]
) -> None:
    left, refreshed, groups = CASES // 3, 0, Counter[RefreshOutcome]()
    with asyncio.Runner() as runner:
        while left > 0:
            count, left = min(left, _PER_DATABASE), left - _PER_DATABASE
            database = runner.run(_arranged(databases, defaults))
            try:
                target = Target(database)
                _aim(target, runner, attacks, count=count - count // GROUPS)
                _aim(target, runner, group_attacks, count=count // GROUPS)
                runner.run(target.judge())
            finally:
                runner.run(databases.drop(database))
            target.log.forget()
            refreshed += target.refreshed
            groups += target.groups
    assert refreshed > CASES // 30
    assert groups[RefreshOutcome.SUCCESS] + groups[RefreshOutcome.REJECTED_BY_GUARD] > CASES // 1000, groups


async def _arranged(databases: Databases, defaults: dict[str, str]) -> Database:
    database = await databases.create("ledger")
    for name, value in defaults.items():
        await database.execute_as(SUPERUSER, f"alter database {database.name} set {name} = '{value}'")
    await database.close()
    await database.execute_as(SUPERUSER, "create table canary (id int)")
    return database


def _aim(target: Target, runner: asyncio.Runner, wanted: SearchStrategy[Attack], *, count: int) -> None:
    @settings(
        max_examples=count,
        database=None,
        # Not shrunk: what fails may do so because of what was made before it.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(wanted)
    def aim(attack: Attack) -> None:
        runner.run(target.attack(attack))

    aim()
