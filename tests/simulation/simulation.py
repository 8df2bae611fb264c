"""Runs histories, one after another, and says what became of each."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random

from tests.simulation.ground import Ground
from tests.simulation.history import History
from tests.simulation.loop import Busy, VirtualLoop

from matview_operator.engine import timers

_EXACT = 0.05
"""Histories whose timers look at the clock each second, as they do; the others have no use for it, and are quicker."""

_COLLECTED_EVERY = 10
"""Histories: what one leaves behind is half a megabyte, and takes a millisecond to be found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one seed's history came to."""

    seed: int
    trace: str
    """The same for the same seed and the same code."""
    violations: tuple[str, ...]
    seconds: float
    calls: int
    told: tuple[str, ...]


class _Errors(logging.Handler):
    """What the engine calls an error is one: it expects everything that happens here."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.ground: Ground | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.ground is not None and getattr(record, "action", "") != _LOST:
            error = record.exc_info[1] if record.exc_info else None
            self.ground.violate(f"the log says: {record.getMessage()} {error!r}")


_LOST = "leader_lost"
"""An error for whoever runs it; here processes are paused and cut off."""
_ERRORS = _Errors()
_FOR_GOOD = ExitStack()


def simulate(seed: int, *, tell: bool = False) -> Outcome:
    """Live through one seed's history. `tell`: keep every line of its trace."""
    told: list[str] | None = [] if tell else None
    loop = VirtualLoop(Random(seed))  # noqa: S311 - to be the same each time
    ground = Ground(loop, seed=seed, told=told)
    _ERRORS.ground = ground
    timers.LONGEST_SLEEP_SECONDS = 1.0 if ground.chance(_EXACT) else 10.0
    history = History(ground, seed=seed)

    async def live() -> None:
        try:
            await history.run()
        finally:
            _ERRORS.ground = None
            loop.close_tasks()

    try:
        loop.run_until_complete(live())
    except Busy as busy:
        ground.violate(str(busy))
        loop.close_tasks()
    finally:
        loop.close()
        if seed % _COLLECTED_EVERY == 0:
            gc.collect()
    return Outcome(
        seed=seed,
        trace=ground.trace,
        violations=(*ground.violations, *loop.faults),
        seconds=ground.now,
        calls=history.judge.calls,
        told=tuple(told or ()),
    )


@contextmanager
def watched() -> Iterator[None]:
    """Let only errors be logged, and us hear of them."""
    logger = logging.getLogger("matview_operator")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(_ERRORS)
    try:
        yield
    finally:
        logger.removeHandler(_ERRORS)
        logger.propagate = propagate
        logger.setLevel(level)


def prepare() -> None:
    """Once per process that does nothing else."""
    _FOR_GOOD.enter_context(watched())
    simulate(0)  # loads what is loaded at first use
    gc.collect()
    gc.freeze()
    gc.disable()
