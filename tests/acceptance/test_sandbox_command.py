"""`make sandbox`: the servers, how to reach them, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.reference import REFERENCE_VIEWS
from tests.acceptance.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SANDBOX = (sys.executable, "-m", "sandbox")
UP = "Ctrl-C stops the servers and cleans up."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's sandbox has its files; a developer's own is in the checkout."""
    return tmp_path_factory.mktemp("a sandbox")


@pytest.fixture(scope="module")
def sandbox(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A running sandbox."""
    home = tmp_path_factory.mktemp("sandbox")
    with Program([*SANDBOX, folder], folder=home, shows_passwords=True) as program:
        program.wait_for(UP)
        yield program


def variables(folder: Path) -> dict[str, str]:
    text = (folder / "env").read_text()
    return {name: shlex.split(value)[0] for name, value in re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)}


def in_shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody who has sourced the environment, and may have an old kubectl."""
    script = f"source {shlex.quote(str(folder / 'env'))} && {command}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)


def printed_operator(sandbox: Program) -> str:
    (command,) = re.findall(r"^KUBECONFIG=.* run$", sandbox.output, flags=re.MULTILINE)
    assert isinstance(command, str)
    return command


def test_the_environment_is_the_owners_alone_and_printed(sandbox: Program, folder: Path) -> None:
    environment = folder / "env"
    assert environment.stat().st_mode & 0o777 == 0o600
    assert environment.read_text() in sandbox.output
    assert {"KUBECONFIG", "DATABASE_URL", "ADMIN_DATABASE_URL"} <= variables(folder).keys()


async def test_the_urls_lead_to_a_migrated_and_seeded_database(sandbox: Program, folder: Path) -> None:
    found = {}
    for name in ("DATABASE_URL", "ADMIN_DATABASE_URL"):
        connection = await asyncpg.connect(variables(folder)[name], ssl=False)
        try:
            found[name] = await connection.fetchrow(
                """select current_user::text as role, r.rolsuper as superuser,
                   (select array_agg(matviewname::text order by 1) from pg_matviews) as views,
                   (select count(*) from attribution_events) + (select count(*) from attribution_allocations)
                     + (select count(*) from revenue_ledger) as rows,
                   to_regclass('matview_ops.refresh_run') is not null as ledger
                   from pg_roles r where r.rolname = current_user"""
            )
        finally:
            await connection.close()
    assert sandbox.servers >= 4
    owner, admin = found["DATABASE_URL"], found["ADMIN_DATABASE_URL"]
    assert owner is not None
    assert admin is not None
    assert (owner["role"], owner["superuser"]) == ("analytics_owner", False)
    assert admin["superuser"]
    assert admin["rows"] >= 200_000
    assert owner["rows"] == 0  # row-level security binds the owner too
    assert owner["views"] == sorted(REFERENCE_VIEWS)
    assert owner["ledger"]


@pytest.mark.usefixtures("sandbox")
def test_the_cluster_has_crds_role_namespaces_and_secrets_and_no_policies(folder: Path) -> None:
    assert (
        "Established" in in_shell(folder, "kubectl get crd -o jsonpath='{.items[*].status.conditions[*].type}'").stdout
    )
    allowed = "kubectl auth can-i --as=system:serviceaccount:matview-system:matview-operator"
    assert in_shell(folder, f"{allowed} watch mvrp").stdout == "yes\n"
    assert in_shell(folder, f"{allowed} list secrets").stdout == "no\n"
    for namespace in ("tenant-a", "tenant-b"):
        assert in_shell(folder, f"kubectl -n {namespace} get secret analytics-app").returncode == 0
    assert "No resources found" in in_shell(folder, "kubectl get mvrp -A").stderr
    password = variables(folder)["ADMIN_DATABASE_URL"].split(":")[2].split("@")[0]
    assert password not in in_shell(folder, "ps -ef").stdout


def test_the_printed_commands_start_the_operator_and_it_works(sandbox: Program, folder: Path, tmp_path: Path) -> None:
    (apply,) = re.findall(r"^kubectl apply -k .*$", sandbox.output, flags=re.MULTILINE)
    applied = in_shell(folder, apply)
    assert applied.returncode == 0, applied.stderr
    command = f"exec env {printed_operator(sandbox)}"
    with Program(["bash", "-c", command], folder=tmp_path) as operator:
        waited = in_shell(folder, "kubectl -n tenant-a wait mvrp/realtime-revenue --for=condition=Fresh --timeout=50s")
        assert waited.returncode == 0, waited.stderr + operator.output
        operator.send(signal.SIGTERM)
        assert operator.wait() == 0
        # Whoever runs as the operator's ServiceAccount is no administrator.
        assert "forbidden" not in operator.output
    account = re.findall(r"KUBECONFIG=('.*?'|\S+)", command)[0]
    secrets = in_shell(folder, f"KUBECONFIG={account} kubectl -n tenant-a get secrets")
    assert "Forbidden" in secrets.stderr


def test_a_second_sandbox_in_the_folder_is_refused(sandbox: Program, folder: Path, tmp_path: Path) -> None:
    with Program([*SANDBOX, folder], folder=tmp_path) as second:
        assert second.wait() == 1
        assert "stop that one first" in second.output
        assert second.servers == 0
    assert in_shell(folder, "kubectl get --raw /readyz").stdout == "ok", sandbox.output


async def test_ctrl_c_stops_the_servers_and_leaves_nothing(sandbox: Program, folder: Path) -> None:
    url = variables(folder)["DATABASE_URL"]
    sandbox.send(signal.SIGINT)
    assert await asyncio.to_thread(sandbox.wait) == 0, sandbox.output
    assert sandbox.leftovers() == []
    assert os.listdir(folder) == []  # noqa: PTH208 - names
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncpg.connect(url, ssl=False)
