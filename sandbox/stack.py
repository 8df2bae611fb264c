"""All servers of the demo and the sandbox: a control plane, PostgreSQL, what is installed on both, the operator."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from sandbox.analytics import Analytics, create_analytics
from sandbox.controlplane import ControlPlane
from sandbox.interruption import to_the_end
from sandbox.operator_process import NAMESPACE, SERVICE_ACCOUNT, OperatorProcess
from sandbox.postgres import PostgresServer
from sandbox.workspace import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from sandbox.controlplane import Cluster
    from sandbox.steps import Steps

TENANT_NAMESPACES = ("tenant-a", "tenant-b")
SECRET = "analytics-app"  # noqa: S105 - its name
"""What the MatviewDatabases of manifests/samples refer to."""

START_SECONDS = 12
"""What a start takes on two idle cores, at most."""

DISK_BYTES = 600_000_000
"""What the servers occupy at most: 300 MB were measured after a minute, and logs and write-ahead logs grow."""

MEMORY_BYTES = 700_000_000
"""What everything needs together; 650 MB were measured."""

_SETTINGS = {"max_wal_size": "128MB"}

_MANIFESTS = CHECKOUT / "manifests"
SAMPLES = _MANIFESTS / "samples"
"""The demo's databases and policies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Running servers; whoever entered `running_stack` owns them."""

    control_plane: ControlPlane
    analytics: Analytics
    operator: OperatorProcess | None
    """None unless one was wanted."""


@asynccontextmanager
async def running_stack(directory: Path, *, with_operator: bool, steps: Steps) -> AsyncIterator[Stack]:
    """Start everything in this empty directory; stop it when the block ends, also when that is a cancellation.

    The tenants' namespaces and Secrets are there, their policies are not: see `apply_samples`. The control plane's
    programs must be built already, which takes minutes that a cancellation could not end.
    Raises SandboxError with the log of what did not start.
    """
    exits = ExitStack()
    try:
        try:
            async with asyncio.TaskGroup() as group:
                database = group.create_task(_start_database(directory, exits=exits, steps=steps))
                cluster = group.create_task(
                    _start_cluster(directory, with_operator=with_operator, exits=exits, steps=steps)
                )
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        plane, operator = cluster.result()
        analytics = database.result()
        await to_the_end(
            lambda: plane.run_kubectl("apply", "--server-side", "-f", "-", input=_tenants(analytics.operator_secret()))
        )
        yield Stack(control_plane=plane, analytics=analytics, operator=operator)
    finally:
        await to_the_end(exits.close)


async def apply_samples(cluster: Cluster) -> None:
    """Apply the databases and policies of manifests/samples, as a user would."""
    await to_the_end(lambda: cluster.run_kubectl("apply", "--server-side", "-k", str(SAMPLES)))


def longest_interval() -> int:
    """Return the longest everySeconds of manifests/samples."""
    documents = (
        document
        for path in sorted(SAMPLES.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    )
    return max(int(document.get("spec", {}).get("schedule", {}).get("everySeconds", 0)) for document in documents)


async def _start_database(directory: Path, *, exits: ExitStack, steps: Steps) -> Analytics:
    with steps.step("Starting PostgreSQL 18") as step:
        server = await to_the_end(
            lambda: exits.enter_context(
                PostgresServer.start(directory=directory / "postgresql", version=18, settings=_SETTINGS)
            )
        )
        step.result = f"PostgreSQL 18 on 127.0.0.1:{server.port}"
    return await create_analytics(server, steps=steps)


async def _start_cluster(
    directory: Path, *, with_operator: bool, exits: ExitStack, steps: Steps
) -> tuple[ControlPlane, OperatorProcess | None]:
    with steps.step("Starting kube-apiserver, etcd and kube-controller-manager") as step:
        plane = await to_the_end(lambda: exits.enter_context(ControlPlane.start(directory / "control-plane")))
        step.result = f"Kubernetes API server and etcd on {plane.server_url}"
    with steps.step("Applying manifests/cluster") as step:
        # The Deployment too, as everywhere; nothing here makes pods of it, and the operator runs as a process.
        await to_the_end(lambda: plane.run_kubectl("apply", "--server-side", "-k", str(_MANIFESTS / "cluster")))
        await to_the_end(
            lambda: plane.run_kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        )
        step.result = "CRDs, ServiceAccount and role: kubectl apply -k manifests/cluster"
    if not with_operator:
        return plane, None
    with steps.step("Starting the operator") as step:
        operator = await to_the_end(lambda: _start_operator(plane, directory=directory / "operator", exits=exits))
        step.result = f"Operator, process {operator.pid}, as ServiceAccount {NAMESPACE}/{SERVICE_ACCOUNT}"
    return plane, operator


def _start_operator(plane: ControlPlane, *, directory: Path, exits: ExitStack) -> OperatorProcess:
    operator = exits.enter_context(OperatorProcess.start(control_plane=plane, directory=directory))
    operator.wait_ready()
    return operator


def _tenants(secret: Mapping[str, str]) -> str:
    """The tenants' namespaces, each with the Secret that the samples refer to."""
    documents: list[dict[str, object]] = []
    for namespace in TENANT_NAMESPACES:
        documents += [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": namespace},
                "stringData": dict(secret),
            },
        ]
    return yaml.safe_dump_all(documents)
