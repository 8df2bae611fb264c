"""The cluster that all tests here share, and a namespace of its own for each of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from rich.console import Console
from sandbox.controlplane import Cluster, ExistingCluster
from sandbox.controlplane.binaries import Binaries
from sandbox.errors import SandboxError
from sandbox.operator_process import OperatorProcess
from sandbox.postgres import PostgresServer
from tests.canaries import looked_at
from tests.cluster.exposition import scrape
from tests.cluster.operators import Operators
from tests.cluster.planes import MANIFESTS, install, started
from tests.cluster.tenant import Tenant
from tests.databases import Databases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from tests.database import Database

REVISION = "0123456789abcdef"
"""What the operator is told that it was built from."""
CLUSTER_VARIABLE = "TEST_CLUSTER"
_LOG_LINES = 40


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the programs before the first test: no test's time limit is meant for minutes of compiling."""
    ours = any(item.path.is_relative_to(Path(__file__).parent) for item in session.items)
    if not ours or session.config.option.collectonly:
        return
    _wants_current()
    capture = session.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        try:
            Binaries.obtain(console=Console())
        except SandboxError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the servers' logs beside a failure."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("control_plane")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.extend((f"End of {log.name}", _end_of(log)) for log in cluster.logs)
    operator = getattr(item, "funcargs", {}).get("operator")
    if report.failed and isinstance(operator, OperatorProcess):
        report.sections.append(("End of the operator's log", _end_of(operator.log)))
    return report


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A control plane started for this session; with TEST_CLUSTER=current the user's own cluster instead.

    A KUBECONFIG in the environment does not matter otherwise.
    """
    directory = tmp_path_factory.mktemp("control-plane")
    if _wants_current():
        with ExistingCluster.current(directory) as existing:
            capture = pytestconfig.pluginmanager.getplugin("capturemanager")
            assert capture is not None
            with capture.global_and_fixture_disabled():
                print(f"\nTesting with your cluster: context {existing.context}")  # noqa: T201 - for the user
            yield existing
        return
    with started(directory) as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: Cluster) -> Iterator[str]:
    """A fresh namespace for one test, whose deletion is begun at its end but not waited for."""
    name = f"test-{uuid4().hex[:12]}"
    control_plane.run_kubectl("create", "namespace", name)
    yield name
    control_plane.run_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """The cluster with all that an operator needs there."""
    install(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def operator(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator as a process under its own role, for all namespaces.

    Gone with the module: it would be the rival of the operators that other tests start.
    """
    directory = tmp_path_factory.mktemp("operator")
    with OperatorProcess.start(
        control_plane=installed, directory=directory, env={"MATVIEW_REVISION": REVISION}
    ) as process:
        process.wait_ready()
        yield process
        if process.alive:
            looked_at(scrape(process).encode(), place="metrics of the operator")


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The databases of a PostgreSQL 18 for the whole session."""
    directory = tmp_path_factory.mktemp("pg18")
    with PostgresServer.start(version=18, directory=directory, in_memory=True) as server:
        yield Databases(server)


@pytest.fixture
async def pg(databases: Databases) -> AsyncIterator[Database]:
    """An empty database with the ledger."""
    async with databases.lend("ledger") as made:
        yield made


@pytest.fixture
def overlay(tmp_path: Path, namespace: str) -> Path:
    """The namespaced installation for a namespace of the user's, as its comment says to write it."""
    for folder in ("crds", "manifests"):
        shutil.copytree(MANIFESTS.parent / folder, tmp_path / folder)
    mine = tmp_path / "manifests" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"namespace: {namespace}\nresources: [../namespaced]\n")
    return mine


@pytest.fixture
def tenant(installed: Cluster, namespace: str, pg: Database) -> Tenant:
    """A namespace and a database; no operator by itself."""
    return Tenant(cluster=installed, namespace=namespace, database=pg)


@pytest.fixture
def operators(installed: Cluster, tmp_path: Path, namespace: str) -> Iterator[Operators]:
    made = Operators(installed, tmp_path, namespace)
    yield made
    for process in made.started:
        if process.alive:
            process.stop()


def _wants_current() -> bool:
    wish = os.environ.get(CLUSTER_VARIABLE, "")
    if wish not in ("", "current"):
        raise pytest.UsageError(f"{CLUSTER_VARIABLE} is {wish!r}; the only value it can have is 'current'.")
    return wish == "current"


def _end_of(log: Path) -> str:
    if not log.exists():
        return "(never written)"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
