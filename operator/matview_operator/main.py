"""The composition root: which adapter stands at which port, and the order of start and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import uuid
from collections.abc import Coroutine, Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from random import Random
from typing import Any

import kopf
from kubernetes.aio import client

from matview_operator.adapters.kube.client import api_addresses, load_configuration
from matview_operator.adapters.kube.events import KubeEvents
from matview_operator.adapters.kube.handlers import NoMemories, configure, watch
from matview_operator.adapters.kube.lease import KubeLease, own_namespace
from matview_operator.adapters.kube.resync import Resync
from matview_operator.adapters.kube.secrets import SecretReader
from matview_operator.adapters.kube.status_writer import KubeStatusWriter
from matview_operator.adapters.metrics import PolicyReading, PrometheusMetrics, since
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.retention import LedgerPruner
from matview_operator.adapters.server import MetricsServer
from matview_operator.domain.conditions import READY, statement_of
from matview_operator.domain.destination import Destinations
from matview_operator.domain.status import oldest_verified
from matview_operator.engine.fence import FencedEvents, FencedExecutor, FencedWriter
from matview_operator.engine.intake import Intake
from matview_operator.engine.leadership import Leadership, LeadershipLost
from matview_operator.engine.ports import SystemClock
from matview_operator.engine.registry import Policy
from matview_operator.engine.supervisor import Supervisor
from matview_operator.settings import Settings

log = logging.getLogger(__name__)

_EVENT_SECONDS = 3.0
_GC_THRESHOLDS = (5000, 20, 10)
"""By the default ones a twentieth of our time goes to the collector while a thousand views are due; these save 3 % of
our CPU time."""


def run_operator(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; raises LeadershipLost when another process may work instead."""
    asyncio.run(_Operator(settings).run())


class _Operator:
    """One process's parts, made when the event loop runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._loaded = False
        self._background: list[asyncio.Task[None]] = []
        self._stands_by = False
        self._lost = False

    async def run(self) -> None:
        """Serve probes, stand by where that is wished, and then work."""
        configuration = await load_configuration()
        async with client.ApiClient(configuration) as api:
            self._build(api, api_server=await api_addresses(configuration))
            await self._server.start(host=self._settings.host, port=self._settings.port)
            try:
                if self._leadership is None:
                    await self._work(configuration, stopping=asyncio.Event())
                else:
                    await self._lead(self._leadership, configuration)
            finally:
                await self._server.close()

    async def _lead(self, leadership: Leadership, configuration: client.Configuration) -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        self._stands_by = True
        if not await _before(stopping, leadership.acquire()):
            await leadership.release()
            return
        self._stands_by = False
        # Older than kopf, which would cancel it on its way out: the Lease is renewed until the last run has ended.
        keeping = asyncio.create_task(self._keep(leadership, stopping))
        try:
            await self._work(configuration, stopping=stopping)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
        if self._lost:
            raise LeadershipLost("The Lease is another's now, or was not renewed in time; start anew to stand by.")

    async def _keep(self, leadership: Leadership, stopping: asyncio.Event) -> None:
        self._lost = await leadership.keep()
        if self._lost:
            # At once, and not when kopf has stopped: until another may work, nothing of ours is to run anywhere.
            try:
                if self._supervisor.started:
                    await self._supervisor.stop(grace_seconds=0, flush_seconds=0)
            finally:
                stopping.set()

    async def _work(self, configuration: client.Configuration, *, stopping: asyncio.Event) -> None:
        """Load what exists, then watch, as after any start; kopf handles the signals."""
        registry = kopf.OperatorRegistry()
        watch(registry, intake=self._intake, resync=self._resync, configuration=configuration)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        await kopf.operator(
            registry=registry,
            settings=kopf.OperatorSettings(),
            memories=NoMemories(),
            standalone=True,
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            stop_flag=stopping,
        )

    def _build(self, api: client.ApiClient, *, api_server: Iterable[str]) -> None:
        self._leadership = self._leadership_by(api) if self._settings.leader_elect else None
        holds = (lambda: True) if self._leadership is None else self._leadership.holds
        self._metrics = PrometheusMetrics(
            version=version("matview-operator"),
            revision=self._settings.revision,
            policies=self._readings,
            queue_depth=lambda: self._supervisor.queue_depth,
            leads=holds,
        )
        self._events = KubeEvents(api)
        self._pool = Pool(
            idle_seconds=self._settings.idle_connection_seconds, idle_in_all=self._settings.max_concurrent_refreshes
        )
        self._supervisor = Supervisor(
            executor=FencedExecutor(
                Refresher(self._pool, verbose_errors=self._settings.verbose_errors), holds=holds, clock=self._clock
            ),
            inspector=Inspector(),
            pruner=LedgerPruner(),
            secrets=SecretReader(api),
            destinations=Destinations.read(self._settings.allowed_hosts, api_server=api_server),
            writer=FencedWriter(KubeStatusWriter(api), holds=holds),
            events=FencedEvents(self._events, holds=holds),
            metrics=self._metrics,
            clock=self._clock,
            max_concurrent_refreshes=self._settings.max_concurrent_refreshes,
            ledger_keep_days=self._settings.ledger_keep_days,
            random=Random(),  # noqa: S311 - jitter
        )
        self._intake = Intake(supervisor=self._supervisor, clock=self._clock, shard=self._settings.shard)
        self._resync = Resync(api, intake=self._intake, namespaces=self._settings.namespaces)
        self._server = MetricsServer(
            exposition=self._metrics.exposition,
            healthy=lambda: not self._loaded or self._supervisor.healthy(),
            ready=lambda: self._loaded or self._stands_by,
        )

    def _leadership_by(self, api: client.ApiClient) -> Leadership:
        return Leadership(
            store=KubeLease(
                api, namespace=self._settings.lease_namespace or own_namespace(), name=self._settings.lease
            ),
            me=f"{socket.gethostname()}_{uuid.uuid4()}",
            clock=self._clock,
            random=Random(),  # noqa: S311 - jitter
        )

    async def _start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        # Here and not before kopf: on its way out kopf cancels every task that is younger than itself, after cleanup.
        configure(settings)
        self._supervisor.start()
        await self._resync.load()
        # What was loaded lives as long as the process: walking 5,000 policies again and again stops all for 0.2 s.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        self._loaded = True
        self._background = [asyncio.create_task(self._events.run()), asyncio.create_task(self._resync.run())]

    async def _stop(self, **_: Any) -> None:
        self._loaded = False
        if not self._lost:
            await self._supervisor.stop(grace_seconds=self._settings.shutdown_grace_seconds)
        await self._pool.close()
        if self._leadership is not None:
            await self._leadership.release()
        await self._events.flush(seconds=_EVENT_SECONDS)
        for task in self._background:
            task.cancel()

    def _readings(self) -> Iterator[PolicyReading]:
        now = self._clock.now()
        for policy in self._supervisor.registry.policies.values():
            yield _reading(policy, now=now)


async def _before(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless the process is to end first; whether it was done."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return False
    await task
    return True


def _reading(policy: Policy, *, now: datetime) -> PolicyReading:
    verified = oldest_verified(policy.status, policy.spec)
    said = statement_of(policy.status.conditions, READY)
    return PolicyReading(
        key=policy.key,
        ready=None if said is None else said.status == "True",
        seconds_since_verified=since(verified or policy.created_at, now=now),
    )
