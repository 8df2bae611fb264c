"""The operator's own HTTP server: /metrics, /healthz, /readyz."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST


class MetricsServer:
    """Serves until closed. It answers in the engine's own event loop: a stopped loop answers nothing at all."""

    def __init__(
        self, *, exposition: Callable[[], bytes], healthy: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        self._exposition = exposition
        self._healthy = healthy
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self, *, host: str, port: int) -> None:
        """Listen; raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._probe(self._healthy, "the engine's loops have stopped"))
        app.router.add_get("/readyz", self._probe(self._ready, "policies are not loaded yet"))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @staticmethod
    def _probe(holds: Callable[[], bool], otherwise: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def probe(_: web.Request) -> web.Response:
            return web.Response(text="ok\n") if holds() else web.Response(status=503, text=f"{otherwise}\n")

        return probe
