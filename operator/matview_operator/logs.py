"""Log lines as JSON objects: time, level, logger, message, action, and the fields that the line is about."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from matview_operator.settings import Settings

_KOPF_ATTRIBUTES = ("k8s_ref", "k8s_skip", "settings")
"""What kopf hangs on its records for its own handlers; its settings are no JSON."""

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"


_SHOWN_CHARACTERS = 200

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Traces:
    """Traces with where each exception came from, and of its text only the first line's beginning.

    The text of a driver's error goes on with DETAIL, which quotes rows, and may be as long as a hostile server likes.
    """

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - logging's name
        return "\n".join(_told(ei[1])) if ei[1] is not None else ""


class _JsonLines(_Traces, JsonFormatter):
    """For machines."""


class _TextLines(_Traces, logging.Formatter):
    """For people."""


def _told(error: BaseException) -> Iterator[str]:
    """The exceptions that led to this one, the oldest first, as Python prints them."""
    if error.__cause__ is not None:
        yield from _told(error.__cause__)
        yield "\nThe above exception was the direct cause of the following exception:\n"
    elif error.__context__ is not None and not error.__suppress_context__:
        yield from _told(error.__context__)
        yield "\nDuring handling of the above exception, another exception occurred:\n"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    line = str(error).partition("\n")[0][:_SHOWN_CHARACTERS]
    yield f"{type(error).__qualname__}: {line}"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _told(each)


def configure_logs(settings: Settings) -> None:
    """Send everything to standard error in the chosen form; times are UTC, RFC 3339."""
    formatter: logging.Formatter
    if settings.log_format == "json":
        formatter = _JsonLines(
            _FIELDS,
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_KOPF_ATTRIBUTES],
        )
    else:
        formatter = _TextLines("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf says of each event of the watch that its handler succeeded.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
