"""The API server as an operator reaches it through something that may freeze, or lose what is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from sandbox.controlplane import Cluster
from sandbox.operator_process import NAMESPACE, SERVICE_ACCOUNT
from tests.listener import stop_listening


@asynccontextmanager
async def relayed(cluster: Cluster, directory: Path) -> AsyncIterator[tuple[Relay, str]]:
    """A relay, and the path of a kubeconfig by which the operator's ServiceAccount goes through it."""
    path = cluster.service_account_kubeconfig(namespace=NAMESPACE, name=SERVICE_ACCOUNT, path=directory / "kubeconfig")
    document = yaml.safe_load(path.read_text())
    entry = document["clusters"][0]["cluster"]
    relay = Relay(entry["server"])
    async with relay.serving() as entry["server"]:
        path.write_text(yaml.safe_dump(document))
        yield relay, str(path)


class Relay:
    """What leads to the API server, until it is frozen: then nothing passes, and nobody is told."""

    def __init__(self, url: str) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._passes = asyncio.Event()
        self._passes.set()
        self._pumps: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yield its URL."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            await stop_listening(listener)
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def freeze(self) -> None:
        self._passes.clear()

    def renew(self) -> None:
        """Lose what is under way, and let new connections pass."""
        for pump in self._pumps:
            pump.cancel()
        self._passes.set()

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self._address)
        for source, target in ((client, to_server), (server, to_client)):
            task = asyncio.create_task(self._pump(source, target))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(65_536):
                await self._passes.wait()
                target.write(chunk)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()
