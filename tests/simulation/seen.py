"""What one process was seen to do, for the rules that look back."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.ground import Ground
from tests.simulation.process import Process

from matview_operator.engine.ports import Key

POLICY = "MatviewRefreshPolicy"
DATABASE = "MatviewDatabase"

TO_BEGIN_SECONDS = 25.0
"""From a slot's instant, or the end of what was in its way, to its begin: the longest pause for a held lock, a Secret's
second, a clock that is looked at now and then."""
TO_MEND_SECONDS = 600.0
"""A slot that fails for its Secret may wait for another attempt until the next one is due."""
TO_ACT_SECONDS = 20.0
"""From hearing of a change until nothing is begun any more that it forbids: a Secret may be read just then."""
NEVER = -1e9

Work = tuple[str, str, str]
"""Policy UID, slot id and view."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """Times are the ground's."""

    ground: Ground
    process: Process
    begun_at: dict[tuple[str, str], float]
    """By MatviewDatabase and view: when the last call of any process began."""
    done: set[Work] = field(default_factory=set)
    """What need not be done again, as the process knows."""
    begun: set[tuple[str, str]] = field(default_factory=set)
    """Policy UID and slot id."""
    tried: dict[Work, float] = field(default_factory=dict)
    """When it was begun last."""
    active: dict[str, float] = field(default_factory=dict)
    """By policy UID: when a call of it last began or ended."""
    starts: dict[str, list[float]] = field(default_factory=dict)
    """By MatviewDatabase: when calls began."""
    ended: dict[str, float] = field(default_factory=dict)
    """By MatviewDatabase: when a call ended last."""
    refreshed_at: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """By MatviewDatabase and view: when its last call that refreshed it began and ended."""
    held: dict[str, tuple[object, bool]] = field(default_factory=dict)
    """By policy UID: the status at the last look, and whether it was found to be stored."""

    def is_news(self, kind: str, key: Key) -> bool:
        """Whether it heard something new of an object a moment ago."""
        return self.ground.now - self.heard_of(kind, key) < TO_ACT_SECONDS

    def heard_of(self, kind: str, key: Key) -> float:
        """When it heard something new of an object last."""
        return self.process.news_at.get((kind, key), NEVER)

    @property
    def disturbed_at(self) -> float:
        """When it was loaded, paused, cut off or had its clock set last."""
        loaded_at = self.ground.now if self.process.loaded_at is None else self.process.loaded_at
        return max(loaded_at, self.process.disturbed_at, self.ground.jumped_at)

    @property
    def is_undisturbed(self) -> bool:
        """Whether it has had its time since."""
        return not self.process.is_stopping and self.ground.now - self.disturbed_at > TO_BEGIN_SECONDS

    def lacks_a_secret(self, namespace: str) -> bool:
        """Whether one could not be read: then slots are begun and tried again."""
        return self.ground.now - self.process.unread_at.get(namespace, NEVER) < TO_MEND_SECONDS
