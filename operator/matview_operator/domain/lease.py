"""A Lease of the API server: who holds it, and from when on another may take it.

Seconds here are of one process's own clock, which nobody sets. No two processes' clocks are ever compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """How a Lease is kept; see docs/adr/0006 for why no two can hold it at once."""

    duration_seconds: int = 10
    """Others wait so long after they first saw the newest renewal."""
    deadline_seconds: float = 7
    """So long after it sent its last renewal that was answered, the holder counts as such. The difference is the
    margin: for what it has just begun, for stopping it, and for clocks of unequal speed."""
    renew_seconds: float = 2
    """From one renewal to the next."""
    retry_seconds: float = 1
    """After a renewal that failed, and between two looks of who stands by."""
    request_seconds: float = 2
    """For the requests of one attempt together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A Lease as it is stored, or is to be. Its times are for people: nothing is decided by them."""

    holder: str | None
    duration_seconds: int
    acquired_at: datetime | None = None
    renewed_at: datetime | None = None
    transitions: int = 0
    version: str | None = None
    """The stored object's resourceVersion, which a write has to name; None: it does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One version of a Lease, and since when this process knows it."""

    lease: Lease
    since: float


def sighted(former: Sighting | None, lease: Lease | None, *, now: float) -> Sighting | None:
    """Add what was read to what is known; `now` is when the answer was here, so not before it was written.

    A Lease that somebody deleted counts as held still: its holder has not been told.
    """
    if lease is None:
        if former is None or former.lease.version is None:
            return former
        lease = replace(former.lease, version=None)
    if former is not None and former.lease.version == lease.version:
        return former
    return Sighting(lease=lease, since=now)


def is_free(sighting: Sighting | None, *, me: str, now: float, timing: LeaseTiming) -> bool:
    """Whether this process may take the Lease: nobody holds it, itself does, or the holder has let it expire."""
    if sighting is None or not sighting.lease.holder or sighting.lease.holder == me:
        return True
    return now - sighting.since >= max(timing.duration_seconds, sighting.lease.duration_seconds)


def claimed(former: Lease | None, *, me: str, at: datetime, timing: LeaseTiming) -> Lease:
    """The Lease to write in order to take it, or to renew it."""
    if former is not None and former.holder == me:
        return replace(former, renewed_at=at, duration_seconds=timing.duration_seconds)
    return Lease(
        holder=me,
        duration_seconds=timing.duration_seconds,
        acquired_at=at,
        renewed_at=at,
        transitions=0 if former is None else former.transitions + 1,
        version=None if former is None else former.version,
    )
