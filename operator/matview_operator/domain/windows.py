"""When refreshes of a database may start: windows that open at instants of cron and last so many seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from matview_operator.api.policy import Schedule
from matview_operator.api.window import Window, WindowKind
from matview_operator.domain.cron import calendar
from matview_operator.domain.schedule import Timetable

SEARCHED = timedelta(days=366)
"""So far the next opening is looked for."""
_LOOKUPS = 2000
"""Of openings in one search, 0.2 s at most: windows are anybody's who may write a MatviewDatabase."""
_EVERY_HOUR = ["*"] * 4


class Outlook(NamedTuple):
    """Whether refreshes may start, and how long that stays so at least."""

    is_open: bool
    since: datetime
    """The instant that was asked for."""
    until: datetime
    """When it changes, or how far was looked."""


def outlook(windows: Sequence[Window], at: datetime) -> Outlook:
    """Whether a refresh may start at this instant, and until when that is known.

    It may in no Deny window and, where there are Allow windows, in one of them.
    """
    watched = [_Watched(window) for window in windows]
    if not _may_start(watched, at):
        return Outlook(is_open=False, since=at, until=_opening(watched, at))
    closings = [window.following(at) for window in watched if window.denies]
    ends = [end for window in watched if not window.denies and (end := window.end(at)) is not None]
    changes = min([*closings, max(ends, default=at + SEARCHED), at + SEARCHED])
    return Outlook(is_open=True, since=at, until=changes)


def never_open(windows: Sequence[Window], at: datetime) -> bool:
    """Whether they are known to leave no moment of the year after this instant open."""
    found = outlook(windows, at)
    return not found.is_open and found.until >= at + SEARCHED


class _Watched:
    """One window while time goes by: cron is asked anew only when the window has opened once more."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._table = Timetable(schedule=Schedule(cron=window.cron, time_zone=window.time_zone))
        self._lasts = timedelta(seconds=window.duration_seconds)
        self._openings: tuple[datetime, datetime] | None = None
        self.denies = window.kind is WindowKind.DENY
        self.lookups = 0

    @property
    def never_closes(self) -> bool:
        """Whether it opens in every hour, before it has closed: a walk through them all would be too long."""
        return self._window.cron.split()[1:] == _EVERY_HOUR and calendar(self._window.cron).longest_gap <= self._lasts

    def following(self, at: datetime) -> datetime:
        """When it opens next."""
        return self._around(at)[1]

    def end(self, at: datetime) -> datetime | None:
        """When the newest opening ends; None if it has ended."""
        end = self._around(at)[0] + self._lasts
        return end if end > at else None

    def _around(self, at: datetime) -> tuple[datetime, datetime]:
        if self._openings is None or not self._openings[0] <= at < self._openings[1]:
            self.lookups += 1
            self._openings = self._table.newest_at(at), self._table.next_after(at)
        return self._openings


def _may_start(watched: Sequence[_Watched], at: datetime) -> bool:
    if any(window.denies and window.end(at) is not None for window in watched):
        return False
    allows = [window for window in watched if not window.denies]
    return not allows or any(window.end(at) is not None for window in allows)


def _opening(watched: Sequence[_Watched], at: datetime) -> datetime:
    """When a refresh may start again; if that was not found, an instant until which none may."""
    horizon = at + SEARCHED
    denies = [window for window in watched if window.denies]
    allows = [window for window in watched if not window.denies]
    if any(window.never_closes for window in denies):
        return horizon
    while at < horizon and sum(window.lookups for window in watched) < _LOOKUPS:
        # From the end of one window to the end or the beginning of another, never minute by minute.
        denied = [end for window in denies if (end := window.end(at)) is not None]
        if denied:
            at = max(denied)
        elif not allows or any(window.end(at) is not None for window in allows):
            return at
        else:
            at = min(window.following(at) for window in allows)
    return min(at, horizon)
