"""What the demo knows at one moment, however it is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sandbox.demo.policies import Entry, Policy
from sandbox.demo.readings import Reading

_KEPT = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """A slot or request that ended while we looked."""

    policy: Policy
    entry: Entry


@dataclass(slots=True, kw_only=True)
class Scene:
    """Filled by the show, read by the board."""

    tenants: dict[str, str]
    """Names by tenant id."""
    readings: Sequence[Reading]
    policies: tuple[Policy, ...] = ()
    ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """The newest last."""
    rows_written: int = 0
    seconds: float = 0
    """How long the show has been on."""
    seconds_in_all: float | None = None
    help: str = "Ctrl-C ends it and cleans up. After a minute: what to try in another terminal."
    _seen: set[tuple[str, datetime]] = field(default_factory=set)

    def update(self, policies: Iterable[Policy]) -> list[Ended]:
        """Take in the policies as they are now; return what ended since the last time, in order of start."""
        self.policies = tuple(policies)
        news = sorted(self._news(), key=lambda ended: ended.entry.started_at)
        self.ended.extend(news)
        return news

    def tenant(self, policy: Policy) -> str:
        """Return the tenant's name, or its id if the application does not know it."""
        return self.tenants.get(policy.tenant_id, policy.tenant_id)

    def _news(self) -> Iterator[Ended]:
        for policy in self.policies:
            for entry in policy.history:
                key = (policy.uid, entry.started_at)
                if key not in self._seen:
                    self._seen.add(key)
                    yield Ended(policy, entry)
