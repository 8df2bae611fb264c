"""One tenant of a test: a namespace, a Secret, a MatviewDatabase, policies, and what comes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from sandbox.controlplane import Cluster
from tests.database import MV_OPERATOR, Database

API_VERSION = "matviews.skeldir.io/v1beta1"
Json = dict[str, Any]


@dataclass(kw_only=True)
class Tenant:
    """Speaks kubectl, as a user would."""

    cluster: Cluster
    namespace: str
    database: Database
    applied: list[str] = field(default_factory=list)

    def apply(self, *objects: Json) -> str:
        """Apply objects in the namespace; returns kubectl's words."""
        items = [{**item, "metadata": {"namespace": self.namespace, **item["metadata"]}} for item in objects]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        return self.cluster.run_kubectl("apply", "-f", "-", input=document).stdout

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.run_kubectl("-n", self.namespace, *arguments, check=check).stdout

    def connect(self, name: str = "analytics", *, role: str = MV_OPERATOR, spec: Json | None = None) -> None:
        """Apply a MatviewDatabase and its Secret for the test's database."""
        self.apply(self.secret(name, role=role), database(name, spec))

    def secret(self, name: str = "analytics", *, role: str = MV_OPERATOR, **overrides: str) -> Json:
        """A Secret in CloudNativePG's keys; `overrides` replace values, an empty one drops its key."""
        url = urlsplit(self.database.url(role))
        data = {
            "host": url.hostname or "",
            "port": str(url.port),
            "dbname": unquote(url.path[1:]),
            "username": role,
            "password": unquote(url.password or ""),
            **overrides,
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{name}-app"},
            "stringData": {key: value for key, value in data.items() if value},
        }

    def get(self, name: str, kind: str = "mvrp") -> Json:
        """An object as the API server has it."""
        found: Json = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def wait(
        self, name: str, holds: Callable[[Json], Any], *, kind: str = "mvrp", seconds: float = 30, what: str = ""
    ) -> Json:
        """Poll until `holds(status)` is true and return the status; fails with the last status seen."""
        deadline = time.monotonic() + seconds
        status: Json = {}
        while time.monotonic() < deadline:
            status = self.get(name, kind).get("status", {})
            if holds(status):
                return status
            time.sleep(0.3)
        raise AssertionError(f"{kind} {name}: not {what or 'so'} within {seconds} s: {json.dumps(status, indent=1)}")

    def events(self, name: str) -> list[Json]:
        """The events about an object, oldest first."""
        found = json.loads(self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        about = [event for event in found if event["regarding"]["name"] == name]
        return sorted(about, key=lambda event: str(event["eventTime"]))

    def request(self, name: str, token: str) -> None:
        """Ask for a refresh now."""
        self.kubectl("annotate", "--overwrite", "mvrp", name, f"matviews.skeldir.io/requestedAt={token}")

    def audited(self) -> list[Json]:
        """What ServiceAccounts asked of the API server in the namespace, and what it answered."""
        return [entry for entry in audit(self.cluster) if entry.get("objectRef", {}).get("namespace") == self.namespace]

    def refresh_now(self, name: str, token: str, *, seconds: float = 30) -> Json:
        """Ask for a refresh and wait until it is answered; returns the status."""
        self.request(name, token)
        return self.wait(
            name, lambda status: status.get("lastHandledRequest") == token, seconds=seconds, what=f"answered {token}"
        )


def audit(cluster: Cluster) -> list[Json]:
    """All that ServiceAccounts asked of the API server."""
    log = cluster.kubeconfig.with_name("audit.log")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def database(name: str = "analytics", spec: Json | None = None) -> Json:
    """A MatviewDatabase whose Secret is called `<name>-app`; its views may be refreshed as often as policies like."""
    limits = {"minIntervalSeconds": 0, **(spec or {}).get("limits", {})}
    return {
        "apiVersion": API_VERSION,
        "kind": "MatviewDatabase",
        "metadata": {"name": name},
        "spec": {"secretRef": {"name": f"{name}-app"}, "sslMode": "disable", **(spec or {}), "limits": limits},
    }


def policy(name: str, *views: str | Json, every: int | None = None, **spec: Any) -> Json:
    """A policy; without `every` or a schedule it is due once a year, so that only requests run it."""
    schedule = {"everySeconds": every} if every else {"cron": "0 0 1 1 *"}
    return {
        "apiVersion": API_VERSION,
        "kind": "MatviewRefreshPolicy",
        "metadata": {"name": name},
        "spec": {
            "databaseRef": {"name": "analytics"},
            "views": [{"name": view} if isinstance(view, str) else view for view in views],
            "schedule": schedule,
            **spec,
        },
    }


def condition(status: Json, kind: str) -> Json:
    """A condition, or an empty dictionary."""
    return next((found for found in status.get("conditions", ()) if found["type"] == kind), {})


def is_ready(status: Json) -> bool:
    """Whether Ready is True."""
    return bool(condition(status, "Ready").get("status") == "True")


def not_ready_because(reason: str) -> Callable[[Json], bool]:
    """Whether Ready is False for this reason."""
    return lambda status: (
        condition(status, "Ready").get("status") == "False" and condition(status, "Ready").get("reason") == reason
    )
