"""The operator as a process of its own, which is nobody at the API server but its own ServiceAccount."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandbox.errors import SandboxError
from sandbox.processes import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from sandbox.controlplane import Cluster

SERVICE_ACCOUNT = "matview-operator"
NAMESPACE = "matview-system"
"""Where manifests/cluster puts the ServiceAccount."""

PROGRAM = Path(sys.executable).with_name("matview-operator")
"""The command line, as pip installed it beside this Python."""

LOOPBACK = "127.0.0.0/8"
"""Where the servers of sandbox, demo and tests are, and an operator does not connect to by itself."""

_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")
_STOP_SECONDS = 30
_PORT_ATTEMPTS = 5


class OperatorProcess:
    """One operator. Owned by whoever started it, who stops it, or uses `with`.

    Its kubeconfig, its log and its home lie in a directory of its own; it reads nothing of the user's.
    """

    def __init__(self, *, directory: Path, kubeconfig: Path, settings: Mapping[str, str]) -> None:
        """Hold the parts; `start` is the way to a running operator."""
        self._directory = directory
        self._settings = settings
        self._process: ServerProcess | None = None
        self.kubeconfig = kubeconfig
        self.log = directory / "operator.log"
        self.port = 0

    @classmethod
    def start(
        cls,
        *,
        control_plane: Cluster,
        directory: Path,
        namespaces: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        account_namespace: str = NAMESPACE,
    ) -> Self:
        """Start an operator for all namespaces, or for these; it is not ready yet when this returns.

        `directory` is its own and may be new. `env` is for MATVIEW_… settings. The ServiceAccount and its role must
        be there: `apply -k manifests/cluster`, or `manifests/namespaced` and its namespace as `account_namespace`.
        Raises KubectlFailed if the ServiceAccount is not.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kubeconfig = control_plane.service_account_kubeconfig(
            namespace=account_namespace, name=SERVICE_ACCOUNT, path=directory / "kubeconfig"
        )
        settings = {"MATVIEW_NAMESPACES": ",".join(namespaces)} if namespaces else {}
        operator = cls(directory=directory, kubeconfig=kubeconfig, settings={**settings, **(env or {})})
        operator._launch()
        return operator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._running().alive

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._running().exit_code

    @property
    def url(self) -> str:
        """Where it serves /metrics, /healthz and /readyz; settled when it is ready."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus would scrape."""
        return f"{self.url}/metrics"

    def wait_ready(self, timeout: float = 30) -> None:
        """Return when it has loaded the objects and watches them.

        Raises SandboxError, which ends with the end of its log, after `timeout` s or once it died.
        """
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._running().wait_ready(self._is_ready, timeout=timeout)
            except SandboxError:
                # Between free_port and bind, another process may have taken the port.
                if self.alive or attempt == _PORT_ATTEMPTS or "address already in use" not in self.log_text():
                    raise
                self._launch()
            else:
                return

    def log_text(self) -> str:
        """Return all it logged: a JSON object per line, unless something went wrong badly."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def send(self, wanted: signal.Signals) -> None:
        """Send it a signal, SIGSTOP for instance; nothing happens if it has ended."""
        self._running().send(wanted)

    def stop(self) -> None:
        """End it by SIGTERM, as a kubelet does, and by SIGKILL if it takes longer than 30 s."""
        self._running().stop(timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """End it by SIGKILL; it is gone when this returns."""
        self._running().stop(signal=signal.SIGKILL)

    def _launch(self) -> None:
        self.port = free_port()
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {
            "HOME": str(self._directory),
            "KUBECONFIG": str(self.kubeconfig),
            "MATVIEW_HOST": "127.0.0.1",
            "MATVIEW_ALLOWED_HOSTS": LOOPBACK,
            "MATVIEW_PORT": str(self.port),
            **self._settings,
        }
        self._process = ServerProcess.start(
            [PROGRAM, "run"],
            name="the operator",
            log=self.log,
            env=environment,
            cwd=self._directory,
        )

    def _running(self) -> ServerProcess:
        assert self._process is not None
        return self._process

    def _is_ready(self) -> bool:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
                connection.request("GET", "/readyz")
                answered = connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        # Another process may answer at a port that we lost.
        return answered and self._running().listens_on(self.port)
