"""The books of the demo: which slots became due, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import quantiles

from sandbox.demo.policies import Entry, Policy

REFRESHED = "SUCCESS"
COVERED = "SKIPPED_COVERED"
_FAILED = frozenset({"FAILED", "REJECTED_BY_GUARD", "UNKNOWN"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One policy's account. Durations and lags in milliseconds; a lag is from the slot to the first run's start."""

    policy: Policy
    due: int
    refreshed: int
    covered: int
    failed: int
    missed: int
    """Due, and neither refreshed, covered nor failed."""
    lags: tuple[float, ...]
    durations: tuple[float, ...]

    @property
    def good(self) -> bool:
        """Whether every slot was refreshed or covered, and at least one if it is due every few seconds."""
        enough = self.policy.every_seconds is None or self.refreshed + self.covered > 0
        return enough and self.due == self.refreshed + self.covered


@dataclass(slots=True)
class _Account:
    policy: Policy
    seen_at: datetime
    due: set[datetime]
    ended: dict[datetime, Entry]


@dataclass(slots=True)
class Tally:
    """Counts the slots of the policies that it is first shown; those that come later are not its concern."""

    _accounts: dict[str, _Account] = field(default_factory=dict)
    _begun: bool = False

    def observe(self, policies: Iterable[Policy], *, now: datetime) -> None:
        """Take in the policies as they are now.

        A slot counts as due when its policy is not suspended, and was not changed since it was last observed: who
        changes a policy just then cannot tell which schedule the slot belonged to.
        """
        for policy in policies:
            account = self._accounts.get(policy.uid)
            if account is None:
                if self._begun:
                    continue
                # A slot at the instant of creation is not due any more; "no run on apply".
                account = _Account(policy=policy, seen_at=policy.created_at, due=set(), ended={})
                self._accounts[policy.uid] = account
            if not policy.suspended and policy.generation == account.policy.generation:
                account.due.update(policy.slots(after=account.seen_at, until=now))
            self._take(account, policy)
            account.seen_at = now
        self._begun = True

    def settle(self, policies: Iterable[Policy]) -> bool:
        """Take in what ended meanwhile, without making anything due; tell whether every slot has ended."""
        for policy in policies:
            if policy.uid in self._accounts:
                self._take(self._accounts[policy.uid], policy)
        return all(account.due <= account.ended.keys() for account in self._accounts.values())

    def lines(self) -> tuple[Line, ...]:
        """Return the accounts, one per policy."""
        return tuple(_line(account) for account in self._accounts.values())

    @staticmethod
    def _take(account: _Account, policy: Policy) -> None:
        account.policy = policy
        account.ended.update({entry.slot_time: entry for entry in policy.history if entry.slot_time is not None})


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of the values, one at least, do not exceed."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _line(account: _Account) -> Line:
    ended = {slot: account.ended[slot] for slot in account.due if slot in account.ended}
    outcomes = [entry.outcome for entry in ended.values()]
    refreshed, covered = outcomes.count(REFRESHED), outcomes.count(COVERED)
    failed = sum(outcome in _FAILED for outcome in outcomes)
    return Line(
        policy=account.policy,
        due=len(account.due),
        refreshed=refreshed,
        covered=covered,
        failed=failed,
        missed=len(account.due) - refreshed - covered - failed,
        lags=tuple((entry.started_at - slot).total_seconds() * 1000 for slot, entry in ended.items()),
        durations=tuple(float(entry.duration_ms) for entry in ended.values() if entry.outcome == REFRESHED),
    )
