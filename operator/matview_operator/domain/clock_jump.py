"""What is believed of an instant that lies ahead of the clock: somebody has set it."""

from __future__ import annotations

from datetime import datetime, timedelta

BELIEVED_AHEAD = timedelta(hours=2)
"""As after an hour put back by hand, on two machines. Until the clock has caught up, no slot is due: each was run."""


def believed(instant: datetime, *, now: datetime) -> datetime:
    """The instant, or now if it is so far ahead that it was a wrong clock's: nobody waits years for the right one."""
    return now if instant - now > BELIEVED_AHEAD else instant
