"""PostgreSQL's side of the engine's ports in memory: servers whose runs take virtual time; metrics; a clock."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import Inspection, ViewCheck
from matview_operator.domain.mode import ModeChoice
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run
from matview_operator.domain.server import ServerFacts
from matview_operator.domain.view import ViewName
from matview_operator.engine.ports import Key, SecretUnread

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
"""When virtual time begins: a full hour, so that every usual interval has a slot at it."""


class VirtualClock:
    """The event loop's time from EPOCH on, and how far somebody set the clock."""

    def __init__(self) -> None:
        self.set_by = timedelta()

    def now(self) -> datetime:
        return EPOCH + self.set_by + timedelta(seconds=asyncio.get_running_loop().time())


def at(seconds: float) -> datetime:
    """So many seconds after EPOCH."""
    return EPOCH + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one run is to end with, in place of SUCCESS."""

    outcome: RefreshOutcome
    reason: RefreshReason | None = None
    message: str | None = None


LOCK_HELD = Told(outcome=RefreshOutcome.SKIPPED_LOCK_HELD, reason=RefreshReason.LOCK_HELD)
COVERED = Told(outcome=RefreshOutcome.SKIPPED_COVERED, reason=RefreshReason.COVERED)
UNKNOWN = Told(outcome=RefreshOutcome.UNKNOWN, reason=RefreshReason.COMMIT_UNKNOWN)
FAILED = Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.VIEW_QUERY_FAILED, message="division by zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One call of the executor."""

    at: datetime
    run: Run
    target: ConnectionTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """One call to connect before runs are due."""

    at: datetime
    host: str
    tenant_setting: str | None
    count: int


@dataclass(slots=True)
class MemoryExecutor:
    """Runs take `seconds` of virtual time, or until the timeout on a hung host, and end as scripted."""

    clock: VirtualClock
    seconds: float = 0.1
    slow: dict[str, float] = field(default_factory=dict)
    """By view: seconds that its runs take instead."""
    script: dict[str, list[Told | Exception]] = field(default_factory=lambda: defaultdict(list))
    """By view: how its next runs end, in order; then SUCCESS."""
    held_until: dict[str, datetime] = field(default_factory=dict)
    """By view: until when a rival holds its lock."""
    hung_hosts: set[str] = field(default_factory=set)
    commits_when_cancelled: bool = False
    calls: list[Started] = field(default_factory=list)
    groups: list[tuple[list[str], float]] = field(default_factory=list)
    """The views of each group, and its timeout in seconds."""
    running: Counter[str] = field(default_factory=Counter)
    """By host."""
    most_at_once: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)
    ahead: list[Ahead] = field(default_factory=list)

    @property
    def views(self) -> list[str]:
        """The views of all calls, in order."""
        return [str(call.run.view) for call in self.calls]

    async def refresh(self, *, target: ConnectionTarget, run: Run) -> RefreshResult:
        started_at, view = self.clock.now(), str(run.view)
        self.calls.append(Started(at=started_at, run=run, target=target))
        self.running[target.host] += 1
        for place in (target.host, "all"):
            busy = self.running.total() if place == "all" else self.running[place]
            self.most_at_once[place] = max(self.most_at_once[place], busy)
        try:
            if self.held_until.get(view, started_at) > started_at:
                return self._result(run, started_at, LOCK_HELD)
            seconds = self.slow.get(view, self.seconds)
            await asyncio.sleep(run.timeout_seconds if target.host in self.hung_hosts else seconds)
        except asyncio.CancelledError:
            self.cancelled.append(view)
            stopped = Told(outcome=RefreshOutcome.INTERRUPTED, reason=RefreshReason.SHUTDOWN)
            told = None if self.commits_when_cancelled else stopped
            raise asyncio.CancelledError(self._result(run, started_at, told)) from None
        finally:
            self.running[target.host] -= 1
        if target.host in self.hung_hosts:
            return self._result(run, started_at, Told(outcome=RefreshOutcome.FAILED, reason=RefreshReason.TIMEOUT))
        scripted = self.script[view].pop(0) if self.script[view] else None
        if isinstance(scripted, Exception):
            raise scripted
        return self._result(run, started_at, scripted)

    async def refresh_group(
        self, *, target: ConnectionTarget, runs: Sequence[Run], timeout_seconds: float
    ) -> tuple[RefreshResult, ...]:
        """One after another; a lock that is held, and a cancellation, are everybody's."""
        self.groups.append(([str(run.view) for run in runs], timeout_seconds))
        started_at = self.clock.now()
        results: list[RefreshResult] = []
        try:
            for run in runs:
                results.append(await self.refresh(target=target, run=run))
                if results[-1].outcome is LOCK_HELD.outcome:
                    return tuple(self._result(each, started_at, LOCK_HELD) for each in runs)
        except asyncio.CancelledError as stop:
            (told,) = stop.args
            how = Told(outcome=told.outcome, reason=told.error_type)
            raise asyncio.CancelledError(*(self._result(each, started_at, how) for each in runs)) from None
        return tuple(result.model_copy(update={"started_at": started_at}) for result in results)

    async def connect_ahead(self, *, target: ConnectionTarget, tenant_setting: str | None, count: int) -> None:
        self.ahead.append(Ahead(at=self.clock.now(), host=target.host, tenant_setting=tenant_setting, count=count))
        await asyncio.sleep(self.seconds)
        if target.host in self.hung_hosts:
            raise Problem(RefreshReason.CONNECTION_FAILED, "The server does not answer.")

    def _result(self, run: Run, started_at: datetime, told: Told | None) -> RefreshResult:
        said = told or Told(outcome=RefreshOutcome.SUCCESS)
        plain = run.result(
            said.outcome, started_at=started_at, ended_at=self.clock.now(), reason=said.reason, message=said.message
        )
        if said.outcome is RefreshOutcome.SUCCESS:
            found = {"mode": RefreshMode.CONCURRENT, "data_as_of": started_at, "rows_inserted": 1, "rows_deleted": 0}
        elif said is COVERED:
            found = {"data_as_of": run.due_at}
        else:
            return plain
        return plain.model_copy(update=found | {"verified_at": found["data_as_of"]})


@dataclass(slots=True)
class MemoryInspector:
    """Finds every view well, but for the ones whose answers or servers were scripted."""

    seconds: float = 0.05
    answers: dict[str, ModeChoice | Problem] = field(default_factory=dict)
    """By view."""
    down: dict[str, Problem | Exception] = field(default_factory=dict)
    """By host."""
    facts: dict[str, object] = field(default_factory=dict)
    """What the server is said to be besides."""
    reads: dict[str, str] = field(default_factory=dict)
    """By view: those that it reads, with blanks in between."""
    calls: Counter[str] = field(default_factory=Counter)
    """By host."""
    asked: list[ViewCheck] = field(default_factory=list)
    """What the newest call asked."""

    async def inspect(
        self,
        *,
        target: ConnectionTarget,
        checks: Iterable[ViewCheck],
        allow_superuser: bool,
        managed: Collection[ViewName] = (),
    ) -> Inspection:
        self.calls[target.host] += 1
        self.asked = asked = list(checks)
        await asyncio.sleep(self.seconds)
        if target.host in self.down:
            raise self.down[target.host]
        plain = ServerFacts(
            version="18.4",
            version_num=180004,
            database=target.database,
            role=target.user,
            quoted_role=target.user,
            quoted_database=target.database,
            inherits=True,
            superuser=allow_superuser,
            in_recovery=False,
            bookkeeping=Bookkeeping.INSTALLED,
            system_identifier="7",
        )
        facts = replace(plain, **self.facts)  # type: ignore[arg-type]
        well = ModeChoice(RefreshMode.CONCURRENT)
        among = {str(view): view for view in managed}
        return Inspection(
            server=facts,
            answers={check: self.answers.get(str(check.view), well) for check in asked},
            reads={
                among[view]: {among[other] for other in others.split() if other in among}
                for view, others in self.reads.items()
                if view in among
            },
        )


@dataclass(slots=True)
class MemoryPruner:
    """Takes a second for each database."""

    down: dict[str, Problem | Exception] = field(default_factory=dict)
    """By host."""
    calls: list[tuple[str, int, float]] = field(default_factory=list)
    """Host, days and when."""

    async def prune(self, *, target: ConnectionTarget, keep_days: int, allow_superuser: bool) -> int | None:
        assert not allow_superuser
        self.calls.append((target.host, keep_days, asyncio.get_running_loop().time()))
        await asyncio.sleep(1)
        if target.host in self.down:
            raise self.down[target.host]
        return 1


@dataclass(slots=True)
class MemorySecrets:
    """Every Secret there is; another one is a Problem."""

    data: dict[Key, Mapping[str, str]] = field(default_factory=dict)
    """By name; values as text."""
    reads: Counter[Key] = field(default_factory=Counter)
    seconds: float = 0
    """How long a read takes."""
    unanswered: int = 0
    """How many of the next reads the API server does not answer."""
    silent_seconds: float = 0
    """For so long it says nothing before that."""

    async def read(self, *, namespace: str, name: str, field: str) -> Mapping[str, bytes]:
        await asyncio.sleep(self.seconds)
        key = Key(namespace, name)
        self.reads[key] += 1
        if self.unanswered:
            self.unanswered -= 1
            await asyncio.sleep(self.silent_seconds)
            raise SecretUnread(RefreshReason.CONNECTION_FAILED, f"Secret {name} could not be read.")
        if key not in self.data:
            raise Problem(RefreshReason.SECRET_NOT_FOUND, f"There is no Secret {name}; correct {field}.")
        return {part: value.encode() for part, value in self.data[key].items()}


@dataclass(slots=True)
class MemoryMetrics:
    """What the engine counts."""

    runs: Counter[tuple[Key, str]] = field(default_factory=Counter)
    missed: Counter[Key] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    retries: Counter[tuple[Key, str]] = field(default_factory=Counter)
    gone: list[Key] = field(default_factory=list)

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        self.runs[key, result.outcome.value] += 1

    def slot_started(self, *, lag_seconds: float) -> None:
        self.lags.append(lag_seconds)

    def slots_missed(self, key: Key, count: int) -> None:
        self.missed[key] += count

    def retried(self, key: Key, reason: RefreshReason) -> None:
        self.retries[key, reason.value] += 1

    def policy_gone(self, key: Key) -> None:
        self.gone.append(key)
