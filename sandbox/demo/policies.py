"""Policies as the API server tells them."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import ZoneInfo

import aiohttp
import yaml
from cronsim import CronSim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

_PATH = "/apis/matviews.skeldir.io/v1beta1/matviewrefreshpolicies"
_REQUEST_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One slot or request that ended: an item of status.history."""

    slot_time: datetime | None
    """None for a request."""
    outcome: str
    started_at: datetime
    duration_ms: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A MatviewRefreshPolicy: what its status says, and when it is due by its own schedule."""

    uid: str
    namespace: str
    name: str
    tenant_id: str
    generation: int
    created_at: datetime
    suspended: bool
    every_seconds: int | None
    cron: str
    time_zone: str
    schedule: str
    ready: bool | None
    reason: str
    """Of the condition Ready."""
    next_slot: datetime | None
    data_as_of: datetime | None
    """Of its oldest view; None until all were refreshed."""
    rows_inserted: int
    rows_deleted: int
    history: tuple[Entry, ...]
    """Newest first."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Read the API server's document."""
        metadata, spec, status = document["metadata"], document["spec"], document.get("status", {})
        ready: Mapping[str, str] = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
        views = status.get("views", ())
        times = [_time(view.get("dataAsOf")) for view in views]
        return cls(
            uid=metadata["uid"],
            namespace=metadata["namespace"],
            name=metadata["name"],
            tenant_id=spec.get("tenantId", ""),
            generation=metadata["generation"],
            created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
            suspended=spec.get("suspend", False),
            every_seconds=spec["schedule"].get("everySeconds"),
            cron=spec["schedule"].get("cron", ""),
            time_zone=spec["schedule"].get("timeZone", "UTC"),
            schedule=status.get("schedule", ""),
            ready={"True": True, "False": False}.get(ready.get("status", "")),
            reason=ready.get("reason", ""),
            next_slot=_time(status.get("nextSlotTime")),
            data_as_of=min((time for time in times if time), default=None) if all(times) else None,
            rows_inserted=sum(view.get("rowsInserted", 0) for view in views),
            rows_deleted=sum(view.get("rowsDeleted", 0) for view in views),
            history=tuple(_entry(entry) for entry in status.get("history", ())),
        )

    def slots(self, *, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the instants in (after, until] at which its schedule makes it due; our own arithmetic."""
        if self.every_seconds is not None:
            slot = datetime.fromtimestamp(int(after.timestamp()) // self.every_seconds * self.every_seconds, UTC)
            while (slot := slot + timedelta(seconds=self.every_seconds)) <= until:
                yield slot
        else:
            for slot in CronSim(self.cron, after.astimezone(ZoneInfo(self.time_zone))):
                if slot > until:
                    return
                yield slot.astimezone(UTC)


class PolicyReader:
    """Lists all policies of a cluster, as the kubeconfig's user, in one request over a kept connection."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        cluster = document["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._session = aiohttp.ClientSession(
            base_url=cluster["server"],
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=authority)),
            headers={"Authorization": f"Bearer {document['users'][0]['user']['token']}"},
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            raise_for_status=True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def policies(self) -> tuple[Policy, ...]:
        """Return the policies of all namespaces, by namespace and name; raises aiohttp.ClientError, TimeoutError."""
        async with self._session.get(_PATH) as response:
            items = (await response.json())["items"]
        policies = (Policy.read(item) for item in items)
        return tuple(sorted(policies, key=lambda policy: (policy.namespace, policy.name)))


def _entry(document: Mapping[str, Any]) -> Entry:
    return Entry(
        slot_time=_time(document.get("slotTime")),
        outcome=document["outcome"],
        started_at=datetime.fromisoformat(document["startedAt"]),
        duration_ms=document["durationMs"],
        message=document.get("message", ""),
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
