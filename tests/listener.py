"""The end of a server in the test's own loop."""

from __future__ import annotations

import asyncio

_STEPS = 5
"""Of the loop, from an accepted connection to its task's first one; three in Python 3.11."""


async def stop_listening(server: asyncio.Server) -> None:
    """Accept nobody any more. Whoever was accepted a moment ago has its task when this returns, to be cancelled.

    asyncio loses the socket of a connection whose server is closed between the two, and the warning of it fails
    whatever test comes next.
    """
    loop = asyncio.get_running_loop()
    for each in server.sockets:
        loop.remove_reader(each.fileno())
    for _ in range(_STEPS):
        await asyncio.sleep(0)
    server.close()
