"""A Kubernetes control plane of our own: etcd, kube-apiserver and three controllers as processes on loopback."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import ssl
import urllib.request
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from sandbox.controlplane.binaries import Binaries
from sandbox.controlplane.cluster import Cluster, write_kubeconfig
from sandbox.controlplane.identity import write_admin_token, write_signing_key
from sandbox.errors import SandboxError
from sandbox.processes import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  userGroups: ["system:serviceaccounts"]
  verbs: [create, patch, update]
  resources:
  - {group: matviews.skeldir.io, resources: ["*/status"]}
  - {group: events.k8s.io, resources: [events]}
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
"""
"""Who asked for what; of bodies only statuses and events, so that a Secret never gets into it."""

_READY_SECONDS = 60
"""Generous: a machine that compiles something else at the same time is slow. Idle, all is ready in 4 s."""

_STOP_SECONDS = 5
_ETCD_SECONDS = 10
_PORT_ATTEMPTS = 3
_CONTROLLERS = "namespace-controller,garbage-collector-controller,serviceaccount-controller"


class ControlPlane(Cluster):
    """A running control plane, all of whose files lie in its directory. Used as a context manager.

    There is no kubelet and no scheduler: Deployments are stored but do not run. Its processes die with ours.
    """

    def __init__(self, *, directory: Path, binaries: Binaries, watch_cache: bool = True) -> None:
        self._directory = directory
        self._binaries = binaries
        self._watch_cache = watch_cache
        self._token = ""
        self._port = 0
        self._etcd_port = 0
        self._etcd: ServerProcess | None = None
        self._apiserver: ServerProcess | None = None
        self._manager: ServerProcess | None = None
        home = {"HOME": str(directory / "home"), "KUBERC": "off", "PATH": os.defpath}
        super().__init__(kubeconfig=directory / "kubeconfig", kubectl=binaries.kubectl, environment=home)

    @classmethod
    def start(cls, directory: Path, *, console: Console | None = None, watch_cache: bool = True) -> Self:
        """Start a control plane in a new or empty directory, building its programs first if they are nowhere.

        Without `watch_cache` the API server has no memory of its own of what happened: a watch gets it from etcd, as
        far back as that remembers. Raises SandboxError, with the end of the log that tells why, if it cannot be had.
        """
        binaries = Binaries.obtain(console=console or Console())
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        plane = cls(directory=directory.absolute(), binaries=binaries, watch_cache=watch_cache)
        try:
            plane._start()
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            plane.stop()
            raise
        return plane

    @property
    def logs(self) -> tuple[Path, ...]:
        """The servers' log files."""
        return tuple(self._log(name) for name in ("etcd", "kube-apiserver", "kube-controller-manager"))

    @property
    def audit_log(self) -> Path:
        """What ServiceAccounts asked of the API server, and what it answered: a JSON object per line."""
        return self._directory / "audit.log"

    @property
    def process_ids(self) -> Sequence[int]:
        """The servers' processes, for whoever measures what they take."""
        return [process.pid for process in (self._etcd, self._apiserver, self._manager) if process is not None]

    def stop(self) -> None:
        """Stop all three servers; nothing of them is left but their directory. Does nothing the second time."""
        with ExitStack() as stack:  # an interrupt while one stops must not spare the others
            # Last in, first out: who asks before who is asked, so that no log fills with lost connections.
            for process in (self._etcd, self._apiserver, self._manager):
                if process is not None:
                    stack.callback(process.stop, timeout=_STOP_SECONDS)

    def stop_apiserver(self, *, by: signal.Signals = signal.SIGKILL) -> int | None:
        """Take the API server away, by default at once as a crash would; what it stored stays in etcd.

        Returns its exit code, which is 0 if it had the time to end by itself.
        """
        if self._apiserver is None:
            return None
        self._apiserver.stop(signal=by, timeout=_READY_SECONDS)
        return self._apiserver.exit_code

    def compact(self) -> int:
        """Have etcd forget all versions of all objects but the present ones; return the newest version there is."""
        # A range that is empty: its answer's header has the revision.
        revision = int(self._ask_etcd("kv/range", {"key": base64.b64encode(b"-").decode()})["header"]["revision"])
        self._ask_etcd("kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def start_apiserver(self) -> None:
        """Start the API server at its old address, with its old certificate; returns when it is ready.

        Raises SandboxError if it is not ready in time.
        """
        self._apiserver = self._launch(
            "kube-apiserver",
            self._binaries.kube_apiserver,
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",  # else it looks for a network, and there may be none
            f"--secure-port={self._port}",
            f"--cert-dir={self._certificate.parent}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._signing_key}",
            f"--service-account-signing-key-file={self._signing_key}",
            f"--token-auth-file={self._tokens}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged",
            "--endpoint-reconciler-type=none",
            f"--audit-policy-file={self._audit_policy}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=10000",  # MB: whoever counts what was asked has it in one file
            f"--watch-cache={str(self._watch_cache).lower()}",
            "--shutdown-watch-termination-grace-period=1s",  # else SIGTERM waits a minute for watches to end
        )
        self._apiserver.wait_ready(self._is_ready, timeout=_READY_SECONDS)

    def _start(self) -> None:
        write_signing_key(self._signing_key)
        self._audit_policy.write_text(_AUDIT_POLICY, encoding="utf-8")
        self._token = write_admin_token(self._tokens)
        _retry_ports(self._start_etcd)
        _retry_ports(self._start_first_apiserver)
        certificate = base64.b64encode(self._certificate.read_bytes()).decode()
        write_kubeconfig(
            self.kubeconfig,
            server={"server": f"https://127.0.0.1:{self._port}", "certificate-authority-data": certificate},
            user={"token": self._token},
            name="sandbox-admin",
        )
        self._start_manager()

    def _start_etcd(self) -> None:
        self._etcd_port = free_port()
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, free_port()))
        self._etcd = self._launch(
            "etcd",
            self._binaries.etcd,
            f"--data-dir={self._directory / 'etcd'}",
            "--name=sandbox",
            "--unsafe-no-fsync",  # nothing here outlives its directory
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=sandbox={peer}",
            "--log-level=warn",
        )
        etcd = self._etcd
        etcd.wait_ready(lambda: etcd.listens_on(self._etcd_port), timeout=_READY_SECONDS)

    def _start_first_apiserver(self) -> None:
        self._port = free_port()
        self.start_apiserver()

    def _start_manager(self) -> None:
        self._manager = self._launch(
            "kube-controller-manager",
            self._binaries.kube_controller_manager,
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={_CONTROLLERS}",
            "--leader-elect=false",
            "--secure-port=0",  # nobody asks it anything
        )
        # It has no port to ask: its first work is the proof.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._manager.wait_ready(lambda: self._status_of(account) == http.HTTPStatus.OK, timeout=_READY_SECONDS)

    def _launch(self, name: str, program: Path, *arguments: str) -> ServerProcess:
        return ServerProcess.start([program, *arguments], name=name, log=self._log(name), cwd=self._directory)

    def _is_ready(self) -> bool:
        return self._status_of("/readyz") == http.HTTPStatus.OK

    def _status_of(self, path: str) -> int | None:
        """The API server's answer to our administrator; None while it is not there, or another is in its place."""
        try:
            context = ssl.create_default_context(cafile=str(self._certificate))
            connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=context, timeout=5)
            with closing(connection):
                connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
                return connection.getresponse().status
        except (OSError, http.client.HTTPException):  # ssl.SSLError is an OSError
            return None

    def _ask_etcd(self, method: str, body: Mapping[str, object]) -> Any:
        """The answer of etcd's gateway from JSON to gRPC."""
        url = f"http://127.0.0.1:{self._etcd_port}/v3/{method}"
        with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=_ETCD_SECONDS) as answer:
            return json.load(answer)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    @property
    def _certificate(self) -> Path:
        """Made by the API server itself when it starts for the first time; holds its authority too."""
        return self._directory / "certificates" / "apiserver.crt"

    @property
    def _signing_key(self) -> Path:
        return self._directory / "service-accounts.key"

    @property
    def _audit_policy(self) -> Path:
        return self._directory / "audit-policy.yaml"

    @property
    def _tokens(self) -> Path:
        return self._directory / "tokens.csv"


def _retry_ports(start: Callable[[], None]) -> None:
    """Call `start` again when somebody took its port between our choice and its bind."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        try:
            start()
        except SandboxError as error:
            if attempt == _PORT_ATTEMPTS or "address already in use" not in str(error):
                raise
        else:
            return
