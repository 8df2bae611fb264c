"""The composition root: which adapter stands at which port, and the order of start and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from random import Random
from typing import Any

import kopf
from kubernetes.aio import client

from matview_operator.adapters.kube.client import api_addresses, load_configuration
from matview_operator.adapters.kube.events import KubeEvents
from matview_operator.adapters.kube.handlers import configure, watch
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
from matview_operator.engine.intake import Intake
from matview_operator.engine.ports import SystemClock
from matview_operator.engine.registry import Policy
from matview_operator.engine.supervisor import Supervisor
from matview_operator.settings import Settings

log = logging.getLogger(__name__)

_EVENT_SECONDS = 3.0


def run_operator(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    asyncio.run(_Operator(settings).run())


class _Operator:
    """One process's parts, made when the event loop runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._loaded = False
        self._background: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve probes, load what exists, then watch; kopf handles the signals."""
        configuration = await load_configuration()
        async with client.ApiClient(configuration) as api:
            self._build(api, api_server=await api_addresses(configuration))
            await self._server.start(host=self._settings.host, port=self._settings.port)
            registry = kopf.OperatorRegistry()
            watch(registry, intake=self._intake, configuration=configuration)
            kopf.on.startup(registry=registry)(self._start)
            kopf.on.cleanup(registry=registry)(self._stop)
            try:
                await kopf.operator(
                    registry=registry,
                    settings=kopf.OperatorSettings(),
                    standalone=True,
                    clusterwide=not self._settings.namespaces,
                    namespaces=self._settings.namespaces,
                )
            finally:
                await self._server.close()

    def _build(self, api: client.ApiClient, *, api_server: Iterable[str]) -> None:
        self._metrics = PrometheusMetrics(
            version=version("matview-operator"),
            revision=self._settings.revision,
            policies=self._readings,
            queue_depth=lambda: self._supervisor.queue_depth,
        )
        self._events = KubeEvents(api)
        self._pool = Pool(
            idle_seconds=self._settings.idle_connection_seconds, idle_in_all=self._settings.max_concurrent_refreshes
        )
        self._supervisor = Supervisor(
            executor=Refresher(self._pool, verbose_errors=self._settings.verbose_errors),
            inspector=Inspector(),
            pruner=LedgerPruner(),
            secrets=SecretReader(api),
            destinations=Destinations.read(self._settings.allowed_hosts, api_server=api_server),
            writer=KubeStatusWriter(api),
            events=self._events,
            metrics=self._metrics,
            clock=self._clock,
            max_concurrent_refreshes=self._settings.max_concurrent_refreshes,
            ledger_keep_days=self._settings.ledger_keep_days,
            random=Random(),  # noqa: S311 - jitter
        )
        self._intake = Intake(supervisor=self._supervisor, clock=self._clock)
        self._resync = Resync(api, intake=self._intake, namespaces=self._settings.namespaces)
        self._server = MetricsServer(
            exposition=self._metrics.exposition,
            healthy=lambda: not self._loaded or self._supervisor.healthy(),
            ready=lambda: self._loaded,
        )

    async def _start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        # Here and not before kopf: on its way out kopf cancels every task that is younger than itself, after cleanup.
        configure(settings)
        self._supervisor.start()
        await self._resync.load()
        # What was loaded lives as long as the process: walking 5,000 policies again and again stops all for 0.2 s.
        gc.collect()
        gc.freeze()
        self._loaded = True
        self._background = [asyncio.create_task(self._events.run()), asyncio.create_task(self._resync.run())]

    async def _stop(self, **_: Any) -> None:
        self._loaded = False
        await self._supervisor.stop(grace_seconds=self._settings.shutdown_grace_seconds)
        await self._pool.close()
        await self._events.flush(seconds=_EVENT_SECONDS)
        for task in self._background:
            task.cancel()

    def _readings(self) -> Iterator[PolicyReading]:
        now = self._clock.now()
        for policy in self._supervisor.registry.policies.values():
            yield _reading(policy, now=now)


def _reading(policy: Policy, *, now: datetime) -> PolicyReading:
    verified = oldest_verified(policy.status, policy.spec)
    said = statement_of(policy.status.conditions, READY)
    return PolicyReading(
        key=policy.key,
        ready=None if said is None else said.status == "True",
        seconds_since_verified=since(verified or policy.created_at, now=now),
    )
