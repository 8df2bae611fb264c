"""Fault 9: what a watch would go on from is compacted in etcd, so that the API server answers 410 Gone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sandbox.controlplane import ControlPlane
from sandbox.operator_process import OperatorProcess
from tests.cluster.exposition import scrape
from tests.cluster.operators import Operators
from tests.cluster.pair import make_noted_views
from tests.cluster.planes import install, started
from tests.cluster.relay import relayed
from tests.cluster.slots import Slots, broken_off, counted, refreshes
from tests.cluster.tenant import Json, Tenant, not_ready_because
from tests.refreshes import settled

EVERY = 5
GROUP = "/apis/matviews.skeldir.io/v1beta1"
PLURALS = ("matviewrefreshpolicies", "matviewdatabases")
VIEWS = ("steady", "changed", "after", "removed", "again", "anew", "orphan", "created")
AFTER = json.dumps({"spec": {"views": [{"name": "after"}]}})


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One whose watches are etcd's own. With its cache the API server would not notice that etcd has forgotten."""
    with started(tmp_path_factory.mktemp("uncached"), watch_cache=False) as plane:
        yield plane


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> ControlPlane:
    install(control_plane)
    return control_plane


def asked_by_kopf(tenant: Tenant, plural: str) -> list[Json]:
    """The watches and lists of one kind by which the operator hears of news, in the order of their beginning."""
    entries = [
        entry
        for entry in tenant.audited()
        if entry["objectRef"]["resource"] == plural
        and entry["userAgent"].startswith("kopf")
        and entry["stage"] == ("ResponseStarted" if entry["verb"] == "watch" else "ResponseComplete")
    ]
    return sorted(entries, key=lambda entry: str(entry["requestReceivedTimestamp"]))


def version_of(watch: Json) -> int:
    """The version after which it is to begin."""
    found = re.search(r"[?&]resourceVersion=(\d+)", watch["requestURI"])
    assert found, watch
    return int(found[1])


def is_gone(tenant: Tenant, plural: str, version: int) -> bool:
    """Whether a watch from this version on is answered 410."""
    path = f"{GROUP}/namespaces/{tenant.namespace}/{plural}?watch=true&resourceVersion={version}&timeoutSeconds=1"
    answer = tenant.kubectl("get", "--raw", path).splitlines()
    events = [json.loads(line) for line in answer]
    return [(event["type"], event["object"].get("code")) for event in events] == [("ERROR", 410)]


def shown(operator: OperatorProcess) -> set[str]:
    """The policies that it has metrics of."""
    return set(re.findall(r'matview_seconds_since_verified{[^}]*policy="([^"]+)"', scrape(operator)))


async def test_fault_9_what_happened_before_etcd_was_compacted_is_known_at_once_and_no_slot_lost_or_run_twice(
    operators: Operators, tenant: Tenant, control_plane: ControlPlane, tmp_path: Path
) -> None:
    await make_noted_views(tenant.database, *VIEWS)
    tenant.connect()
    tenant.connect("doomed")
    async with relayed(control_plane, tmp_path) as (relay, kubeconfig):
        operator = await asyncio.to_thread(operators.start, KUBECONFIG=kubeconfig)
        tenant.apply(
            *(counted(view, view, every=EVERY) for view in ("steady", "changed", "removed", "again")),
            counted("orphan", "orphan", every=EVERY, databaseRef={"name": "doomed"}),
        )
        for name in ("steady", "changed", "removed", "again", "orphan"):
            await asyncio.to_thread(tenant.wait, name, lambda status: "lastSlotTime" in status)

        relay.freeze()
        tenant.kubectl("delete", "mvrp", "removed", "again")
        tenant.kubectl("delete", "mvdb", "doomed")
        tenant.apply(counted("created", "created", every=EVERY), counted("again", "anew", every=EVERY))
        tenant.kubectl("patch", "mvrp", "changed", "--type=merge", "-p", AFTER)
        newest = control_plane.compact()
        before = {plural: len(asked_by_kopf(tenant, plural)) for plural in PLURALS}
        relay.renew()

        await asyncio.to_thread(tenant.wait, "orphan", not_ready_because("DatabaseNotFound"))
        await settled(
            partial(asyncio.to_thread, shown, operator), {"steady", "changed", "again", "orphan", "created"}, seconds=30
        )
        for plural in PLURALS:
            # It went on from where it was, heard that this is gone, listed, and watches from there.
            watch, listing, following = asked_by_kopf(tenant, plural)[before[plural] :][:3]
            assert [entry["verb"] for entry in (watch, listing, following)] == ["watch", "list", "watch"]
            assert version_of(watch) < newest <= version_of(following)
            assert is_gone(tenant, plural, version_of(watch))

        current = {"steady": "steady", "after": "changed", "anew": "again", "created": "created"}
        counts = {view: await refreshes(tenant, view) for view in VIEWS}

        async def going_on() -> set[str]:
            return {view for view in VIEWS if await refreshes(tenant, view) >= counts[view] + 2}

        await settled(going_on, current.keys(), seconds=30)
        assert {view for view in VIEWS if await refreshes(tenant, view) > counts[view]} == current.keys()
        assert operator.exit_code is None
        await asyncio.to_thread(operator.stop)
    assert operator.exit_code == 0
    assert "Traceback" not in operator.log_text()
    slots = {view: Slots.told(tenant.get(name)) for view, name in current.items()}
    assert {view: found.missed for view, found in slots.items()} == dict.fromkeys(current, 0)
    for view in ("steady", "anew", "created"):
        await slots[view].check_ledger(tenant.database)
    assert await broken_off(tenant.database) == 0
