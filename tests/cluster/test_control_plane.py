"""The control plane of our own is a real one, keeps to itself, and is gone when it is stopped."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from sandbox.controlplane import Cluster, ControlPlane, ExistingCluster, KubectlFailed
from sandbox.controlplane.binaries import Binaries, control_plane_module
from sandbox.errors import MissingPart
from sandbox.processes import answers, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")


@pytest.fixture
def binaries() -> Binaries:
    found = Binaries.find()
    assert found is not None
    return found


@pytest.fixture
def account(control_plane: Cluster, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig of the namespace's own ServiceAccount, which a controller makes a moment after the namespace."""
    control_plane.run_kubectl("wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=30s")
    return control_plane.service_account_kubeconfig(namespace=namespace, name="default", path=tmp_path / "account")


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A plane for tests that stop its API server, or need one that is certainly ours."""
    with ControlPlane.start(tmp_path_factory.mktemp("own-plane") / "own") as own:
        yield own


def test_kubectl_and_the_server_agree_on_a_version_that_can_be_parsed(control_plane: Cluster) -> None:
    versions = json.loads(control_plane.run_kubectl("version", "-o", "json").stdout)

    expected = control_plane_module().version_of("k8s.io/kubernetes")
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"] == expected
    assert (versions["serverVersion"]["major"], versions["serverVersion"]["minor"]) == ("1", "36")


def test_a_deleted_namespace_goes_away_with_what_is_in_it(control_plane: Cluster, namespace: str) -> None:
    victim = f"{namespace}-victim"
    control_plane.run_kubectl("create", "namespace", victim)
    control_plane.run_kubectl("create", "configmap", "content", "-n", victim)

    control_plane.run_kubectl("delete", "namespace", victim, "--wait", "--timeout=50s")

    gone = control_plane.run_kubectl("get", "namespace", victim, check=False)
    assert gone.returncode == 1
    assert "NotFound" in gone.stderr


def test_what_is_owned_goes_with_its_owner(control_plane: Cluster, namespace: str) -> None:
    control_plane.run_kubectl("create", "configmap", "owner", "-n", namespace)
    uid = control_plane.run_kubectl("get", "cm", "owner", "-n", namespace, "-o=jsonpath={.metadata.uid}").stdout
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    owned = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "owned", "namespace": namespace, "ownerReferences": [owner]},
    }
    control_plane.run_kubectl("apply", "-f", "-", input=json.dumps(owned))

    control_plane.run_kubectl("delete", "configmap", "owner", "-n", namespace)

    control_plane.run_kubectl("wait", "--for=delete", "cm/owned", "-n", namespace, "--timeout=30s")


def test_a_service_account_may_do_what_its_role_says_and_no_more(
    control_plane: Cluster, namespace: str, account: Path
) -> None:
    who = control_plane.run_kubectl("auth", "whoami", "-o=jsonpath={.status.userInfo.username}", kubeconfig=account)
    assert who.stdout == f"system:serviceaccount:{namespace}:default"
    denied = control_plane.run_kubectl("get", "secrets", check=False, kubeconfig=account)
    assert denied.returncode == 1
    assert "Forbidden" in denied.stderr

    control_plane.run_kubectl("create", "role", "reader", "--verb=list", "--resource=secrets", "-n", namespace)
    subject = f"--serviceaccount={namespace}:default"
    control_plane.run_kubectl("create", "rolebinding", "reader", "--role=reader", subject, "-n", namespace)
    deadline = time.monotonic() + 30
    while control_plane.run_kubectl("get", "secrets", check=False, kubeconfig=account).returncode != 0:
        assert time.monotonic() < deadline, "the server has not heard of its own new role in 30 s"
    elsewhere = control_plane.run_kubectl("get", "secrets", "-n", "default", check=False, kubeconfig=account)
    assert "Forbidden" in elsewhere.stderr


def test_a_token_is_good_for_a_day(control_plane: Cluster, account: Path) -> None:
    token = yaml.safe_load(account.read_text())["users"][0]["user"]["token"]
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    answer = control_plane.run_kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review))
    assert json.loads(answer.stdout)["status"]["authenticated"]
    claims = _claims(token)
    assert claims["exp"] - claims["iat"] == 24 * 3600


def test_two_control_planes_know_nothing_of_each_other(
    control_plane: Cluster, namespace: str, own_plane: ControlPlane
) -> None:
    assert own_plane.server_url != control_plane.server_url
    absent = own_plane.run_kubectl("get", "namespace", namespace, check=False)
    assert "NotFound" in absent.stderr

    stranger = yaml.safe_load(control_plane.kubeconfig.read_text())
    stranger["clusters"] = yaml.safe_load(own_plane.kubeconfig.read_text())["clusters"]
    for context in stranger["contexts"]:
        context["context"]["cluster"] = stranger["clusters"][0]["name"]
    mixed = own_plane.kubeconfig.with_name("stranger")
    mixed.write_text(yaml.safe_dump(stranger))
    refused = own_plane.run_kubectl("get", "namespaces", check=False, kubeconfig=mixed)
    assert "Unauthorized" in refused.stderr


def test_an_outage_of_the_api_server_loses_nothing(own_plane: ControlPlane) -> None:
    own_plane.run_kubectl("create", "configmap", "kept")

    own_plane.stop_apiserver()
    assert own_plane.run_kubectl("get", "cm", "kept", check=False).returncode != 0
    own_plane.start_apiserver()

    own_plane.run_kubectl("get", "cm", "kept")


def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path / "short") as short:
        processes = [child for child in psutil.Process().children(recursive=True) if _belongs(child, short)]
        ports = [port for process in processes for port in _ports(process)]
        assert sorted(process.name() for process in processes) == sorted(PROGRAMS)
        assert urlsplit(short.server_url).port in ports
        assert len(ports) == 3

    assert not [process for process in processes if process.is_running()]
    assert not [port for port in ports if answers(port)]
    short.stop()


def test_all_its_ports_are_on_loopback(own_plane: ControlPlane) -> None:
    addresses = {
        connection.laddr.ip
        for child in psutil.Process().children(recursive=True)
        if _belongs(child, own_plane)
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }

    assert addresses == {"127.0.0.1"}


def test_a_port_that_somebody_takes_first_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = free_port
    with socket.create_server(("127.0.0.1", 0)) as etcd_rival, socket.create_server(("127.0.0.1", 0)) as api_rival:
        etcd_taken, api_taken = etcd_rival.getsockname()[1], api_rival.getsockname()[1]
        # In the order of the choices: etcd's clients and peers, again, then the API server, again.
        ports = iter([etcd_taken, choose(), choose(), choose(), api_taken])
        monkeypatch.setattr("sandbox.controlplane.plane.free_port", lambda: next(ports, None) or choose())

        with ControlPlane.start(tmp_path / "raced") as raced:
            assert next(ports, None) is None
            assert urlsplit(raced.server_url).port not in (etcd_taken, api_taken)
            raced.run_kubectl("get", "namespaces")


def test_secrets_are_in_private_files_only(own_plane: ControlPlane, tmp_path: Path) -> None:
    token = yaml.safe_load(own_plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    account = own_plane.service_account_kubeconfig(namespace="default", name="default", path=tmp_path / "account")
    directory = own_plane.kubeconfig.parent

    arguments = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in arguments if token in line]
    assert directory.stat().st_mode & 0o077 == 0
    assert account.stat().st_mode & 0o077 == 0
    holders = {path.name for path in directory.iterdir() if path.is_file() and token.encode() in path.read_bytes()}
    assert holders == {"kubeconfig", "tokens.csv"}
    assert {(directory / name).stat().st_mode & 0o777 for name in holders} == {0o600}


def test_the_users_own_kubeconfig_and_home_do_not_matter(
    own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    theirs = tmp_path / "theirs"
    theirs.write_text("not even YAML: {")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KUBECONFIG", str(theirs))

    own_plane.run_kubectl("get", "namespaces")

    assert theirs.read_text() == "not even YAML: {"
    assert not list(home.iterdir())
    assert (own_plane.kubeconfig.with_name("home") / ".kube" / "cache").is_dir(), "where kubectl remembers"


def test_a_failure_says_what_kubectl_said_and_not_what_it_was_given(control_plane: Cluster) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "UPPER"}, "stringData": {"p": "hunter2"}}

    with pytest.raises(KubectlFailed, match="UPPER") as failure:
        control_plane.run_kubectl("create", "-f", "-", input=json.dumps(secret))

    assert failure.value.exit_code == 1
    assert "hunter2" not in str(failure.value)


def test_current_means_the_current_context_and_leaves_it_alone(
    own_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copy(own_plane.kubeconfig, theirs)
    monkeypatch.setenv("KUBECONFIG", str(theirs))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(own_plane.kubectl.parent), prepend=os.pathsep)
    before = theirs.read_bytes()

    with ExistingCluster.current(tmp_path / "work") as existing:
        assert theirs.read_bytes() == before
        # Somebody switches contexts meanwhile: ours stays what it was.
        theirs.write_text("")
        assert existing.context == "sandbox"
        assert existing.server_url == own_plane.server_url
        existing.run_kubectl("get", "namespaces")
        existing.service_account_kubeconfig(namespace="default", name="default", path=tmp_path / "account")
        existing.run_kubectl("auth", "whoami", kubeconfig=tmp_path / "account")

    assert not existing.kubeconfig.exists()
    own_plane.run_kubectl("get", "namespaces")


def test_kubebuilder_assets_come_first_and_must_be_whole(
    binaries: Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    (assets / "kube-apiserver").symlink_to(binaries.kube_apiserver)
    (assets / "kubectl").symlink_to(binaries.kubectl)
    with pytest.raises(MissingPart, match="etcd"):
        Binaries.find()

    (assets / "etcd").symlink_to(binaries.etcd)
    three = Binaries.find()
    assert three is not None
    assert three.etcd == assets / "etcd"
    assert three.kube_controller_manager == binaries.kube_controller_manager

    (assets / "kube-controller-manager").symlink_to(binaries.kube_controller_manager)
    four = Binaries.find()
    assert four is not None
    assert four.kube_controller_manager == assets / "kube-controller-manager"


def test_build_says_that_everything_is_there(binaries: Binaries) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "sandbox.controlplane", "build"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == f"The control plane is ready in {binaries.kube_apiserver.parent}.\n"


def _claims(token: str) -> dict[str, int]:
    payload = token.split(".")[1]
    claims: dict[str, int] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def _belongs(process: psutil.Process, to: ControlPlane) -> bool:
    return process.cwd() == str(to.kubeconfig.parent)


def _ports(process: psutil.Process) -> list[int]:
    return [c.laddr.port for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
