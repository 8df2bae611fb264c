"""The address that is connected to is the address that was judged; nothing is sent to another."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.listener import stop_listening
from tests.refreshes import a_run

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import parse_url
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.database import Database

pytestmark = pytest.mark.parametrize("databases", [18], indirect=True)

SAME_HOST = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0.0.0.0",  # noqa: S104 - nobody listens here
    "::1",
    "::ffff:127.0.0.1",
]
"""All of them lead to the operator's own host where the system's resolver is glibc's."""


@dataclass
class Listener:
    """Somebody at the operator's own host."""

    port: int
    connections: list[str] = field(default_factory=list)


@asynccontextmanager
async def listening(address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Listener]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        found.connections.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(accept, address, port)
    found = Listener(port=server.sockets[0].getsockname()[1])
    yield found
    await stop_listening(server)


@pytest.mark.parametrize("host", SAME_HOST)
@pytest.mark.parametrize("mode", [SslMode.DISABLE, SslMode.REQUIRE])
async def test_no_way_of_writing_the_operators_own_host_leads_there(
    database: Database, host: str, mode: SslMode
) -> None:
    async with listening() as listener:
        target = replace(parse_url(database.url()), host=host, port=listener.port, ssl_mode=mode)
        guarded = replace(target, destinations=Destinations())
        result = await Refresher().refresh(target=guarded, run=a_run())
        with pytest.raises(Problem) as refused:
            await Inspector().inspect(target=guarded, checks=[], allow_superuser=False)
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, RefreshReason.HOST_NOT_ALLOWED)
    assert refused.value.reason is RefreshReason.HOST_NOT_ALLOWED
    assert result.error_message
    assert "MATVIEW_ALLOWED_HOSTS" in result.error_message
    assert host not in result.error_message
    assert listener.connections == []


@pytest.mark.parametrize("allowed", ["127.0.0.0/8", "127.0.0.1", "localhost"])
async def test_what_is_allowed_is_connected_to(database: Database, allowed: str) -> None:
    view = await database.make_view()
    target = replace(parse_url(database.url()), host="localhost", destinations=Destinations.read([allowed]))
    result = await Refresher().refresh(target=target, run=a_run(view))
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message


async def test_a_name_that_leads_elsewhere_the_next_time_leads_nowhere(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is harmless, the one after it is the address that is really meant."""
    asked: list[str] = []

    def answer(host: str, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return lookup(host, port, *arguments, **options)
        asked.append(host)
        address = "127.0.0.2" if len(asked) % 2 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))]

    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    async with listening() as listener:
        target = replace(
            parse_url(database.url()),
            host="rebinding.example",
            port=listener.port,
            destinations=Destinations.read(["127.0.0.2"]),
        )
        ends = [(await Refresher().refresh(target=target, run=a_run(timeout_seconds=1))).error_type for _ in range(2)]
    assert ends == [RefreshReason.CONNECTION_FAILED, RefreshReason.HOST_NOT_ALLOWED]
    assert len(asked) == 2
    assert listener.connections == []


async def test_of_a_names_addresses_only_the_permitted_are_tried(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = await database.make_view()
    addresses = ["127.0.0.2", "127.0.0.1"]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    target = parse_url(database.url())
    async with listening("127.0.0.2", target.port) as listener:
        guarded = replace(target, host="both.example", destinations=Destinations.read(["127.0.0.1"]))
        result = await Refresher().refresh(target=guarded, run=a_run(view))
    assert result.outcome is RefreshOutcome.SUCCESS, result.error_message
    assert listener.connections == []
