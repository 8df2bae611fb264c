"""Connects a moment before several views are due on one database: else the first runs wait, and make others wait, for
connections that are opened all at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from functools import partial

from matview_operator.domain.errors import Problem
from matview_operator.domain.run import session_setting
from matview_operator.engine.budget import Budget
from matview_operator.engine.holds import Holds
from matview_operator.engine.ports import Executor, Key
from matview_operator.engine.registry import Registry
from matview_operator.engine.step import steps_of
from matview_operator.engine.targets import Targets, usable

log = logging.getLogger(__name__)

_FEWEST_RUNS = 2
"""One alone connects as early as it would wait."""
_AT_ONCE = 8
_KNOWN_SECONDS = 60.0
"""So old may be what a Secret said: whoever refreshes reads it anew, and connects elsewhere if that says so."""


class Warmups:
    """Its failures are nobody's: who refreshes meets them again, and tells."""

    def __init__(
        self, *, registry: Registry, executor: Executor, targets: Targets, holds: Holds, budget: Budget
    ) -> None:
        self._registry = registry
        self._budget = budget
        self._executor = executor
        self._targets = targets
        self._holds = holds
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        """By database."""

    def soon(self, due: Iterable[Key]) -> None:
        """Begin to connect where several of these policies' views will be refreshed; never waits."""
        runs: Counter[tuple[Key, str | None]] = Counter()
        for key in due:
            policy = self._registry.policies.get(key)
            spec = None if policy is None else policy.spec
            if policy is None or spec is None or policy.database_key is None or self._holds.closed_until(policy):
                continue
            setting = session_setting(spec.isolation, spec.tenant_setting)
            runs[policy.database_key, setting] += len(steps_of(spec))
        for (database, setting), number in runs.most_common():
            if number < _FEWEST_RUNS or len(self._tasks) >= _AT_ONCE:
                break
            if database not in self._tasks:
                task = asyncio.create_task(self._connect(database, setting, number))
                self._tasks[database] = task
                task.add_done_callback(partial(self._ended, database))

    def close(self) -> None:
        """Stop connecting; who tells of what is due must have stopped before."""
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, database: Key, _: asyncio.Task[None]) -> None:
        del self._tasks[database]

    async def _connect(self, key: Key, setting: str | None, runs: int) -> None:
        try:
            spec = usable(self._registry.databases.get(key), key)
            moment = asyncio.get_running_loop().time() - _KNOWN_SECONDS
            target = self._targets.read_since(spec, key, moment=moment) or await self._targets.resolve(spec, key)
            count = min(runs, self._budget.allowed(key))
            await self._executor.connect_ahead(target=target, tenant_setting=setting, count=count)
        except Problem as problem:
            log.debug("not connected ahead: %s", problem.reason, extra=_about(key))
        except Exception:  # a surprise of ours, which a run need not meet
            log.exception("connecting ahead failed", extra=_about(key))


def _about(database: Key) -> dict[str, str]:
    return {"action": "connect_ahead", "database": str(database)}
