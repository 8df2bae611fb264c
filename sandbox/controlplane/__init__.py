"""A real Kubernetes control plane without a container engine: programs built once, then started on loopback.

May import `sandbox.cache`, `sandbox.errors` and `sandbox.processes`, nothing else of this project.
"""

from sandbox.controlplane.cluster import Cluster, ExistingCluster, KubectlFailed
from sandbox.controlplane.plane import ControlPlane

__all__ = ["Cluster", "ControlPlane", "ExistingCluster", "KubectlFailed"]
