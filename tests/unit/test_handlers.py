"""What kopf is told: to go on asking, whatever the API server, or what stands before it, answers meanwhile."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar

import aiohttp
import kopf
import pytest
from kopf._cogs.clients import api

from matview_operator.adapters.kube.handlers import NoMemories, configure

pytestmark = pytest.mark.looptime

OUTAGE_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Answer:
    """What kopf wants to know of an answer."""

    status: HTTPStatus
    headers: ClassVar[MappingProxyType[str, str]] = MappingProxyType({})

    async def json(self) -> None: ...

    def raise_for_status(self) -> None:
        asked: Any = None
        raise aiohttp.ClientResponseError(asked, (), status=self.status)


@dataclass(slots=True)
class OutOfOrder:
    """Kopf's session, and its context, of a server that answers 503 and 403 by turns for an hour."""

    asked: list[float] = field(default_factory=list)
    server: str = "https://cluster.example"

    @property
    def session(self) -> OutOfOrder:
        return self

    async def request(self, **_: Any) -> Answer:
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        if now >= OUTAGE_SECONDS:
            return Answer(HTTPStatus.OK)
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE if len(self.asked) % 2 else HTTPStatus.FORBIDDEN)


async def test_a_watch_outlives_an_hour_of_refusals_and_goes_on_soon_after() -> None:
    settings, far_end = kopf.OperatorSettings(), OutOfOrder()
    configure(settings)
    context: Any = far_end
    answer = await api.request("get", "apis", settings=settings, context=context, logger=logging.getLogger("kopf"))
    assert answer.status == HTTPStatus.OK
    assert OUTAGE_SECONDS <= far_end.asked[-1] <= OUTAGE_SECONDS + 10
    assert len(far_end.asked) < OUTAGE_SECONDS / 5


async def test_kopf_remembers_nothing_of_an_object() -> None:
    memories = NoMemories()
    body: Any = {"metadata": {"uid": "one", "name": "mv"}}
    first = await memories.recall(body, noticed_by_listing=True, memobase=kopf.Memo(a=1))
    assert first.noticed_by_listing
    assert getattr(first.memo, "a", None) == 1
    assert await memories.recall(body) is not first
    assert [*memories.iter_all_memories()] == []
