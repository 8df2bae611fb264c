"""A plugin of pytest: no password of the tests may stand in anything that is written where others read it.

Every password that tests and sandbox make begins with the same mark. It is searched for in what our own code logs in
this process (at DEBUG), in the log files of all servers and operators (the API server's audit log has each status and
event that was ever written; PostgreSQL's own logs are searched too), in what metrics say, in what commands write and in
their arguments. One find fails the suite, and the place is named.
"""

from __future__ import annotations

import base64
import logging
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sandbox.password import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK_SECONDS = 1.0
_CHUNK_BYTES = 1 << 24
_URL_OPTION = "--database-url"
"""A test gives a URL so to see that it works; the command's own help says who can read it."""
_USERS_OWN = frozenset({"bash", "dash", "sh", "grep", "psql"})
"""Programs that a test runs in a user's place: what he tells them is his affair."""


def disguises(secret: str) -> Iterator[bytes]:
    """Yield what a text is in plain, in hexadecimal, and in base64 wherever it begins there."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    for before in range(3):
        # Without the characters that depend on what stands before and after.
        first, end = (before * 8 + 5) // 6, (before + len(raw)) * 8 // 6
        yield base64.b64encode(b"\0" * before + raw)[first:end]


_PATTERN = re.compile(b"|".join(re.escape(each) for each in disguises(MARK)))
_found: dict[str, str] = {}


def looked_at(text: bytes, *, place: str) -> None:
    """Search a text, and remember where the mark stood in it."""
    match = _PATTERN.search(text)
    if match is not None:
        around = text[max(0, match.start() - 100) : match.start()]
        _found.setdefault(place, around.decode(errors="replace") + "<a password>")


class _Listener(logging.Handler):
    """Searches each record with all that hangs on it."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {record.__dict__}"
        if record.exc_info:
            text += logging.Formatter().formatException(record.exc_info)
        looked_at(text.encode(errors="replace"), place=f"log record of {record.name}, line {record.lineno}")


class _ArgumentWatch(threading.Thread):
    """Looks at the command lines of all that the tests start, which every user of a machine can read."""

    def __init__(self) -> None:
        super().__init__(name="canaries", daemon=True)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_LOOK_SECONDS):
            with suppress(psutil.Error):
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        arguments = process.cmdline()
                        own = process.name() in _USERS_OWN
                        if not own and not any(argument.startswith(_URL_OPTION) for argument in arguments):
                            looked_at(" ".join(arguments).encode(errors="replace"), place=f"arguments of {process}")


_watch = pytest.StashKey[_ArgumentWatch]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin to listen and to watch."""
    logging.getLogger().addHandler(_Listener(logging.DEBUG))
    # Else what nobody prints would not be made.
    logging.getLogger("matview_operator").setLevel(logging.DEBUG)
    watch = session.config.stash[_watch] = _ArgumentWatch()
    watch.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search all files that servers wrote, and fail the suite for a find anywhere."""
    session.config.stash[_watch].ended.set()
    factory = session.config._tmp_path_factory  # type: ignore[attr-defined] # no fixture is left to ask
    for log in sorted(factory.getbasetemp().rglob("*.log")):
        _search_file(log)
    if _found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the places."""
    for place, around in _found.items():
        terminalreporter.write_line(f"A PASSWORD GOT OUT: {place}: {around}", red=True)


def _search_file(path: Path) -> None:
    overlap = max(map(len, disguises(MARK)))
    with path.open("rb") as file:
        before = b""
        while chunk := file.read(_CHUNK_BYTES):
            looked_at(before + chunk, place=str(path))
            before = chunk[-overlap:]
