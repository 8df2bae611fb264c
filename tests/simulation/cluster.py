"""The API server as one network sees it: requests that fail or whose answers get lost, watches that lose and repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, TypeVar

from tests.simulation.ground import Ground
from tests.unit.memory_api import Body, MemoryApi
from tests.unit.ports import MemorySecrets

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import ApiUnavailable, ObjectRef, Status

T = TypeVar("T")

KINDS = ("MatviewDatabase", "MatviewRefreshPolicy")
_RELIST_SECONDS = 30.0
_BETWEEN_SECONDS = 1e-6
"""News of one watch never overtake each other."""


class Cluster:
    """The stored objects and Secrets, and every process's watches of them."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.api = MemoryApi(ground.true_clock, tell=self._tell, seconds=0)
        self.secrets = MemorySecrets()
        self.is_down = False
        self.trouble = 0.0
        """How often a request fails, or its answer gets lost."""
        self.watch_trouble = 0.0
        """How often a watch breaks, lags or repeats itself."""
        self.streams: list[Stream] = []
        self.written: Callable[[ObjectRef, Status], None] = lambda *_: None
        """Is told of each status that was stored."""

    async def write(self, ref: ObjectRef, status: Status, *, resource_version: str) -> str:
        async def store() -> str:
            version = await self.api.write(ref, status, resource_version=resource_version)
            self.written(ref, status)
            return version

        return await self.ask(store)

    async def read(self, *, namespace: str, name: str, field: str) -> Mapping[str, bytes]:
        try:
            return await self.ask(lambda: self.secrets.read(namespace=namespace, name=name, field=field))
        except ApiUnavailable as error:
            raise Problem(RefreshReason.CONNECTION_FAILED, f"Secret {name} could not be read: {error}") from None

    async def list(self, kind: str) -> list[Body]:
        """All objects of a kind; raises ApiUnavailable."""

        async def found() -> list[Body]:
            return [body for (of, _), body in self.api.objects.items() if of == kind]

        return await self.ask(found)

    async def ask(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A request that was sent is worked on, though who sent it is dead by then."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.ground.loop.after(self.ground.latency(), self._serve, act, answer)
        return await answer

    def _serve(self, act: Callable[[], Coroutine[Any, Any, T]], answer: asyncio.Future[T]) -> None:
        ground = self.ground
        if self.is_down:
            _fail(answer, ApiUnavailable("out of reach"))
        elif ground.chance(self.trouble):
            retry_after = 1.0 + ground.random.randrange(3) if ground.chance(0.5) else None
            _fail(answer, ApiUnavailable("the API server answers 429", retry_after=retry_after))
        else:
            try:
                done = _at_once(act())
            except Exception as error:  # noqa: BLE001 - the other side gets it
                ground.loop.after(ground.latency(), self._answer, answer, _fail, error)
            else:
                ground.loop.after(ground.latency(), self._answer, answer, _tell, done)

    def _answer(self, answer: asyncio.Future[T], how: Callable[[asyncio.Future[T], Any], None], what: object) -> None:
        if self.is_down or self.ground.chance(self.trouble):
            _fail(answer, ApiUnavailable("the answer got lost"))
        else:
            how(answer, what)

    def _tell(self, news: str, body: Body) -> None:
        for stream in self.streams:
            if body["kind"] == stream.kind:
                stream.pass_on(news, body)


class Stream:
    """One process's watch of one kind: in order, later, sometimes twice, and with gaps that a new list closes."""

    def __init__(
        self,
        cluster: Cluster,
        kind: str,
        *,
        seen: Callable[[Body], Any],
        gone: Callable[[Body], Any],
        context: Context,
    ) -> None:
        """`context`: the process's."""
        self.kind = kind
        self._cluster = cluster
        self._ground = cluster.ground
        self._seen = seen
        self._gone = gone
        self.context = context
        self._arrives = 0.0
        self._lag = 0.0
        self._broken = False

    def pass_on(self, news: str, body: Body) -> None:
        """Bring it to the process, unless the connection is broken or breaks now."""
        ground, trouble = self._ground, self._cluster.watch_trouble
        if self._cluster.is_down or ground.chance(trouble / 2):
            self._break()
        if self._broken:
            return
        if ground.chance(trouble):
            self._lag = 10 * ground.random.random()
        self._deliver(news, body)
        if ground.chance(trouble):
            self._deliver(news, body)

    def relist(self) -> None:
        """Show all that is there, as a watch does that begins anew: what was deleted meanwhile is not told."""
        if self._cluster.is_down:
            self._ground.loop.after(1 + self._ground.random.random(), self.relist)
            return
        self._broken = False
        self._lag = 0.0
        for (kind, _), body in self._cluster.api.objects.items():
            if kind == self.kind:
                self._deliver("ADDED", body)

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._ground.loop.after(_RELIST_SECONDS * self._ground.random.random(), self.relist)

    def _deliver(self, news: str, body: Body) -> None:
        soonest = self._ground.now + self._lag + self._ground.latency()
        self._arrives = max(self._arrives + _BETWEEN_SECONDS, soonest)
        tell = self._gone if news == "DELETED" else self._seen
        self._ground.loop.call_at(self._arrives, tell, body, context=self.context)


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing but its turn."""
    try:
        while True:
            work.send(None)
    except StopIteration as stop:
        done: T = stop.value
        return done


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # who asked may be dead


def _tell(answer: asyncio.Future[Any], what: object) -> None:
    if not answer.done():
        answer.set_result(what)
