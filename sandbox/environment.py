"""Environment variables: those of the caller that would lead astray, and those that lead to a sandbox."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from sandbox.cache import FOLDER_VARIABLE
from sandbox.controlplane.cluster import write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandbox.controlplane import Cluster


def forget_servers() -> None:
    """Remove the variables by which asyncpg and our own commands find servers: only those started here are meant."""
    for name in [*os.environ]:
        if (name.startswith(("PG", "MATVIEW_")) and name != FOLDER_VARIABLE) or name == "DATABASE_URL":
            del os.environ[name]


def write_environment(path: Path, *, folder: Path, cluster: Cluster, variables: Mapping[str, str]) -> None:
    """Write what a shell `source`s to work with a sandbox: these variables, KUBECONFIG, and a kubectl that fits it.

    Readable by its owner alone; what goes with it lies in `folder`. The kubectl comes first on PATH: one that the
    machine has may be years too old.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    kubectl = programs / "kubectl"
    kubectl.unlink(missing_ok=True)
    kubectl.symlink_to(cluster.kubectl)
    all_variables = {
        "KUBECONFIG": str(cluster.kubeconfig),
        # Else kubectl would write what it learns of this cluster into the user's home.
        "KUBECACHEDIR": str(folder / "kubectl-cache"),
        **variables,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in all_variables.items()]
    lines.append(f'export PATH={shlex.quote(str(programs))}:"$PATH"')
    write_private(path, "".join(f"{line}\n" for line in lines))
