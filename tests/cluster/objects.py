"""Custom resources as a user writes them, the CRDs that they need, and what the API server stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sandbox.controlplane import Cluster

from matview_operator.api.model import API_VERSION

CRDS = Path(__file__).parents[2] / "crds"
DATABASE: dict[str, Any] = {"secretRef": {"name": "analytics-app"}}
POLICY: dict[str, Any] = {
    "databaseRef": {"name": "analytics"},
    "views": [{"name": "mv_realtime_revenue"}],
    "schedule": {"everySeconds": 30},
}
MINIMAL = {"MatviewDatabase": DATABASE, "MatviewRefreshPolicy": POLICY}


def establish_crds(cluster: Cluster, manifest: str | None = None) -> None:
    """Apply our CRDs, or the given ones, and wait until their objects can be stored."""
    source = ("-k", str(CRDS)) if manifest is None else ("-f", "-")
    applied = cluster.run_kubectl("apply", *source, "-o", "name", input=manifest).stdout.split()
    cluster.run_kubectl("wait", "--for=condition=Established", "--timeout=30s", *applied)


def manifest_of(
    kind: str, spec: dict[str, Any], *, name: str = "subject", api_version: str = API_VERSION
) -> dict[str, Any]:
    """Return a whole object."""
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def create(cluster: Cluster, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Create an object and return it as stored."""
    arguments = ("create", "-n", namespace, "-f", "-", "-o", "json")
    stored: dict[str, Any] = json.loads(cluster.run_kubectl(*arguments, input=json.dumps(manifest)).stdout)
    return stored


def write_status(cluster: Cluster, namespace: str, resource: str, status: dict[str, Any]) -> dict[str, Any]:
    """Write the subject's status as the operator does and return the object as stored."""
    patch = ("--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}", "-o", "json")
    stored: dict[str, Any] = json.loads(
        cluster.run_kubectl("patch", resource, "subject", "-n", namespace, *patch).stdout
    )
    return stored
