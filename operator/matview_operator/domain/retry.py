"""How long a run waits before it tries again."""

from __future__ import annotations

from random import Random

LOCK_LADDER_SECONDS = (1.0, 2.0, 5.0, 10.0)
LOOKING_SECONDS = 10.0
"""How long a blocking refresh steps back from a view in use, at most, before it queues once."""
_FIRST_LOOK_SECONDS = 0.2
_LONGEST_LOOK_SECONDS = 2.0
_LOOK_GROWTH = 1.5


def lock_held_pause(tries: int, *, random: Random) -> float:
    """Seconds until a held lock is tried again: 1, 2, 5, then 10, each less up to a half, so that rivals part."""
    return LOCK_LADDER_SECONDS[min(tries, len(LOCK_LADDER_SECONDS)) - 1] * random.uniform(0.5, 1.0)


def busy_pause(looks: int, *, waited: float, timeout_seconds: float, random: Random) -> float | None:
    """Seconds until a view in use is looked at once more; None when it is time to queue for it.

    Growing from 0.2 to 2 s, each less up to a half: a reader is gone soon, or stays. All of them take no more than ten
    seconds and a quarter of the run's time: whoever looks holds one of the database's places.
    """
    pause = min(_LONGEST_LOOK_SECONDS, _FIRST_LOOK_SECONDS * _LOOK_GROWTH**looks) * random.uniform(0.5, 1.0)
    return pause if waited + pause <= min(LOOKING_SECONDS, timeout_seconds / 4) else None
