"""The public functions: refresh one view, or every view that the role may refresh, without Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from matview_operator.adapters.postgres.pool import Pool
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.view_graph import read_view_graph
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.connection import ConnectionTarget, parse_url
from matview_operator.domain.dependencies import dependency_order
from matview_operator.domain.errors import InvalidRequest, InvalidTarget
from matview_operator.domain.guard import guard_of
from matview_operator.domain.request import DEFAULT_TIMEOUT_SECONDS, Request
from matview_operator.domain.result import FAILURES, RefreshResult
from matview_operator.domain.view import ViewName

log = logging.getLogger(__name__)

URL_VARIABLE = "DATABASE_URL"

Answer = TypeVar("Answer")


class Options(TypedDict, total=False):
    """Keywords of all four functions."""

    database_url: str | None
    """`postgresql://user:password@host:port/database?sslmode=…`; by default the environment variable DATABASE_URL.
    The role must not be a superuser."""
    isolation: Isolation | Literal["Shared", "Tenant"]
    """Shared, the default: the view holds many tenants' rows, and the tenant id is a label. Tenant: the view is this
    tenant's alone, and its query finds the tenant id in the setting app.current_tenant_id."""
    concurrently: Concurrently | Literal["IfPossible", "Always", "Never"]
    """Whether readers go on reading meanwhile; IfPossible by default."""
    timeout_seconds: float
    """Of each view; 3600 by default."""
    idempotent: bool
    """Whether a correlation id does its work once only: a later call with the same one, the same isolation
    and tenant reports what was done then (`error_type` is Recovered), for as long as the ledger keeps it. Needs
    the ledger (`matview-operator migrate`); without it, or without a correlation id, every call refreshes."""
    verbose_errors: bool
    """Whether a result repeats what the server says of an error inside a view's query. It may hold rows, and goes to
    logs too; without it, only the kind of error is told."""
    min_rows: int | None
    """The fewest rows that each view may have then. This and the next two are the guard: where the new rows are not
    so, or it cannot be checked, all is rolled back (REJECTED_BY_GUARD)."""
    max_row_loss_percent: int | None
    """By how many percent of its rows a view may shrink, 0 to 99."""
    keep_tenants: str | None
    """A column, literally: each value that it had must be there still."""
    search_path: Sequence[str]
    """On PostgreSQL 15 and 16: schemas, literally, in which functions that views call may find names without one."""


async def refresh_single_async(
    view_name: str, tenant_id: str | None = None, correlation_id: str | None = None, **options: Unpack[Options]
) -> RefreshResult:
    """Refresh one view; whatever the server does is told by the result. See Options for the keywords.

    `view_name` is literal and unquoted, `schema.name`, or the bare name for schema public. A view whose lock another
    session holds is not waited for: SKIPPED_LOCK_HELD. Raises InvalidName, InvalidTarget and InvalidRequest for
    arguments that make no sense.
    """
    view = ViewName.from_raw(view_name)
    target, request = _order(tenant_id, correlation_id, **options)
    return await Refresher(verbose_errors=request.verbose_errors).refresh(target=target, run=request.run(view))


async def refresh_all_for_tenant_async(
    tenant_id: str | None, correlation_id: str | None = None, **options: Unpack[Options]
) -> list[RefreshResult]:
    """Refresh every materialized view that the role may refresh, one after another, each after those it reads.

    A view that reads a failed one is SKIPPED_UPSTREAM. Raises what `refresh_single_async` raises, InvalidDependencies
    for views that read each other in a cycle, and Problem if the views cannot be listed.
    """
    target, request = _order(tenant_id, correlation_id, **options)
    return [result async for result in refresh_all(target=target, request=request)]


def refresh_single(
    view_name: str, tenant_id: str | None = None, correlation_id: str | None = None, **options: Unpack[Options]
) -> RefreshResult:
    """Do as `refresh_single_async`, from a script; raises RuntimeError where an event loop runs."""
    return _run("refresh_single", lambda: refresh_single_async(view_name, tenant_id, correlation_id, **options))


def refresh_all_for_tenant(
    tenant_id: str | None, correlation_id: str | None = None, **options: Unpack[Options]
) -> list[RefreshResult]:
    """Do as `refresh_all_for_tenant_async`, from a script; raises RuntimeError where an event loop runs."""
    return _run("refresh_all_for_tenant", lambda: refresh_all_for_tenant_async(tenant_id, correlation_id, **options))


async def refresh_all(*, target: ConnectionTarget, request: Request) -> AsyncIterator[RefreshResult]:
    """Yield each view's result as it ends. Raises InvalidDependencies and Problem before the first."""
    graph = await read_view_graph(target)
    async for result in refresh_in_order(dependency_order(graph), reads=graph, target=target, request=request):
        yield result


async def refresh_in_order(
    views: Sequence[ViewName],
    *,
    reads: Mapping[ViewName, Collection[ViewName]],
    target: ConnectionTarget,
    request: Request,
) -> AsyncIterator[RefreshResult]:
    """Yield each view's result as it ends; a view that reads one that failed is skipped.

    Cancelled, it raises CancelledError whose first argument is the result of the view at work.
    """
    failed: dict[ViewName, str] = {}
    async with Pool() as pool:
        refresher = Refresher(pool, verbose_errors=request.verbose_errors)
        for view in views:
            blame = next((failed[upstream] for upstream in sorted(reads.get(view, ())) if upstream in failed), None)
            if blame is None:
                result = await refresher.refresh(target=target, run=request.run(view))
                if result.outcome in FAILURES:
                    failed[view] = str(view)
            else:
                result = _skipped(view, request=request, failed=blame)
                failed[view] = blame
            yield result


def _skipped(view: ViewName, *, request: Request, failed: str) -> RefreshResult:
    now = datetime.now(UTC)
    message = f"It reads {failed}, which failed; refreshing it would only repeat old rows."
    log.info(
        "%s %s",
        RefreshOutcome.SKIPPED_UPSTREAM.value,
        view,
        extra={
            "action": "refresh",
            "outcome": RefreshOutcome.SKIPPED_UPSTREAM,
            "reason": RefreshReason.UPSTREAM_FAILED,
            "detail": message,
            "view_name": str(view),
            "correlation_id": request.correlation_id,
        },
    )
    return request.run(view).result(
        RefreshOutcome.SKIPPED_UPSTREAM,
        started_at=now,
        ended_at=now,
        reason=RefreshReason.UPSTREAM_FAILED,
        message=message,
    )


def _order(
    tenant_id: str | None,
    correlation_id: str | None,
    *,
    database_url: str | None = None,
    isolation: Isolation | str = Isolation.SHARED,
    concurrently: Concurrently | str = Concurrently.IF_POSSIBLE,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    idempotent: bool = False,
    verbose_errors: bool = False,
    min_rows: int | None = None,
    max_row_loss_percent: int | None = None,
    keep_tenants: str | None = None,
    search_path: Sequence[str] = (),
) -> tuple[ConnectionTarget, Request]:
    url = database_url or os.environ.get(URL_VARIABLE)
    if not url:
        raise InvalidTarget(
            f"Which database? Pass database_url, or set {URL_VARIABLE} to postgresql://user:password@host/database."
        )
    try:
        whose, how = Isolation(isolation), Concurrently(concurrently)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return parse_url(url), new_request(
        tenant_id=tenant_id,
        correlation_id=correlation_id,
        isolation=whose,
        concurrently=how,
        timeout_seconds=timeout_seconds,
        idempotent=idempotent,
        verbose_errors=verbose_errors,
        guard=guard_of(min_rows=min_rows, max_row_loss_percent=max_row_loss_percent, keep_tenants=keep_tenants),
        search_path=search_path,
    )


def new_request(
    *,
    tenant_id: str | None,
    correlation_id: str | None,
    isolation: Isolation,
    concurrently: Concurrently,
    timeout_seconds: float,
    idempotent: bool,
    verbose_errors: bool = False,
    guard: Guard | None = None,
    search_path: Sequence[str] = (),
) -> Request:
    """Make a request; a missing correlation id is made up. Raises InvalidRequest."""
    unique = str(uuid.uuid4())
    known = unique if correlation_id is None else correlation_id
    return Request(
        tenant_id=tenant_id,
        isolation=isolation,
        concurrently=concurrently,
        timeout_seconds=timeout_seconds,
        correlation_id=known,
        # The ledger settles a token once and for all, so work that is to be repeatable needs a new one each time.
        token=known if idempotent else f"{known}/{unique}",
        verbose_errors=verbose_errors,
        guard=guard,
        search_path=tuple(search_path),
    )


def _run(name: str, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(call())
    raise RuntimeError(f"{name}() cannot wait inside a running event loop; await {name}_async() instead.")
