"""Lists the objects: once at start, so that all are known before anything is judged, then to prune lost deletions."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from matview_operator.adapters.kube.client import REQUEST_SECONDS, api_errors
from matview_operator.api.database import MatviewDatabase
from matview_operator.api.model import GROUP, VERSION
from matview_operator.api.policy import MatviewRefreshPolicy
from matview_operator.domain.reading import read_policy_status
from matview_operator.engine.intake import Intake
from matview_operator.engine.ports import ApiUnavailable

log = logging.getLogger(__name__)

PERIOD_SECONDS = 300.0
PAGE = 100
"""Objects of one answer: as text and parsed, thousands would take more memory than all that is kept of them."""
RELISTED_SECONDS = 5.0
"""From when a watch began anew to a list of our own; by then the watches have named what there is."""
_START_PAUSE_SECONDS = 2.0


def _light(policy: dict[str, Any]) -> dict[str, Any]:
    """The same with its status read: what histories take as parsed JSON, thousands of them are too many to hold."""
    return policy | {"status": read_policy_status(policy)}


class Resync:
    """Lists in the namespaces that are watched, or everywhere."""

    def __init__(self, api: client.ApiClient, *, intake: Intake, namespaces: Sequence[str]) -> None:
        self._objects = client.CustomObjectsApi(api)
        self._intake = intake
        self._namespaces = namespaces
        self._unnamed: set[str] = set()
        """What was loaded, and is to be named once by the first list of its watch."""
        self._relisted = asyncio.Event()

    async def load(self) -> None:
        """List all once, databases first; waits until the API server answers."""
        while True:
            try:
                databases = deque([item async for item in self._list(MatviewDatabase.PLURAL)])
                policies = deque([_light(item) async for item in self._list(MatviewRefreshPolicy.PLURAL)])
                break
            except (ApiUnavailable, ApiException) as error:
                why = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
                log.warning(
                    "cannot list this group's objects yet (%s); are the CRDs and the role applied?",
                    why,
                    extra={"action": "load"},
                )
                await asyncio.sleep(_START_PAUSE_SECONDS)
        counts = len(policies), len(databases)
        for seen, bodies in ((self._intake.database_seen, databases), (self._intake.policy_seen, policies)):
            # Each is let go at once, so that what is made of it can take its place in memory.
            while bodies:
                try:
                    seen(bodies.popleft())
                except Exception:  # One object's surprise keeps nobody else from being refreshed.
                    log.exception("object not taken in", extra={"action": "load"})
        self._unnamed = self._intake.known_uids()
        log.info("loaded %d policies and %d databases", *counts, extra={"action": "load"})

    def named(self, body: Any) -> None:
        """The list that a watch begins with has this object; to be told before the intake.

        Of one that is known and was named before, it says that the watch began anew, because what it was to go on from
        is gone from the API server; and with it the news of deletions.
        """
        uid = body["metadata"]["uid"]
        if uid in self._unnamed:
            self._unnamed.remove(uid)
        elif self._intake.knows(uid):
            self._relisted.set()

    async def run(self) -> None:
        """Prune until cancelled: now and then, and soon after a watch began anew."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._relisted.wait()
                    await asyncio.sleep(RELISTED_SECONDS)
            relisted = self._relisted.is_set()
            self._relisted.clear()
            if not await self._prune() and relisted:
                self._relisted.set()

    async def _prune(self) -> bool:
        """List, and forget what is not there any more; whether the API server answered."""
        known = self._intake.known_uids()
        try:
            listed = {
                str(item["metadata"]["uid"])
                for plural in (MatviewDatabase.PLURAL, MatviewRefreshPolicy.PLURAL)
                async for item in self._list(plural)
            }
        except (ApiUnavailable, ApiException):
            log.warning("the periodic list failed; nothing is pruned", extra={"action": "resync"})
            return False
        self._intake.prune(known_before=known, listed=listed)
        return True

    async def _list(self, plural: str) -> AsyncIterator[dict[str, Any]]:
        for namespace in self._namespaces or (None,):
            token: str | None = None
            while True:
                page = await self._page(plural, namespace, token)
                for item in page["items"]:
                    # Half of an object, and nothing to us.
                    item["metadata"].pop("managedFields", None)
                    yield item
                token = page["metadata"].get("continue")
                if not token:
                    break

    async def _page(self, plural: str, namespace: str | None, token: str | None) -> Any:
        with api_errors():
            if namespace is None:
                return await self._objects.list_cluster_custom_object(
                    GROUP, VERSION, plural, limit=PAGE, _continue=token, _request_timeout=REQUEST_SECONDS
                )
            return await self._objects.list_namespaced_custom_object(
                GROUP, VERSION, namespace, plural, limit=PAGE, _continue=token, _request_timeout=REQUEST_SECONDS
            )
