"""A server that says too much, or nothing that makes sense: bounded memory, bounded time, a short message."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tests.database import APP_OWNER, MV_OPERATOR
from tests.proxy import Fault, Proxy
from tests.refreshes import a_run, failure, ledger_rows, public, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.connection import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.database import Database

TIMEOUT = 2.5
MEGABYTE = b"x" * (1 << 20)
READY = b"Z\0\0\0\x05I"
MEMORY_MEGABYTES = 100
"""For all attacks together, which would take more than a gigabyte each."""

_MEASURED = """
import asyncio, json, sys, time
import psutil
from tests.refreshes import a_run, public
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.domain.connection import parse_url

async def attack(number, url):
    started = time.monotonic()
    result = await Refresher().refresh(target=parse_url(url), run=a_run(public(f"mv{number}"), timeout_seconds=TIMEOUT))
    return {
        "outcome": result.outcome, "reason": result.error_type, "message": result.error_message or "",
        "seconds": time.monotonic() - started,
    }

async def watch():
    while True:
        seen.append(psutil.Process().memory_info().rss >> 20)
        await asyncio.sleep(0.02)

async def main():
    await attack(0, honest)
    watching = asyncio.create_task(watch())
    ends = await asyncio.gather(*map(attack, range(len(hostile)), hostile))
    watching.cancel()
    print(json.dumps({"ends": ends, "megabytes": max(seen) - seen[0]}))

timeout, honest, *hostile = sys.stdin.read().split()
TIMEOUT = float(timeout)
seen = []
asyncio.run(main())
"""


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + (len(payload) + 4).to_bytes(4, "big") + payload


def announced(kind: bytes, length: int, start: bytes = b"") -> Iterable[bytes]:
    """A message of such a length; what it holds comes megabyte by megabyte."""
    yield kind + length.to_bytes(4, "big") + start
    left = length - 4 - len(start)
    while left > 0:
        yield MEGABYTE[:left]
        left -= len(MEGABYTE)


def huge_error(length: int = 1 << 30) -> Iterable[bytes]:
    yield from announced(b"E", length, b"SERROR\0VERROR\0C22012\0M")
    yield READY


def endless(*frames: bytes) -> Iterable[bytes]:
    return itertools.repeat(b"".join(frames) * 1000)


def settings() -> Iterable[bytes]:
    for number in itertools.count():
        yield b"".join(frame(b"S", b"name%d.%d\0value\0" % (number, n)) for n in range(1000))


ITERATIONS = frame(b"R", b"\0\0\0\x0br=nonce,s=c2FsdA==,i=2000000000")
DROPPED = {"ConnectionLost", "ConnectionFailed", "Timeout"}
"""The last on a machine that takes longer for so many megabytes than a run has."""
AT = {
    "first": "select pg_catalog.current_setting('server_version')",
    "begin": "begin",
    "refresh": "refresh",
    "claim": "with claim",
    "commit": "commit",
    "password": "password",
}
ATTACKS: dict[str, tuple[str, Any, set[str]]] = {
    "an error of 1 GiB": ("refresh", huge_error, {"ViewQueryFailed", "Timeout"}),
    "an error of 64 MiB at once": ("first", lambda: huge_error(1 << 26), {"ViewQueryFailed", "ConnectionFailed"}),
    "an error of 1 GiB before we are in": ("password", huge_error, DROPPED),
    "a row of 1 GiB": ("refresh", lambda: announced(b"D", 1 << 30), DROPPED),
    "a row of 1 GiB for the first question": ("first", lambda: announced(b"D", 1 << 30), DROPPED),
    "a row description of 1 GiB": ("begin", lambda: announced(b"T", 1 << 30), DROPPED),
    "a length beyond all": ("claim", lambda: announced(b"C", (1 << 32) - 1), DROPPED),
    "a length below all": ("refresh", lambda: [b"D\0\0\0\0"], DROPPED),
    "endless rows": ("refresh", lambda: endless(frame(b"D", b"\0\0")), DROPPED),
    "endless large rows": ("first", lambda: endless(frame(b"D", b"\0\x01" + b"x" * 900)), DROPPED),
    "endless notices": ("refresh", lambda: endless(frame(b"N", b"SNOTICE\0Mhello\0\0")), DROPPED),
    "a notice of 1 GiB": ("claim", lambda: announced(b"N", 1 << 30), DROPPED),
    "endless notifications": ("claim", lambda: endless(frame(b"A", b"\0\0\0\x01channel\0text\0")), DROPPED),
    "endless settings": ("refresh", settings, DROPPED),
    "endless settings before we are in": ("password", settings, DROPPED),
    "endless notices before we are in": ("password", lambda: endless(frame(b"N", b"SNOTICE\0\0")), DROPPED),
    "rows at COMMIT": ("commit", lambda: endless(frame(b"D", b"x" * 900)), DROPPED),
    "garbage": ("refresh", lambda: endless(bytes(range(256))), DROPPED | {"InternalError"}),
    "a web page": ("first", lambda: [b"HTTP/1.1 400 Bad Request\r\n\r\n"], DROPPED),
    "two milliards of SCRAM iterations": ("password", lambda: [ITERATIONS], {"AuthenticationFailed"}),
    "never an answer": ("refresh", list, {"Timeout"}),
}


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_whatever_a_server_says_memory_time_and_message_are_bounded(database: Database) -> None:
    """All attacks at once, in a process of their own whose memory is measured."""
    for number in range(len(ATTACKS)):
        await database.make_view(f"mv{number}")
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                Proxy(database.server.port, Fault(statement=AT[stage], loses="request", says=says))
            )
            for stage, says, _ in ATTACKS.values()
        ]
        urls = [database.url(via=proxy) for proxy in proxies]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MEASURED,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await child.communicate("\n".join([str(TIMEOUT), database.url(), *urls]).encode())
    assert child.returncode == 0, errors.decode()
    told = json.loads(said)
    assert told["megabytes"] < MEMORY_MEGABYTES
    ends = dict(zip(ATTACKS, told["ends"], strict=True))
    assert {name for name, end in ends.items() if end["outcome"] == "SUCCESS"} == set()
    surprises = {name: end for name, end in ends.items() if end["reason"] not in ATTACKS[name][2]}
    assert not surprises
    assert {name: len(end["message"]) for name, end in ends.items() if len(end["message"].encode()) > 1024} == {}
    assert {name: end["seconds"] for name, end in ends.items() if end["seconds"] > TIMEOUT + 5} == {}
    assert database.passwords[MV_OPERATOR] not in said.decode() + errors.decode()


async def test_a_views_function_that_raises_megabytes_fails_its_run_alone(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(
        APP_OWNER,
        """
        create function shout() returns int language plpgsql volatile as
          $$ begin raise division_by_zero using message = repeat('é', 2000000); end $$;
        create materialized view loud as select public.shout() as id with no data;
        """,
    )
    target = parse_url(database.url())
    result = await Refresher(verbose_errors=True).refresh(target=target, run=a_run(public("loud")))
    failure(result, Reason.VIEW_QUERY_FAILED, "ééé")
    assert result.error_message is not None
    assert len(result.error_message.encode()) <= 1024
    assert await ledger_rows(database) == [("FAILED", "ViewQueryFailed", 1, False)]
    assert (await refresh(database, view)).outcome is RefreshOutcome.SUCCESS


async def test_a_views_function_that_raises_notices_without_end_is_not_heard(database: Database) -> None:
    await database.execute_as(
        APP_OWNER,
        """
        create function chatter() returns int language plpgsql volatile as $$
          begin for n in 1..20000 loop raise notice '%', repeat('x', 2000); end loop; return 1; end $$;
        set client_min_messages = error;
        create materialized view mv as select public.chatter() as id;
        """,
    )
    assert (await refresh(database)).outcome is RefreshOutcome.SUCCESS


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_server_that_answers_one_byte_a_second_holds_no_run(database: Database) -> None:
    await database.make_view()
    stages = ["startup", "password", "begin", "refresh", "commit"]
    async with AsyncExitStack() as stack:
        faults = [Fault(statement=stage, loses="answer", slow=True) for stage in stages]
        proxies = [await stack.enter_async_context(Proxy(database.server.port, fault)) for fault in faults]

        async def run(proxy: Proxy) -> tuple[RefreshOutcome, float]:
            started = time.monotonic()
            result = await refresh(database, via=proxy, timeout_seconds=1.5)
            return result.outcome, time.monotonic() - started

        ends = await asyncio.gather(*map(run, proxies))
    assert {stage: end[1] for stage, end in zip(stages, ends, strict=True) if end[1] > 1.5 + 5} == {}
