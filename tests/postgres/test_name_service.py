"""A name service that hangs, or names an address where nobody answers, holds up nobody else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.refreshes import GatedView, a_run, backends, ended, settled

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.wire.addresses import THREADS
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.connection import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.database import Database

    from matview_operator.domain.result import RefreshResult

TIMEOUT = 1.5
BOUND = TIMEOUT + 5

_EXITS = """
import socket, sys, time
from matview_operator import refresh_single
socket.getaddrinfo = lambda *args, **options: time.sleep(3600)
result = refresh_single("mv", database_url="postgresql://u:p@hangs.test/d", timeout_seconds=0.5)
print(result.outcome, result.error_message)
"""


class Names:
    """The system's lookup, in which some names hang until `answer` and some have the addresses that a test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.answer = threading.Event()
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    async def were_asked(self, times: int) -> None:
        async def asked() -> int:
            return len(self.asked)

        await settled(asked, times)

    def _look_up(self, host: str, *rest: Any, **options: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith("hangs.test"):
            self.answer.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        known = self.known.get(host)
        if known is None:
            return self._system(host, *rest, **options)
        return [entry for address in known for entry in self._system(address, *rest, **options)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names(monkeypatch)
    yield names
    names.answer.set()


def lookups() -> int:
    return sum(thread.name == "address lookup" for thread in threading.enumerate())


async def refresh_at(host: str, database: Database, **fields: Any) -> RefreshResult:
    target = parse_url(database.url().replace("127.0.0.1", host) + "?sslmode=disable")
    return await Refresher().refresh(target=target, run=a_run(**fields))


@contextmanager
def dropping_every_packet(address: str, port: int) -> Iterator[None]:
    """Listen with a full queue, so that the system drops each further request to connect without a word."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_name_service_that_hangs_holds_no_run_and_nobody_elses(database: Database, names: Names) -> None:
    """More names hang than the event loop has threads of its own; and one of them for many."""
    await database.make_view()
    hosts = [f"{number}.hangs.test" for number in range(40)] + ["same.hangs.test"] * 60

    async def hang(host: str) -> tuple[RefreshResult, float]:
        started = time.monotonic()
        return await refresh_at(host, database, timeout_seconds=TIMEOUT), time.monotonic() - started

    hanging = [asyncio.create_task(hang(host)) for host in hosts]
    await names.were_asked(41)
    assert (await refresh_at("localhost", database)).outcome is RefreshOutcome.SUCCESS
    await asyncio.get_running_loop().getaddrinfo("localhost", None)
    assert lookups() == 41
    ends = await asyncio.gather(*hanging)
    assert {ended(result) for result, _ in ends} == {(RefreshOutcome.FAILED, Reason.CONNECTION_FAILED)}
    assert "name service" in str(ends[0][0].error_message)
    assert max(seconds for _, seconds in ends) < BOUND
    names.answer.set()

    async def left() -> int:
        return lookups()

    await settled(left, 0)


async def test_threads_that_look_up_names_are_bounded_and_the_next_name_has_its_turn(names: Names) -> None:
    target = "postgresql://u:p@{}.hangs.test/d"
    runs = [
        Refresher().refresh(target=parse_url(target.format(number)), run=a_run(timeout_seconds=TIMEOUT))
        for number in range(THREADS + 20)
    ]
    ends = asyncio.gather(*runs)
    await names.were_asked(THREADS)
    assert lookups() == THREADS
    assert {result.error_type for result in await ends} == {Reason.CONNECTION_FAILED}
    names.answer.set()
    await names.were_asked(THREADS + 20)


def test_a_process_ends_though_a_name_service_hangs() -> None:
    child = subprocess.run([sys.executable, "-c", _EXITS], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.startswith("FAILED The name service did not say in time")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address only")
@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_an_address_where_nobody_answers_leaves_the_others_their_share(database: Database, names: Names) -> None:
    """The first refuses, the second drops every packet, at the third is the server."""
    await database.make_view()
    names.known["db.test"] = ["127.0.0.4", "127.0.0.3", "127.0.0.1"]
    with dropping_every_packet("127.0.0.3", database.server.port):
        result = await refresh_at("db.test", database, timeout_seconds=6)
    assert result.outcome is RefreshOutcome.SUCCESS


@pytest.mark.skipif(sys.platform != "linux", reason="other systems answer when their queue is full")
async def test_a_host_that_drops_every_packet_holds_no_run() -> None:
    with dropping_every_packet("127.0.0.3", 5432):
        started = time.monotonic()
        target = parse_url("postgresql://u:p@127.0.0.3/d")
        result = await Refresher().refresh(target=target, run=a_run(timeout_seconds=TIMEOUT))
    assert ended(result) == (RefreshOutcome.FAILED, Reason.CONNECTION_FAILED)
    assert time.monotonic() - started < BOUND


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_each_attempt_asks_anew_where_the_host_is(database: Database, names: Names) -> None:
    """After a failover the name says another address."""
    await database.make_view()
    names.known["db.test"] = ["127.0.0.4"]
    assert (await refresh_at("db.test", database, timeout_seconds=TIMEOUT)).error_type is Reason.CONNECTION_FAILED
    names.known["db.test"] = ["127.0.0.1"]
    assert (await refresh_at("db.test", database)).outcome is RefreshOutcome.SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_cancel_request_needs_no_name_service(database: Database, names: Names) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    names.known["db.test"] = ["127.0.0.1"]
    running = asyncio.create_task(refresh_at("db.test", database, view=gated.view))
    await gated.reached()
    asked = len(names.asked)
    running.cancel()
    await asyncio.wait([running])
    await settled(lambda: backends(database), 0, seconds=1)
    assert len(names.asked) == asked


async def test_a_name_that_no_host_can_have_is_a_failed_connection() -> None:
    target = parse_url(f"postgresql://u:p@{'x' * 70}.test/d")
    result = await Refresher().refresh(target=target, run=a_run(timeout_seconds=TIMEOUT))
    assert ended(result) == (RefreshOutcome.FAILED, Reason.CONNECTION_FAILED)
