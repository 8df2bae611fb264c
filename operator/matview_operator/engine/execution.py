"""One call of the executor, and a second one if the Secret was rotated meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.policy import Consistency, MatviewRefreshPolicySpec
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.result import NOT_LET_IN, RefreshResult
from matview_operator.domain.run import Run, group_timeout
from matview_operator.engine.ports import Executor
from matview_operator.engine.targets import SlotTarget


async def execute(
    executor: Executor,
    runs: Sequence[Run],
    *,
    where: SlotTarget,
    spec: MatviewRefreshPolicySpec,
    database: MatviewDatabaseSpec,
    begin: Callable[[], None],
) -> Sequence[RefreshResult]:
    """Refresh one view, or a group. Raises Problem if the Secret leads nowhere, and what `begin` raises.

    That is asked last of all whether it may: reading a Secret may take seconds.
    """
    target = await where.of(database)
    begin()
    results = await _once(executor, runs, target=target, spec=spec, database=database)
    if any(result.error_type in NOT_LET_IN for result in results):
        other = await where.instead_of(target, spec=database)
        if other is not None:
            begin()
            results = await _once(executor, runs, target=other, spec=spec, database=database)
    return results


async def _once(
    executor: Executor,
    runs: Sequence[Run],
    *,
    target: ConnectionTarget,
    spec: MatviewRefreshPolicySpec,
    database: MatviewDatabaseSpec,
) -> Sequence[RefreshResult]:
    if spec.consistency is Consistency.GROUP:
        seconds = group_timeout(spec, limits=database.limits)
        return await executor.refresh_group(target=target, runs=runs, timeout_seconds=seconds)
    return (await executor.refresh(target=target, run=runs[0]),)
