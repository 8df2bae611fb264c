"""Log lines as JSON objects: time, level, logger, message, action, and the fields that the line is about."""

from __future__ import annotations

import logging
import sys
import time

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from matview_operator.settings import Settings

_KOPF_ATTRIBUTES = ("k8s_ref", "k8s_skip", "settings")
"""What kopf hangs on its records for its own handlers; its settings are no JSON."""

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logs(settings: Settings) -> None:
    """Send everything to standard error in the chosen form; times are UTC, RFC 3339."""
    formatter: logging.Formatter
    if settings.log_format == "json":
        formatter = JsonFormatter(
            _FIELDS,
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_KOPF_ATTRIBUTES],
        )
    else:
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf says of each event of the watch that its handler succeeded.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
