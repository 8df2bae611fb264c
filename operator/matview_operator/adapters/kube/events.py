"""Kubernetes events of transitions, written one by one in the background; dropped rather than piled up."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from datetime import UTC, datetime

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from matview_operator.adapters.kube.client import REQUEST_SECONDS, api_errors
from matview_operator.api.model import API_VERSION, GROUP
from matview_operator.domain.conditions import Transition
from matview_operator.engine.ports import ApiUnavailable, ObjectRef

log = logging.getLogger(__name__)

_QUEUED = 1000
_NOTE_BYTES = 1000
"""The API server refuses notes of 1,024 bytes and more."""


class KubeEvents:
    """A bounded queue in front of events.k8s.io."""

    def __init__(self, api: client.ApiClient) -> None:
        self._events = client.EventsV1Api(api)
        self._queue: asyncio.Queue[tuple[ObjectRef, Transition, datetime]] = asyncio.Queue(maxsize=_QUEUED)

    def record(self, ref: ObjectRef, transition: Transition) -> None:
        """Queue one event; when a storm has filled the queue it goes to the log alone."""
        try:
            self._queue.put_nowait((ref, transition, datetime.now(UTC)))
        except asyncio.QueueFull:
            log.warning("event dropped: %s", transition.reason, extra={"action": "event", "object": str(ref.key)})

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            ref, transition, when = await self._queue.get()
            try:
                with api_errors():
                    await self._events.create_namespaced_event(
                        ref.key.namespace, _event(ref, transition, when), _request_timeout=REQUEST_SECONDS
                    )
            except (ApiException, ApiUnavailable) as error:
                status = getattr(error, "status", None)
                log.warning("event not written (%s)", status, extra={"action": "event", "object": str(ref.key)})
            finally:
                self._queue.task_done()

    async def flush(self, *, seconds: float) -> None:
        """Wait until all are written, for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._queue.join()
        except TimeoutError:
            log.warning("%d events were not written", self._queue.qsize(), extra={"action": "event"})


def _event(ref: ObjectRef, transition: Transition, when: datetime) -> client.EventsV1Event:
    note = transition.message.encode()[:_NOTE_BYTES].decode(errors="ignore")
    return client.EventsV1Event(
        metadata=client.V1ObjectMeta(name=f"{ref.key.name[:200]}.{uuid.uuid4().hex[:16]}", namespace=ref.key.namespace),
        event_time=when,
        type=transition.type,
        reason=transition.reason,
        action="Refresh",
        note=note or transition.reason,
        regarding=client.V1ObjectReference(
            api_version=API_VERSION, kind=ref.kind, namespace=ref.key.namespace, name=ref.key.name, uid=ref.uid
        ),
        reporting_controller=f"{GROUP}/operator",
        reporting_instance=socket.gethostname()[:128],
    )
