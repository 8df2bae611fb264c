"""Operators of one test."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from sandbox.controlplane import Cluster
from sandbox.operator_process import OperatorProcess


class Operators:
    """Operators of one test, for its own namespace only, so that they are no rivals of the session's."""

    def __init__(self, cluster: Cluster, directory: Path, namespace: str) -> None:
        self._cluster = cluster
        self._directory = directory
        self._namespace = namespace
        self._numbers = count()
        """Some are started at once."""
        self.started: list[OperatorProcess] = []

    def start(self, **env: str) -> OperatorProcess:
        process = OperatorProcess.start(
            control_plane=self._cluster,
            directory=self._directory / f"operator-{next(self._numbers)}",
            namespaces=[self._namespace],
            env=env,
        )
        self.started.append(process)
        process.wait_ready()
        return process
