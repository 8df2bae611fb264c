"""A server of a test's own leaves no socket behind, whenever it ends."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

import pytest
from tests.listener import stop_listening


@pytest.mark.parametrize("steps", range(8))
async def test_who_was_accepted_a_moment_ago_is_not_lost(steps: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(steps):
            await asyncio.sleep(0)
        await stop_listening(server)
        for _ in range(steps):
            await asyncio.sleep(0)
        gc.collect()
    assert [str(warning.message) for warning in warned] == []
