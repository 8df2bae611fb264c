"""Log lines: JSON objects that a machine can search by field."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.logs import configure_logs
from matview_operator.settings import Settings

log = logging.getLogger("matview_operator.test")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Keep pytest's handlers out of `force`, which closes what it replaces, and put them back."""
    root, ours, kopf = map(logging.getLogger, ("", "matview_operator", "kopf.objects"))
    before = root.handlers[:], root.level, ours.level, kopf.level
    root.handlers[:] = []
    ours.setLevel(logging.NOTSET)
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])
    kopf.setLevel(before[3])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_with_all_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings())
    fields = {
        "action": "refresh",
        "outcome": RefreshOutcome.FAILED,
        "reason": RefreshReason.TIMEOUT,
        "detail": 'a "quoted"\nmessage, ünïcode',
        "view_name": "mv_daily_revenue_summary",
        "tenant_token": "GLOBAL",
        "view_key": 1694992915,
        "tenant_key": -2014051537,
        "correlation_id": "c1",
        "duration_ms": 12,
        "rows_inserted": None,
    }
    log.info("%s %s", "FAILED", "mv", extra=fields)
    (line,) = lines(capsys)
    assert line.pop("time")
    assert line == {"level": "INFO", "logger": "matview_operator.test", "message": "FAILED mv"} | fields


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_elsewhere")
def test_times_are_utc_and_sort_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings())
    record = log.makeRecord(log.name, logging.INFO, "", 0, "then", (), None)
    record.created, record.msecs = 1795348800.25, 250.0
    log.handle(record)
    assert lines(capsys)[0]["time"] == "2026-11-22T12:00:00.250Z"


def test_an_exception_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("unexpected error", extra={"action": "refresh_error"})
    (line,) = lines(capsys)
    assert line["level"] == "ERROR"
    assert line["exc_info"].startswith("Traceback")
    assert line["exc_info"].endswith("ValueError: two")
    assert "test_logs.py" in line["exc_info"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_t8_a_trace_holds_no_rows_and_has_an_end(log_format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format=log_format))
    refused = asyncpg.PostgresError.new({"S": "ERROR", "C": "23505", "M": "duplicate key", "D": "Key (card)=(4929)"})
    assert "4929" in str(refused)
    try:
        try:
            try:
                raise refused
            except asyncpg.PostgresError:
                raise KeyError("x" * 100_000)  # noqa: B904 - its context is what matters here
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError("one\ntwo"), refused]) from error
    except ExceptionGroup:
        log.exception("unexpected error", extra={"action": "refresh_error"})
    told = capsys.readouterr().err
    assert "4929" not in told
    assert len(told) < 5000
    for name in (
        "UniqueViolationError: duplicate key",
        "KeyError",
        "direct cause",
        "ExceptionGroup",
        "ValueError: one",
    ):
        assert name in told


def test_what_kopf_hangs_on_its_records_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings())
    logging.getLogger("kopf.activities.startup").info(
        "started", extra={"settings": object(), "k8s_ref": {"uid": "u"}, "k8s_skip": True}
    )
    logging.getLogger("kopf.objects").info("Handler 'policy_event' succeeded.")
    (line,) = lines(capsys)
    assert line["message"] == "started"
    assert set(line) == {"time", "level", "logger", "message"}


@pytest.mark.parametrize(("level", "said"), [("DEBUG", 3), ("INFO", 2), ("ERROR", 1)])
def test_the_level_is_the_least_that_is_logged(level: Any, said: int, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_level=level))
    log.debug("lock attempt")
    log.info("lock acquired")
    log.error("no")
    assert len(lines(capsys)) == said


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="text"))
    log.warning("the periodic list failed", extra={"action": "resync"})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING matview_operator\.test: the periodic list failed\n",
        capsys.readouterr().err,
    )


def test_configured_again_there_is_still_one_handler(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings())
    configure_logs(Settings(log_level="ERROR"))
    log.error("once")
    assert len(lines(capsys)) == 1
