"""T8: passwords, URLs and tokens reach nothing that is written, at DEBUG and in asyncio's debug mode either.

What is logged, stored and told is searched at the end of the suite as well (tests/canaries.py); here everything that
can go wrong with a Secret goes wrong, and what is searched is made sure to be there.
"""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sandbox.controlplane import Cluster
from sandbox.operator_process import OperatorProcess
from sandbox.password import MARK
from sandbox.processes import free_port
from tests.canaries import disguises
from tests.cluster.exposition import scrape
from tests.cluster.tenant import Json, Tenant, condition, database, is_ready, policy
from tests.database import APP_OWNER, MV_OPERATOR

SECRETS: dict[str, tuple[dict[str, str], str]] = {
    "wrong-password": ({"password": f"{MARK}-wrong"}, "AuthenticationFailed"),
    "password-as-port": ({"port": f"{MARK}"}, "SecretInvalid"),
    "password-as-host": ({"host": f"{MARK}/.."}, "SecretInvalid"),
    "password-with-a-line-break": ({"password": f"{MARK}\n"}, "SecretInvalid"),
    "url-with-a-bad-port": ({"host": "", "uri": f"postgresql://u:{MARK}@h:{MARK}/d"}, "SecretInvalid"),
    "url-with-an-option": ({"host": "", "uri": f"postgresql://u:p@h/d?{MARK}=1"}, "SecretInvalid"),
    "url-with-a-raw-hash": ({"host": "", "uri": f"postgresql://u:p#{MARK}@h/d"}, "SecretInvalid"),
    "ca-that-is-none": ({"ca.crt": f"-----BEGIN {MARK}-----"}, "SecretInvalid"),
    "nobody-listens": ({"port": str(free_port())}, "ConnectionFailed"),
}


@pytest.fixture
def talkative(installed: Cluster, tmp_path: Path, namespace: str) -> Iterator[OperatorProcess]:
    """An operator that logs all that it can."""
    talks = {"MATVIEW_LOG_LEVEL": "DEBUG", "PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
    with OperatorProcess.start(
        control_plane=installed, directory=tmp_path / "operator", namespaces=[namespace], env=talks
    ) as process:
        process.wait_ready()
        yield process


async def test_t8_no_password_reaches_log_status_event_metric_or_process(
    talkative: OperatorProcess, tenant: Tenant
) -> None:
    await tenant.database.make_view()
    tenant.connect()
    objects: list[Json] = [policy("well", "mv", every=5)]
    for name, (values, _) in SECRETS.items():
        spec = {"sslMode": "verify-full"} if "ca.crt" in values else {}
        views = policy(name, "mv", databaseRef={"name": name}, schedule={"everySeconds": 5})
        objects += [tenant.secret(name, **values), database(name, spec), views]
    tenant.apply(*objects)
    tenant.wait("well", is_ready)
    for name, (_, reason) in SECRETS.items():
        status = tenant.wait(name, lambda status: condition(status, "Ready").get("status") == "False", what="told")
        assert condition(status, "Ready")["reason"] == reason, (name, status)
    # A run that is cut off on the server's side, and one that our own end stops.
    await tenant.database.execute_as(
        APP_OWNER,
        "create function slow() returns int language sql as $$ select 1 from pg_catalog.pg_sleep(60) $$;"
        "create materialized view slow as select slow() as id with no data",
    )
    tenant.apply(policy("slow", "slow", retry={"limit": 0}))
    tenant.wait("slow", is_ready)
    for cut in ("r1", "r2"):
        tenant.request("slow", cut)
        pid = await refreshing(tenant)
        if cut == "r1":
            await tenant.database.value_as("postgres", "select pg_terminate_backend($1)", pid)
            tenant.wait("slow", lambda status: status.get("lastHandledRequest") == "r1")
    metrics = scrape(talkative)
    process = psutil.Process(talkative.pid)
    environment, arguments, children = process.environ(), process.cmdline(), process.children()
    talkative.send(signal.SIGTERM)
    talkative.stop()
    log = talkative.log_text()
    written = [entry["requestObject"] for entry in tenant.audited() if "requestObject" in entry]
    outputs = {
        "log": log,
        "metrics": metrics,
        "statuses and events": str(written),
        "objects": tenant.kubectl("get", "mvrp,mvdb,events.events.k8s.io", "-o", "yaml"),
        "environment": str(environment),
        "arguments": str(arguments),
    }
    for place, text in outputs.items():
        assert len(text) > 50, place
        assert not [shape for shape in disguises(MARK) if shape.decode() in text], place
        assert tenant.database.passwords[MV_OPERATOR] not in text, place
    token = token_of(talkative)
    assert token not in log + metrics
    assert base64.b64encode(token.encode()).decode() not in log
    assert children == []
    assert '"level": "DEBUG"' in log
    assert "asyncio" in log
    assert sum("Interrupted" in str(each) or "INTERRUPTED" in str(each) for each in written) >= 1


async def refreshing(tenant: Tenant) -> int:
    """Wait for a backend that runs REFRESH and return its process id."""
    query = "select pid from pg_stat_activity where query ilike 'refresh%' and wait_event = 'PgSleep'"
    for _ in range(400):
        pid = await tenant.database.value_as("postgres", query)
        if isinstance(pid, int):
            return pid
        await asyncio.sleep(0.05)
    raise AssertionError("nobody refreshes")


def token_of(operator: OperatorProcess) -> str:
    """The ServiceAccount's token that the operator shows to the API server."""
    lines = operator.kubeconfig.read_text().splitlines()
    return next(line.split('"token":')[-1].split("token:")[-1].strip(' ",}') for line in lines if "token" in line)
