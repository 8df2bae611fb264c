"""Measuring two things so that other work on the machine meets both alike: in rounds, each in turn, and by ratio."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean, median

from bench.cpu import cpu_seconds

WARM_UP = 2
"""Rounds that are not counted."""


@dataclass(frozen=True, slots=True)
class Times:
    """What each step took in each round, in milliseconds."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def median(self, step: str) -> float:
        """Of all rounds."""
        return median(self.of[step])

    def ratio(self, step: str, base: str) -> float:
        """The median of each round's ratio."""
        return median(ours / its for ours, its in zip(self.of[step], self.of[base], strict=True))

    def difference(self, step: str, base: str) -> float:
        """The median of each round's difference."""
        return median(ours - its for ours, its in zip(self.of[step], self.of[base], strict=True))


async def interleaved(
    steps: Mapping[str, Callable[[], Awaitable[object]]], *, rounds: int, meter: Meter | None = None
) -> Times:
    """Run all steps in each round, now in one order, now in the other: what comes first finds colder caches."""
    times = Times({name: [] for name in steps})
    for number in range(WARM_UP + rounds):
        for name, step in [*steps.items()][:: 1 if number % 2 else -1]:
            if meter is not None:
                meter.start()
            started = time.perf_counter()
            await step()
            if number >= WARM_UP:
                times.of[name].append((time.perf_counter() - started) * 1000)
                if meter is not None:
                    meter.stop(name)
    return times


class Meter:
    """CPU time of this process and of a server: its postmaster, its backends, and those that have ended."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = postmaster
        self._before = (0.0, 0.0)
        self._spent: dict[str, list[tuple[float, float]]] = {}

    def start(self) -> None:
        """Begin one step."""
        self._before = self._read()

    def stop(self, name: str) -> None:
        """Add what was spent since then to a step."""
        own, server = self._read()
        self._spent.setdefault(name, []).append((own - self._before[0], server - self._before[1]))

    def own_ms(self, name: str, runs: int) -> float:
        """Of this process for one of so many runs."""
        return sum(own for own, _ in self._spent[name]) * 1000 / runs

    def server_ms(self, name: str, runs: int) -> float:
        """Of the server for one of so many runs."""
        return sum(server for _, server in self._spent[name]) * 1000 / runs

    def middle_ms(self, name: str) -> float:
        """Of both for one step: the mean of the middle half. A backend that ends takes its time along for a moment."""
        spent = sorted(own + server for own, server in self._spent[name])
        cut = -(-len(spent) // 4)
        return mean(spent[cut:-cut]) * 1000

    def _read(self) -> tuple[float, float]:
        return time.process_time(), cpu_seconds(self._postmaster)
