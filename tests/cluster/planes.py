"""Control planes of the tests: one for all, and one of its own for a module that does to it what disturbs others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.controlplane import Cluster, ControlPlane

MANIFESTS = Path(__file__).parents[2] / "manifests"


@contextmanager
def started(directory: Path, *, watch_cache: bool = True) -> Iterator[ControlPlane]:
    """Yield a control plane without anything of ours in it."""
    with ControlPlane.start(directory, watch_cache=watch_cache) as plane:
        yield plane
    shutil.rmtree(directory / "etcd")  # pytest keeps the folders of three sessions, and this is 64 MB


def install(cluster: Cluster) -> None:
    """Apply CRDs, ServiceAccount and role, as the README does."""
    cluster.run_kubectl("apply", "-k", str(MANIFESTS / "cluster"))
    cluster.run_kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
