"""Log lines as JSON objects: time, level, logger, message, action, and the fields that the line is about."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from matview_operator.settings import Settings

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logs(settings: Settings) -> None:
    """Send everything to standard error in the chosen form."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(
            JsonFormatter(_FIELDS, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf tells each event of the watch at DEBUG and the libraries below repeat it.
    for chatty in ("kopf.objects", "aiohttp.access", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.INFO, logging.getLevelNamesMapping()[settings.log_level]))
