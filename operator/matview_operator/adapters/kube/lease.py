"""One Lease of coordination.k8s.io: read by its name, and replaced only as the version that was read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import incluster_config

from matview_operator.adapters.kube.client import NoCluster, api_errors
from matview_operator.domain.lease import Lease
from matview_operator.engine.leadership import LeaseChanged
from matview_operator.engine.ports import ApiUnavailable

_NOT_FOUND = 404
_CONFLICT = 409


def own_namespace() -> str:
    """The namespace of the pod that this is; raises NoCluster if it is none."""
    try:
        return Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace").read_text(encoding="utf-8").strip()
    except OSError:
        raise NoCluster("This is no pod; name the Lease's namespace with --lease-namespace.") from None


class KubeLease:
    """The API server's Lease of this name. How long a request may take is the caller's business."""

    def __init__(self, api: client.ApiClient, *, namespace: str, name: str) -> None:
        self._leases = client.CoordinationV1Api(api)
        self._namespace = namespace
        self._name = name

    async def read(self) -> Lease | None:
        """Return it as the API server has it now; raises ApiUnavailable."""
        try:
            with api_errors():
                return _lease(await self._leases.read_namespaced_lease(self._name, self._namespace))
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise self._refused(error) from None

    async def write(self, lease: Lease) -> Lease:
        """Create it if it has no version, else replace that version; raises LeaseChanged or ApiUnavailable."""
        body = client.V1Lease(
            metadata=client.V1ObjectMeta(name=self._name, resource_version=lease.version),
            spec=client.V1LeaseSpec(
                holder_identity=lease.holder,
                lease_duration_seconds=lease.duration_seconds,
                acquire_time=_micro_time(lease.acquired_at),
                renew_time=_micro_time(lease.renewed_at),
                lease_transitions=lease.transitions,
            ),
        )
        try:
            with api_errors():
                if lease.version is None:
                    return _lease(await self._leases.create_namespaced_lease(self._namespace, body))
                return _lease(await self._leases.replace_namespaced_lease(self._name, self._namespace, body))
        except ApiException as error:
            if error.status == _CONFLICT or (error.status == _NOT_FOUND and lease.version is not None):
                raise LeaseChanged("another process has changed the Lease") from None
            raise self._refused(error) from None

    def _refused(self, error: ApiException) -> ApiUnavailable:
        place = f"{self._namespace}/{self._name}"
        return ApiUnavailable(f"the API server answers {error.status} {error.reason} for the Lease {place}")


def _lease(stored: Any) -> Lease:
    spec = stored.spec or client.V1LeaseSpec()
    return Lease(
        holder=spec.holder_identity or None,
        duration_seconds=spec.lease_duration_seconds or 0,
        acquired_at=spec.acquire_time,
        renewed_at=spec.renew_time,
        transitions=spec.lease_transitions or 0,
        version=stored.metadata.resource_version,
    )


def _micro_time(moment: datetime | None) -> str | None:
    # The client leaves six zeros out, and the API server refuses a time without them.
    return None if moment is None else moment.isoformat(timespec="microseconds")
