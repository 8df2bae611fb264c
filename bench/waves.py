"""What is due at one instant: how late each run starts, when the last one has ended, what it took of the CPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from bench.cpu import cpu_seconds

_LOOKED_EVERY_SECONDS = 0.5
_MINUTE = timedelta(minutes=1)
_AT_LEAST = timedelta(seconds=3)

Ended = tuple[float, float]
"""When a run started and ended, in seconds after it was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """One instant's runs."""

    due: datetime
    runs: Sequence[Ended]
    cpu: Mapping[str, float]
    """Seconds by whom they were spent, from just before the instant until all was done."""

    @property
    def rate(self) -> float:
        """Runs per second, from the instant that they were due to the end of the last one; 0 if none ran."""
        return len(self.runs) / max(end for _, end in self.runs) if self.runs else 0.0

    def lag(self, part: float) -> float:
        """How late the start is that this part of all starts is not later than; 0 is the first, 1 the last."""
        starts = sorted(start for start, _ in self.runs)
        return starts[round(part * (len(starts) - 1))]


def next_minute(*, odd: bool | None = None, every: int = 1) -> datetime:
    """The next full minute that is not too near; of the odd ones, the even ones, or the multiples of so many."""
    minute = (datetime.now(UTC) + _AT_LEAST).replace(second=0, microsecond=0) + _MINUTE
    while minute.minute % every or (odd is not None and minute.minute % 2 != odd):
        minute += _MINUTE
    return minute


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, from outside: nobody there tells us."""
    while not await holds():  # noqa: ASYNC110 - see above
        await asyncio.sleep(_LOOKED_EVERY_SECONDS)


async def observe(
    due: datetime,
    *,
    expected: int,
    seconds: float,
    ended: Callable[[datetime], Awaitable[Sequence[Ended]]],
    afterwards: Callable[[], Awaitable[object]],
    processes: Mapping[str, Sequence[int]],
) -> Wave:
    """Wait for an instant, then until so many runs have ended, or for so long; `afterwards` is waited for, too."""
    await asyncio.sleep((due - datetime.now(UTC)).total_seconds() - 1)
    before = _cpu(processes)
    await asyncio.sleep((due - datetime.now(UTC)).total_seconds() + _LOOKED_EVERY_SECONDS)
    runs: Sequence[Ended] = ()

    async def is_over() -> bool:
        nonlocal runs
        runs = await ended(due)
        return len(runs) >= expected or datetime.now(UTC) > due + timedelta(seconds=seconds)

    await until(is_over)
    await afterwards()
    after = _cpu(processes)
    return Wave(due=due, runs=runs, cpu={name: after[name] - before[name] for name in processes})


def lags(waves: Sequence[Wave]) -> dict[str, float | None]:
    """Start lags as columns: the median of the waves; None if there was one in which nothing ran."""
    parts = {"first s": 0.0, "p50 s": 0.5, "p99 s": 0.99, "last s": 1.0}
    if not all(wave.runs for wave in waves):
        return dict.fromkeys(parts)
    return {column: round(median(wave.lag(part) for wave in waves), 3) for column, part in parts.items()}


def cpu_of_a_run(waves: Sequence[Wave], name: str) -> float:
    """Milliseconds of one run: the median of the waves."""
    return round(median(wave.cpu[name] * 1000 / max(1, len(wave.runs)) for wave in waves), 2)


def _cpu(processes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(map(cpu_seconds, pids)) for name, pids in processes.items()}
