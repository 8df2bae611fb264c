"""Whatever the network does at whatever stage of a run: it ends by its bound, as what it is, and the next one succeeds.

All cases at once, each with a view and a proxy of its own: the seconds of waiting pass together.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.database import APP_OWNER
from tests.leftovers import nothing_left_behind
from tests.listener import stop_listening
from tests.proxy import Fault, Proxy
from tests.refreshes import a_run, backends, ended, settled

from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshOutcome
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.connection import parse_url
from matview_operator.domain.run import request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database import Database
    from tests.databases import Databases

    from matview_operator.domain.result import RefreshResult

TIMEOUT = 4.0
BOUND = TIMEOUT + 5

CONNECTING = {
    "startup": "startup",
    "password": "password",
    "facts": "select pg_catalog.current_setting('server_version')",
}
WORKING = {
    "begin": "begin",
    "locks": "select pg_catalog.set_config('statement_timeout'",
    "lookup": "select c.oid",
    "refresh": "refresh",
    "claim": "with claim",
}
COMMITTING = {"commit": "commit"}
STAGES = CONNECTING | WORKING | COMMITTING

FAULTS: dict[str, dict[str, Any]] = {
    "silence": {"loses": "request", "silent": True},
    "silence of the whole network": {"loses": "request", "silent": True, "network_too": True},
    "silence instead of the answer": {"loses": "answer", "silent": True},
    "silence of the whole network instead of the answer": {"loses": "answer", "silent": True, "network_too": True},
    "half of the answer": {"loses": "request", "says": lambda: [b"C\0\0\0\x0dSEL"]},
    "a byte a second": {"loses": "answer", "slow": True},
    "end": {"loses": "request"},
    "end instead of the answer": {"loses": "answer"},
    "reset": {"loses": "request", "reset": True},
    "reset instead of the answer": {"loses": "answer", "reset": True},
    "reset of the whole network": {"loses": "answer", "reset": True, "network_too": True},
}

End = tuple[RefreshOutcome, "Reason | None"]
FAILED, INTERRUPTED = RefreshOutcome.FAILED, RefreshOutcome.INTERRUPTED
UNKNOWN: End = RefreshOutcome.UNKNOWN, Reason.COMMIT_UNKNOWN
RECOVERED: End = RefreshOutcome.SUCCESS, Reason.RECOVERED


def expected(stage: str, fault: str) -> set[End]:
    broken = "end" in fault or "reset" in fault
    if stage in CONNECTING:
        return {(FAILED, Reason.CONNECTION_FAILED)}
    if stage in WORKING:
        return {(INTERRUPTED, Reason.CONNECTION_LOST) if broken else (FAILED, Reason.TIMEOUT)}
    if "whole network" in fault:
        return {UNKNOWN}
    if FAULTS[fault]["loses"] == "answer":
        return {RECOVERED}
    # The server never saw COMMIT, and its timeouts have ended the transaction meanwhile.
    return {(INTERRUPTED, Reason.CONNECTION_LOST if broken else Reason.TIMEOUT)}


async def attempt(
    database: Database, number: int, via: Proxy | None, *, pool: Pool | None = None, **fields: Any
) -> tuple[RefreshResult, float]:
    """The same piece of work, as its number says, each time."""
    run = a_run(slot_id=request_id(f"{number}"), **fields)
    run = replace(run, view=replace(run.view, name=f"mv{number}"))
    started = time.monotonic()
    result = await Refresher(pool).refresh(target=parse_url(database.url(via=via)), run=run)
    return result, time.monotonic() - started


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_every_stage_survives_every_fault_of_the_network(database: Database) -> None:
    cases = list(itertools.product(STAGES, FAULTS))
    for number in range(len(cases)):
        await database.make_view(f"mv{number}")
        await database.execute_as(APP_OWNER, f"insert into mv{number}_base values (4, 'b', 40)")
    async with nothing_left_behind(), AsyncExitStack() as stack:
        faults = [Fault(statement=STAGES[stage], **FAULTS[fault]) for stage, fault in cases]
        proxies = [await stack.enter_async_context(Proxy(database.server.port, fault)) for fault in faults]
        ends = await asyncio.gather(
            *(attempt(database, number, proxy, timeout_seconds=TIMEOUT) for number, proxy in enumerate(proxies))
        )
        assert [case for case, fault in zip(cases, faults, strict=True) if not fault.happened.is_set()] == []
    told = {case: ended(result) for case, (result, _) in zip(cases, ends, strict=True)}
    assert {case: end for case, end in told.items() if end not in expected(*case)} == {}
    assert {case: seconds for case, (_, seconds) in zip(cases, ends, strict=True) if seconds > BOUND} == {}
    # A failed run changed nothing, a successful one did, and of the unknown ones the next attempt knows.
    await settled(lambda: backends(database), 0)
    rows = [await database.value_as(APP_OWNER, f"select count(*) from mv{number}") for number in range(len(cases))]
    wrong = {
        case: rows[number]
        for number, case in enumerate(cases)
        if told[case] != UNKNOWN and (rows[number] == 4) != (told[case] == RECOVERED)
    }
    assert wrong == {}
    for number, case in enumerate(cases):
        again, _ = await attempt(database, number, None)
        assert again.outcome is RefreshOutcome.SUCCESS, (case, again)
        assert (again.error_type is Reason.RECOVERED) == (rows[number] == 4), case
        assert await database.value_as(APP_OWNER, f"select count(*) from mv{number}") == 4


@pytest.mark.parametrize("says", [b"", b"S", b"S\x16\x03", b"S" + b"x" * 1000, b"E" * 1_000_000])
async def test_a_peer_that_is_silent_in_tls_holds_no_run(says: bytes) -> None:
    async with nothing_left_behind(), Speaker(says) as port:
        target = replace(parse_url(f"postgresql://u:p@127.0.0.1:{port}/d"), ssl_mode=SslMode.REQUIRE)
        started = time.monotonic()
        result = await Refresher().refresh(target=target, run=a_run(timeout_seconds=1))
        assert time.monotonic() - started < 1 + 5
    assert result.outcome is FAILED
    assert result.error_type in (Reason.CONNECTION_FAILED, Reason.TLS_FAILED)


class Speaker:
    """Accepts connections, says the same to each, and then nothing more."""

    def __init__(self, says: bytes) -> None:
        self._says = says

    async def __aenter__(self) -> int:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        await stop_listening(self._listener)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1000)
            writer.write(self._says)
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()


async def test_a_thousand_broken_runs_leave_nothing_behind(start_server: Callable[..., Databases]) -> None:
    """At every stage, half of them against silence; many at once, on a server with room for them."""
    databases = start_server(settings={"max_connections": 250, "log_statement": "none"})
    kinds: list[dict[str, Any]] = [
        {"loses": "request", "held": True},
        {"loses": "request"},
        {"loses": "answer", "held": True},
        {"loses": "answer", "reset": True},
    ]
    cases = list(itertools.product(STAGES.values(), kinds))
    views, rounds = 100, 10
    async with databases.lend("ledger") as database:
        for number in range(views):
            await database.make_view(f"mv{number}")
        async with nothing_left_behind(), AsyncExitStack() as stack, Pool() as pool:
            faults = [Fault(statement=statement, always=True, **kind) for statement, kind in cases]
            proxies = [await stack.enter_async_context(Proxy(database.server.port, fault)) for fault in faults]

            async def work(number: int) -> list[RefreshResult]:
                ways = [proxies[(number + n) % len(proxies)] for n in range(rounds)]
                return [(await attempt(database, number, way, timeout_seconds=2, pool=pool))[0] for way in ways]

            ends = [result for results in await asyncio.gather(*map(work, range(views))) for result in results]
        await settled(lambda: backends(database), 0)
    assert len(ends) == 1000
    told = Counter(ended(result) for result in ends)
    assert told.keys() >= {
        (FAILED, Reason.CONNECTION_FAILED),
        (FAILED, Reason.TIMEOUT),
        (INTERRUPTED, Reason.CONNECTION_LOST),
    }
    assert sum(result.error_type is Reason.INTERNAL_ERROR for result in ends) == 0
