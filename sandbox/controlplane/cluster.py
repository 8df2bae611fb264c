"""A Kubernetes cluster as demo and tests use it: one kubeconfig, kubectl, tokens of ServiceAccounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from sandbox.errors import MissingPart, SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_KUBECTL_SECONDS = 60
_LIFETIME = "24h"


class KubectlFailed(SandboxError):
    """kubectl ended with another exit code than 0; `stderr` holds its own words."""

    def __init__(self, *, arguments: tuple[str, ...], exit_code: int, stderr: str) -> None:
        self.exit_code = exit_code
        self.stderr = stderr
        super().__init__(f"kubectl {' '.join(arguments)} ended with {exit_code}: {stderr.strip()}")


class Cluster:
    """A cluster reached through `kubeconfig`, whose current context is its administrator.

    The user's own KUBECONFIG and home folder are neither read nor written by anything here.
    """

    def __init__(self, *, kubeconfig: Path, kubectl: Path, environment: Mapping[str, str]) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl = kubectl
        self._environment = environment

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def server_url(self) -> str:
        """The API server's address."""
        return str(self._server()["server"])

    @property
    def logs(self) -> tuple[Path, ...]:
        """The log files of the servers that are ours."""
        return ()

    def run_kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or as whom `kubeconfig` names, and return what it said.

        Secrets belong into `input`, never into arguments. Raises KubectlFailed if `check` and the exit code is
        not 0, subprocess.TimeoutExpired after 60 s.
        """
        done = subprocess.run(
            [self.kubectl, f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            env=dict(self._environment),
            timeout=_KUBECTL_SECONDS,
            check=False,
        )
        if check and done.returncode != 0:
            raise KubectlFailed(arguments=arguments, exit_code=done.returncode, stderr=done.stderr)
        return done

    def service_account_kubeconfig(self, *, namespace: str, name: str, path: Path) -> Path:
        """Write a kubeconfig with a fresh token of a ServiceAccount, good for 24 h if the server allows it.

        Its default namespace is the ServiceAccount's. Raises KubectlFailed if there is no such account.
        """
        token = self.run_kubectl(
            "create", "token", name, f"--namespace={namespace}", f"--duration={_LIFETIME}"
        ).stdout.strip()
        write_kubeconfig(path, server=self._server(), user={"token": token}, name=name, namespace=namespace)
        return path

    def stop(self) -> None:
        """Stop what was started for this cluster; does nothing the second time."""

    def _server(self) -> dict[str, Any]:
        """The kubeconfig's entry of the server, with its certificate."""
        document = yaml.safe_load(self.kubeconfig.read_text(encoding="utf-8"))
        entry: dict[str, Any] = document["clusters"][0]["cluster"]
        return entry


class ExistingCluster(Cluster):
    """The cluster of the user's current context, which must be named on purpose: TEST_CLUSTER=current."""

    def __init__(self, *, directory: Path, context: str, kubectl: Path) -> None:
        self.context = context
        super().__init__(kubeconfig=directory / "kubeconfig", kubectl=kubectl, environment=os.environ)

    @classmethod
    def current(cls, directory: Path) -> ExistingCluster:
        """Copy the current context of the user's kubeconfig into `directory` and use only that from then on.

        So a context that is switched meanwhile changes nothing. Raises MissingPart without kubectl on PATH,
        SandboxError without a current context.
        """
        found = shutil.which("kubectl")
        if found is None:
            raise MissingPart(part="kubectl", package="kubernetes-client", hint="install it to use your cluster")
        contents = [
            subprocess.run([found, "config", *arguments], capture_output=True, text=True, check=False)
            for arguments in (["current-context"], ["view", "--minify", "--flatten", "--raw"])
        ]
        for content in contents:
            if content.returncode != 0:
                raise SandboxError(f"There is no current context to test with: {content.stderr.strip()}")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        cluster = cls(directory=directory, context=contents[0].stdout.strip(), kubectl=Path(found))
        write_private(cluster.kubeconfig, contents[1].stdout)
        return cluster

    def stop(self) -> None:
        """Forget the cluster: the copy of its credentials goes, the cluster stays as it is."""
        self.kubeconfig.unlink(missing_ok=True)


def write_kubeconfig(
    path: Path,
    *,
    server: Mapping[str, Any],
    user: Mapping[str, str],
    name: str,
    namespace: str = "default",
) -> None:
    """Write a kubeconfig of one cluster, one user and one context, all of it in the file, readable by its owner."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": dict(server)}],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": name, "namespace": namespace}}],
        "current-context": "sandbox",
    }
    write_private(path, yaml.safe_dump(document, sort_keys=False))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at every moment of its life."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
