"""How long a run waits before it tries again."""

from __future__ import annotations

from random import Random

LOCK_LADDER_SECONDS = (1.0, 2.0, 5.0, 10.0)


def lock_held_pause(tries: int, *, random: Random) -> float:
    """Seconds until a held lock is tried again: 1, 2, 5, then 10, each less up to a half, so that rivals part."""
    return LOCK_LADDER_SECONDS[min(tries, len(LOCK_LADDER_SECONDS)) - 1] * random.uniform(0.5, 1.0)
