"""What everything in a history stands on: virtual time, one source of chance, and the trace that tells it all."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import blake2b
from random import Random

from tests.simulation.loop import VirtualLoop
from tests.unit.ports import EPOCH, VirtualClock


class Clock(VirtualClock):
    """Tells the time of an instant once; it is asked a thousand times in each history."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._told = (-1.0, EPOCH)
        self.set_back = False
        """Whether it ever was."""

    def now(self) -> datetime:
        now = self._loop.time()
        if self._told[0] != now:
            self._told = (now, EPOCH + timedelta(seconds=now))
        return self._told[1] + self.set_by


class Ground:
    """One history's time and chance."""

    def __init__(self, loop: VirtualLoop, *, seed: int, told: list[str] | None) -> None:
        """`told` gets every line of the trace."""
        self.loop = loop
        self.random = Random(seed)  # noqa: S311 - to be the same each time
        self.clock = Clock(loop)
        """The machines' that operators run on; it may be set."""
        self.true_clock = Clock(loop)
        """The API server's and the databases'."""
        self.jumped_at = -1e9
        """When the operators' clock was last set, in the loop's time."""
        self.changes = 0
        """How many processes have ended or become the leader."""
        self.violations: list[str] = []
        self._hash = blake2b(digest_size=8)
        self._told = told

    @property
    def now(self) -> float:
        """Seconds since the history began, whatever the clocks say."""
        return self.loop.time()

    @property
    def trace(self) -> str:
        """What tells two histories apart."""
        return self._hash.hexdigest()

    def tell(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.loop.time():.4f} {text}"
        self._hash.update(line.encode())
        if self._told is not None:
            self._told.append(line)

    def violate(self, text: str) -> None:
        """Say that a promise was broken."""
        line = f"{self.loop.time():.3f} s: {text}"
        self.tell(f"VIOLATION {text}")
        self.violations.append(line)

    def set_clock(self, seconds: float) -> None:
        """Set the operators' clock forward or back."""
        self.tell(f"the clock is set by {seconds:.0f} s")
        self.clock.set_by += timedelta(seconds=seconds)
        self.clock.set_back |= seconds < 0
        self.jumped_at = self.now

    def chance(self, probability: float) -> bool:
        """Throw a die."""
        return self.random.random() < probability

    def latency(self) -> float:
        """Seconds until something on the network arrives: mostly milliseconds, sometimes a second."""
        drawn = self.random.random()
        return 0.001 + 0.004 * drawn if drawn < 0.97 else 33.0 * (drawn - 0.97)
