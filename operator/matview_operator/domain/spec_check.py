"""The rules of a spec once more, in the operator: for objects older than a rule, and what a schema cannot say.

Each problem is one sentence that begins with the field and says what to do; it goes into a condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from matview_operator.api.database import DatabaseLimits, MatviewDatabaseSpec
from matview_operator.api.policy import Consistency, Isolation, MatviewRefreshPolicySpec, Retry, Schedule
from matview_operator.api.scalar import CRON, SETTING
from matview_operator.api.view import Concurrently, Guard
from matview_operator.api.window import Window
from matview_operator.domain.cron import calendar
from matview_operator.domain.errors import InvalidName
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.search_path import search_path_problems
from matview_operator.domain.text import is_printable
from matview_operator.domain.view import GLOBAL, IDENTIFIER_BYTES, ViewName, check_identifier
from matview_operator.domain.windows import never_open

RESERVED_SETTING = "app.execution_context"
"""The operator sets it to say that a worker is at work; a tenant id in it would undo that."""

_FIELDS = "minute hour day-of-month month day-of-week, as in */5 * * * *"
_UNKNOWN_ZONE = "no such time zone in the IANA database; write one as in Etc/UTC or Europe/Berlin."
_ANY_INSTANT = datetime(2024, 1, 1, tzinfo=UTC)
"""Where the search for a matching date starts; the next 50 years hold every combination of date and weekday."""


def check_policy(spec: MatviewRefreshPolicySpec) -> list[str]:
    """Return what is wrong with a policy's spec by itself, nothing if all is well."""
    return [
        *_schedule(spec.schedule),
        *_jitter(spec),
        *_tenant(spec),
        *_views(spec),
        *_consistency(spec),
        *_retry(spec.retry),
    ]


def check_timeouts(spec: MatviewRefreshPolicySpec, *, limits: DatabaseLimits) -> list[str]:
    """Return which views ask for more time than their MatviewDatabase allows."""
    return [
        f"spec.views[{index}].timeoutSeconds: {view.timeout_seconds} is more than limits.timeoutSeconds of the "
        f"MatviewDatabase, {limits.timeout_seconds}; lower it, or raise the limit."
        for index, view in enumerate(spec.views)
        if view.timeout_seconds is not None and view.timeout_seconds > limits.timeout_seconds
    ]


def too_dense(timetable: Timetable, *, limits: DatabaseLimits, now: datetime) -> str | None:
    """What there is to say of a schedule that is denser than its MatviewDatabase lets it be; None if it is not."""
    gap = timetable.least_gap(now).total_seconds()
    if gap >= limits.min_interval_seconds:
        return None
    return (
        f"The schedule has slots {gap:g} s apart, and limits.minIntervalSeconds of the MatviewDatabase keeps refreshes "
        f"of a view {limits.min_interval_seconds} s apart: slots wait, and those that a newer one overtakes are "
        "missed. Schedule fewer, or have the limit lowered."
    )


def check_database(spec: MatviewDatabaseSpec) -> list[str]:
    """Return what is wrong with a database's spec by itself, nothing if all is well."""
    problems = [f"spec.searchPath{problem}" for problem in search_path_problems(spec.search_path)]
    if spec.database is not None and "\0" in spec.database:
        problems.append("spec.database: a PostgreSQL name cannot hold a NUL character.")
    if spec.database is not None and len(spec.database.encode()) > IDENTIFIER_BYTES:
        problems.append(f"spec.database: a PostgreSQL name has at most {IDENTIFIER_BYTES} bytes; shorten it.")
    return [*problems, *_windows(spec.windows)]


def _schedule(schedule: Schedule) -> Iterator[str]:
    ways = {
        "cron": schedule.cron,
        "everySeconds": schedule.every_seconds,
        "maxStalenessSeconds": schedule.max_staleness_seconds,
    }
    match [name for name, value in ways.items() if value is not None]:
        case []:
            yield "spec.schedule: write cron, everySeconds or maxStalenessSeconds; one of them is needed."
        case [_]:
            pass
        case several:
            yield f"spec.schedule: {' and '.join(several)} exclude each other; leave one."
    if schedule.cron is not None and (problem := _cron_problem(schedule.cron)):
        yield f"spec.schedule.cron: {problem}"
    if not _is_known_zone(schedule.time_zone):
        yield f"spec.schedule.timeZone: {_UNKNOWN_ZONE}"


def _windows(windows: Sequence[Window]) -> Iterator[str]:
    problems = []
    for index, window in enumerate(windows):
        if problem := _cron_problem(window.cron):
            problems.append(f"spec.windows[{index}].cron: {problem}")
        if not _is_known_zone(window.time_zone):
            problems.append(f"spec.windows[{index}].timeZone: {_UNKNOWN_ZONE}")
    yield from problems
    if not problems and windows and never_open(windows, _ANY_INSTANT):
        yield (
            "spec.windows: they leave no moment of a year in which a refresh may start; shorten a Deny window, or have "
            "an Allow window open at another time. To stop everything write suspend: true."
        )


@lru_cache(maxsize=1024)
def _cron_problem(cron: str) -> str | None:
    if not re.fullmatch(CRON, cron):  # cronsim alone would take a sixth field, for seconds, and odd letters
        return f"five fields are needed: {_FIELDS}."
    try:
        next(CronSim(cron, _ANY_INSTANT))
    except CronSimError as error:
        return f"{str(error).lower()}; the fields are {_FIELDS}."
    except StopIteration:
        return "no date matches it, ever; change the day of the month or the day of the week."
    return None


def _jitter(spec: MatviewRefreshPolicySpec) -> Iterator[str]:
    every, cron = spec.schedule.every_seconds, spec.schedule.cron
    if spec.schedule.max_staleness_seconds is not None and spec.jitter_seconds > 0:
        yield "spec.jitterSeconds: maxStalenessSeconds has slots that are spread by themselves; remove it."
        return
    if every is not None:
        shortest = every
    elif cron is not None and _cron_problem(cron) is None:
        shortest = calendar(cron).shortest_gap // timedelta(seconds=1)
    else:
        return
    if spec.jitter_seconds > shortest:
        yield (
            f"spec.jitterSeconds: {spec.jitter_seconds} is more than the {shortest} seconds between two slots of the "
            "schedule; lower it."
        )


def _is_known_zone(key: str) -> bool:
    try:
        ZoneInfo(key)
    except (ValueError, KeyError, OSError):  # a key that leaves the database's folder; unknown; a folder itself
        return False
    return True


def _tenant(spec: MatviewRefreshPolicySpec) -> Iterator[str]:
    if spec.isolation is Isolation.TENANT and spec.tenant_id is None:
        yield "spec.tenantId: isolation Tenant needs it; write whose views these are, or use isolation Shared."
    if spec.tenant_id == GLOBAL:
        yield "spec.tenantId: GLOBAL stands for no tenant; leave tenantId out."
    elif not is_printable(spec.tenant_id or ""):
        yield "spec.tenantId: only printable characters are allowed."
    if not re.fullmatch(SETTING, spec.tenant_setting):
        yield "spec.tenantSetting: write the name of a setting with a dot, as in app.current_tenant_id."
    elif spec.tenant_setting.lower() == RESERVED_SETTING:
        yield f"spec.tenantSetting: {RESERVED_SETTING} is the operator's own; use another setting."


def _views(spec: MatviewRefreshPolicySpec) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for index, view in enumerate(spec.views):
        try:
            ViewName(schema=view.schema_name, name=view.name)
        except InvalidName as error:
            yield f"spec.views[{index}]: {error}"
        if (view.schema_name, view.name) in seen:
            yield f"spec.views[{index}]: {view.schema_name}.{view.name} is listed twice; remove one."
        seen.add((view.schema_name, view.name))
        for number, other in enumerate(view.depends_on or ()):
            try:
                ViewName(schema=other.schema_name, name=other.name)
            except InvalidName as error:
                yield f"spec.views[{index}].dependsOn[{number}]: {error}"
        if view.guard is not None:
            yield from (f"spec.views[{index}].guard{problem}" for problem in _guard(view.guard))


def _guard(guard: Guard) -> Iterator[str]:
    if guard == Guard():
        yield ": an empty guard checks nothing; write minRows, maxRowLossPercent or keepTenants, or remove it."
    if guard.keep_tenants is not None:
        try:
            check_identifier(guard.keep_tenants, what="column name")
        except InvalidName as error:
            yield f".keepTenants: {error}"


def _retry(retry: Retry) -> Iterator[str]:
    if retry.backoff_seconds > retry.max_backoff_seconds:
        yield (
            f"spec.retry.backoffSeconds: {retry.backoff_seconds} is more than maxBackoffSeconds, "
            f"{retry.max_backoff_seconds}; lower it, or raise the other."
        )


def _consistency(spec: MatviewRefreshPolicySpec) -> Iterator[str]:
    ways = {spec.concurrently, *(view.concurrently for view in spec.views)}
    if spec.consistency is Consistency.GROUP and Concurrently.NEVER in ways:
        yield (
            "spec.consistency: Group and concurrently Never exclude each other, because readers would wait for the "
            "whole group; write View, or IfPossible."
        )
