"""A control plane with the operator as a process, and objects made as fast as the API server takes them."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubernetes.aio import client, config
from sandbox.controlplane import ControlPlane
from sandbox.operator_process import OperatorProcess
from sandbox.workspace import CHECKOUT

from matview_operator.api.database import MatviewDatabase
from matview_operator.api.model import API_VERSION, GROUP, VERSION
from matview_operator.api.policy import MatviewRefreshPolicy

if TYPE_CHECKING:
    from bench.database import BenchDatabase

NAMESPACE = "bench"
DATABASE = "bench"
Json = dict[str, Any]

_AT_ONCE = 16
_MERGE_PATCH = "application/merge-patch+json"
_PAGE = 500
_MANIFESTS = CHECKOUT / "manifests" / "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCluster:
    """A control plane whose every object lies in one namespace."""

    plane: ControlPlane
    directory: Path
    objects: client.CustomObjectsApi
    exits: ExitStack

    async def connect(self, database: BenchDatabase, *, at_once: int) -> None:
        """Make the MatviewDatabase and its Secret; so many refreshes at once."""
        target = database.target
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": DATABASE, "namespace": NAMESPACE},
            "stringData": {
                "host": "127.0.0.1",
                "port": str(target.port),
                "dbname": database.name,
                "username": database.name,
                "password": database.password,
            },
        }
        await asyncio.to_thread(self.plane.run_kubectl, "apply", "-f", "-", input=json.dumps(secret))
        spec = {
            "secretRef": {"name": DATABASE},
            "sslMode": "disable",
            "limits": {"maxConcurrentRefreshes": at_once},
        }
        body = {"apiVersion": API_VERSION, "kind": MatviewDatabase.KIND, "metadata": {"name": DATABASE}, "spec": spec}
        await self.objects.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, MatviewDatabase.PLURAL, body)

    async def create_policies(self, specs: Mapping[str, Json]) -> None:
        """Make policies of these names on the database."""
        await self._for_each(self._create, specs.items())

    async def patch_policies(self, specs: Mapping[str, Json]) -> None:
        """Change these policies' specs."""
        await self._for_each(self._patch, specs.items())

    async def patch_statuses(self, statuses: Mapping[str, Json]) -> None:
        """Change what these policies' statuses say. An operator that runs knows better: only while none does."""
        await self._for_each(self._patch_status, statuses.items())

    async def delete_policies(self, names: Iterable[str]) -> None:
        """Delete policies."""
        await self._for_each(self._delete, names)

    async def policies(self) -> list[Json]:
        """All policies as they are stored."""
        found: list[Json] = []
        token: str | None = None
        while True:
            page: Any = await self.objects.list_namespaced_custom_object(
                GROUP, VERSION, NAMESPACE, MatviewRefreshPolicy.PLURAL, limit=_PAGE, _continue=token
            )
            found += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return found

    async def start_operator(self, **settings: str) -> OperatorProcess:
        """Start the operator under its own role; it is ready when this returns."""
        operator = self.exits.enter_context(
            await asyncio.to_thread(
                OperatorProcess.start, control_plane=self.plane, directory=self.directory / "operator", env=settings
            )
        )
        await asyncio.to_thread(operator.wait_ready, 120)
        return operator

    def asked(self, *, since: int) -> AuditReading:
        """What the operator asked of the API server since the audit log was so long."""
        counts: Counter[str] = Counter()
        last: datetime | None = None
        with self.plane.audit_log.open("rb") as log:
            log.seek(since)
            for line in log:
                entry = json.loads(line)
                about = entry["objectRef"]
                what = "/".join(filter(None, (about["resource"], about.get("subresource"))))
                counts[f"{entry['verb']} {what}"] += 1
                if entry["verb"] == "patch":
                    last = datetime.fromisoformat(entry["stageTimestamp"])
        return AuditReading(counts=counts, last_patch=last)

    def patches(self, *, since: int) -> int:
        """How many statuses it has written since then: quicker than to read all it asked."""
        with self.plane.audit_log.open("rb") as log:
            log.seek(since)
            return sum(b'"verb":"patch"' in line for line in log)

    def asked_so_far(self) -> int:
        """How long the audit log is."""
        return self.plane.audit_log.stat().st_size

    async def _create(self, item: tuple[str, Json]) -> None:
        name, spec = item
        body = {
            "apiVersion": API_VERSION,
            "kind": MatviewRefreshPolicy.KIND,
            "metadata": {"name": name},
            "spec": {"databaseRef": {"name": DATABASE}, **spec},
        }
        await self.objects.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, MatviewRefreshPolicy.PLURAL, body)

    async def _patch(self, item: tuple[str, Json]) -> None:
        name, spec = item
        place = (GROUP, VERSION, NAMESPACE, MatviewRefreshPolicy.PLURAL, name)
        await self.objects.patch_namespaced_custom_object(*place, {"spec": spec}, _content_type=_MERGE_PATCH)

    async def _patch_status(self, item: tuple[str, Json]) -> None:
        name, status = item
        place = (GROUP, VERSION, NAMESPACE, MatviewRefreshPolicy.PLURAL, name)
        await self.objects.patch_namespaced_custom_object_status(*place, {"status": status}, _content_type=_MERGE_PATCH)

    async def _delete(self, name: str) -> None:
        await self.objects.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, MatviewRefreshPolicy.PLURAL, name)

    async def _for_each(self, work: Any, items: Iterable[Any]) -> None:
        left = iter(items)

        async def loop() -> None:
            for item in left:
                await work(item)

        await asyncio.gather(*(loop() for _ in range(_AT_ONCE)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReading:
    """Requests of the operator."""

    counts: Counter[str]
    """By verb and resource."""
    last_patch: datetime | None
    """When the last status was stored."""


@asynccontextmanager
async def cluster() -> AsyncIterator[BenchCluster]:
    """Start a control plane with CRDs and role, and stop it with all that was started for it."""
    async with AsyncExitStack() as stack:
        exits = stack.enter_context(ExitStack())
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        plane = exits.enter_context(ControlPlane.start(folder / "control-plane"))
        plane.run_kubectl("apply", "-k", str(_MANIFESTS))
        plane.run_kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        plane.run_kubectl("create", "namespace", NAMESPACE)
        configuration = client.Configuration()
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(plane.kubeconfig), client_configuration=configuration
        )
        configuration.connection_pool_maxsize = _AT_ONCE
        api = await stack.enter_async_context(client.ApiClient(configuration))
        yield BenchCluster(plane=plane, directory=folder, objects=client.CustomObjectsApi(api), exits=exits)
