"""A PostgreSQL server in memory: locks, a ledger or none, runs that take time and end in every way they can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.simulation.ground import Ground

from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.run import Run

Work = tuple[str, str, str]
"""Policy UID, slot id and view: what the ledger knows a run by."""

FAILURES = (
    RefreshReason.VIEW_QUERY_FAILED,
    RefreshReason.LOCK_TIMEOUT,
    RefreshReason.DEADLOCK,
    RefreshReason.SERVER_RESOURCES,
    RefreshReason.PERMISSION_DENIED,
    RefreshReason.AUTHENTICATION_FAILED,
    RefreshReason.READ_ONLY_SERVER,
)


@dataclass(slots=True, eq=False)
class Server:
    """What one database holds and suffers."""

    ground: Ground
    host: str
    has_ledger: bool
    seconds: float
    """How long a run takes, about."""
    trouble: float = 0.0
    """How often a run ends badly."""
    is_down: bool = False
    is_hung: bool = False
    locks: dict[str, object] = field(default_factory=dict)
    """By view: the job that holds it, or a rival."""
    settled: dict[Work, datetime] = field(default_factory=dict)
    """The ledger: when the data was taken."""
    covered: dict[tuple[str, str], tuple[datetime, Job]] = field(default_factory=dict)
    """By view and lock token: the newest data, and whose transaction brought it."""
    commits: Counter[Work] = field(default_factory=Counter)
    excused: Counter[Work] = field(default_factory=Counter)
    """How often a commit may be repeated without a ledger: for each whose answer nobody heard."""
    first_begun: dict[Work, int] = field(default_factory=dict)
    """How many processes had ended or become the leader when what was committed first was begun."""
    jobs: dict[Job, None] = field(default_factory=dict)

    def crash(self) -> None:
        """Lose every session and what it had not committed."""
        self.is_down = True
        for job in [*self.jobs]:
            job.lost()

    def heal(self) -> None:
        """Be well from now on; who hung goes on hanging until its timeout."""
        self.is_down = self.is_hung = False
        self.trouble = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """One session's transaction, from connecting to the answer."""

    server: Server
    runs: Sequence[Run]
    timeout_seconds: float
    started_at: datetime
    """On the operator's clock."""
    answer: Callable[[tuple[RefreshResult, ...]], None]
    is_orphan: bool = False
    over: bool = False
    data_as_of: datetime | None = None
    changes_before: int = 0
    """How many processes had ended or become the leader when it began."""

    def begin(self) -> None:
        """Connect."""
        self.server.jobs[self] = None
        ground = self.server.ground
        self.changes_before = ground.changes
        ground.loop.after(ground.latency() + ground.latency(), self._connected)
        ground.loop.after(self.timeout_seconds, self._timed_out)

    def cancel(self) -> None:
        """Have the server stop it, as soon as it hears."""
        ground = self.server.ground
        ground.loop.after(ground.latency() if not self.server.is_hung else 1.0, self._stop)

    def abandon(self) -> None:
        """The client is dead. The server notices within two seconds, unless it is done before."""
        self.is_orphan = True
        ground = self.server.ground
        ground.loop.after(2 * ground.random.random(), self._end, RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)

    def lost(self) -> None:
        """The connection broke."""
        self._end(RefreshOutcome.INTERRUPTED, RefreshReason.CONNECTION_LOST)

    def _connected(self) -> None:
        server, ground = self.server, self.server.ground
        if self.over or server.is_hung:
            return
        if server.is_down:
            self._end(RefreshOutcome.FAILED, RefreshReason.CONNECTION_FAILED)
        elif any(str(run.view) in server.locks for run in self.runs):
            self._end(RefreshOutcome.SKIPPED_LOCK_HELD, RefreshReason.LOCK_HELD)
        elif server.has_ledger and all(_work(run) in server.settled for run in self.runs):
            self.data_as_of = min(server.settled[_work(run)] for run in self.runs)
            self._end(RefreshOutcome.SUCCESS, RefreshReason.RECOVERED)
        elif server.has_ledger and self._is_covered():
            self._end(RefreshOutcome.SKIPPED_COVERED, RefreshReason.COVERED)
        else:
            server.locks |= {str(run.view): self for run in self.runs}
            self.data_as_of = ground.true_clock.now()
            ground.loop.after(server.seconds * ground.random.uniform(0.5, 1.5), self._worked)

    def _is_covered(self) -> bool:
        """Whether one transaction has refreshed all of its views since they were due."""
        found = [self.server.covered.get((str(run.view), run.lock_token)) for run in self.runs]
        due_at, newest = self.runs[0].due_at, found[0]
        if newest is None or due_at is None or any(each is None or each[1] is not newest[1] for each in found):
            return False
        self.data_as_of = newest[0]
        # The run brings its operator's clock; the ledger has the server's.
        return self.data_as_of >= due_at - self.server.ground.clock.set_by

    def _worked(self) -> None:
        server, ground = self.server, self.server.ground
        if self.over or server.is_hung:
            return
        if not ground.chance(server.trouble):
            self._commit()
            self._end(RefreshOutcome.SUCCESS, None)
            return
        end = ground.random.randrange(4)
        if end == 0:
            if ground.chance(0.5):
                self._commit(is_heard=False)
            self._end(RefreshOutcome.UNKNOWN, RefreshReason.COMMIT_UNKNOWN)
        elif end == 1:
            self.lost()
        elif end == 2:
            self._end(RefreshOutcome.REJECTED_BY_GUARD, RefreshReason.TOO_FEW_ROWS)
        else:
            self._end(RefreshOutcome.FAILED, ground.random.choice(FAILURES))

    def _commit(self, *, is_heard: bool = True) -> None:
        server = self.server
        assert self.data_as_of is not None
        for run in self.runs:
            work, view = _work(run), str(run.view)
            server.excused[work] += self.is_orphan or not is_heard
            server.ground.tell(f"{server.host} commits {work}")
            if server.locks.get(view) is not self:
                server.ground.violate(f"{view} was refreshed without its lock")
            if len(self.runs) > 1 and server.commits[work]:
                continue  # a group claims what was not settled before
            server.commits[work] += 1
            changes = server.ground.changes - server.first_begun.setdefault(work, self.changes_before)
            if not server.has_ledger and server.commits[work] > 1 + changes + server.excused[work]:
                server.ground.violate(f"{work} is committed {server.commits[work]} times")
            if server.has_ledger:
                if server.commits[work] > 1:
                    server.ground.violate(f"the ledger holds {work} twice")
                server.settled[work] = self.data_as_of
                server.covered[view, run.lock_token] = self.data_as_of, self

    def _stop(self) -> None:
        self._end(RefreshOutcome.INTERRUPTED, RefreshReason.SHUTDOWN)

    def _timed_out(self) -> None:
        self._end(RefreshOutcome.FAILED, RefreshReason.TIMEOUT)

    def _end(self, outcome: RefreshOutcome, reason: RefreshReason | None) -> None:
        if self.over:
            return
        self.over = True
        server, ground = self.server, self.server.ground
        for run in self.runs:
            if server.locks.get(str(run.view)) is self:
                del server.locks[str(run.view)]
        server.jobs.pop(self, None)
        ended_at = ground.clock.now()
        results = []
        for run in self.runs:
            result = run.result(outcome, started_at=self.started_at, ended_at=ended_at, reason=reason)
            if outcome in (RefreshOutcome.SUCCESS, RefreshOutcome.SKIPPED_COVERED):
                found = {"data_as_of": self.data_as_of, "verified_at": self.data_as_of}
                mode = {"mode": RefreshMode.CONCURRENT} if outcome is RefreshOutcome.SUCCESS else {}
                result = result.model_copy(update=found | mode)
            results.append(result)
        ground.loop.after(ground.latency(), self.answer, tuple(results))


def _work(run: Run) -> Work:
    return str(run.policy_uid), run.slot_id, str(run.view)
