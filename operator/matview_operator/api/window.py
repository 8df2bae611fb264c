"""The windows of a MatviewDatabase: when refreshes may start there, and when not."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from matview_operator.api.model import ClosedSet, Model
from matview_operator.api.scalar import Cron, TimeZone


class WindowKind(ClosedSet):
    """What a window is for."""

    ALLOW = "Allow"
    DENY = "Deny"


class Window(Model):
    """A stretch of time that comes again and again."""

    kind: WindowKind
    """Deny: no refresh starts while the window is open. Allow: refreshes start only while this or another Allow
    window is open, and no Deny window."""
    cron: Cron
    """When the window opens, in five cron fields: minute, hour, day of month, month, day of week; for example
    0 8 * * MON-FRI for eight o'clock on weekdays."""
    duration_seconds: Annotated[int, Field(ge=60, le=604_800)]
    """How long it stays open, in seconds that pass: where clocks are changed meanwhile, it closes an hour earlier or
    later by the clock. Windows may overlap."""
    time_zone: TimeZone = "Etc/UTC"
    """The time zone that cron's fields are meant in, by its name in the IANA database, as in Europe/Berlin."""


Windows = Annotated[
    tuple[Window, ...],
    Field(max_length=50, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]
