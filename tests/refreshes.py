"""Runs of the executor as tests order them: every field of a run with a default, every run over a real connection."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR

from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.run import Run, request_id
from matview_operator.domain.view import ViewName

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.database import Database, Gateway

    from matview_operator.domain.result import RefreshResult

POLICY = uuid.UUID("00000000-0000-4000-8000-000000000001")
"""The policy that runs belong to unless they say otherwise."""

TENANT_A = "11111111-1111-1111-1111-111111111111"
TENANT_B = "22222222-2222-2222-2222-222222222222"

TENANT: dict[str, Any] = {"isolation": Isolation.TENANT, "tenant_id": TENANT_A}
"""Fields of a run for one tenant alone."""

_RUN = Run(
    view=ViewName("public", "mv"),
    tenant_id=None,
    isolation=Isolation.SHARED,
    tenant_setting="app.current_tenant_id",
    concurrently=Concurrently.IF_POSSIBLE,
    timeout_seconds=20,
    lock_timeout_millis=None,
    allow_superuser=False,
    policy_uid=POLICY,
    slot_id=request_id("never"),
    due_at=None,
    correlation_id="test",
)


def a_run(view: ViewName | None = None, **fields: Any) -> Run:
    """Return a run of `view` (mv if none is given); each call is a request of its own unless it gives a slot_id."""
    fields.setdefault("slot_id", request_id(str(uuid.uuid4())))
    if view is not None:
        fields["view"] = view
    return replace(_RUN, **fields)


async def refresh(
    database: Database,
    view: ViewName | None = None,
    *,
    role: str = MV_OPERATOR,
    via: Gateway | None = None,
    **fields: Any,
) -> RefreshResult:
    """Refresh a view as a role, directly or through a gateway; further fields are the run's."""
    target = parse_url(database.url(role, via=via))
    return await Refresher().refresh(target=target, run=a_run(view, **fields))


@dataclass(frozen=True, slots=True)
class GatedView:
    """A view whose query waits at a gate that the test opens and shuts; open when made.

    The gate is a sequence: whatever its snapshot, a query sees whether it is open now.
    """

    database: Database
    view: ViewName

    @classmethod
    async def make(cls, database: Database, name: str = "gated", *, unique: bool = True) -> GatedView:
        """Make it, of a table `<name>_base` as in `make_view`."""
        plain = await database.make_view(f"{name}_plain")
        await database.execute_as(
            APP_OWNER,
            f"""
            create sequence {name}_gate minvalue 0 start 0;
            create function {name}_wait() returns int language plpgsql volatile as $$
              begin
                while (select last_value = 1 from public.{name}_gate) loop perform pg_sleep(0.005); end loop;
                return 0;
              end $$;
            create materialized view {name} as
              select id, v + waited.n as v from public.{plain.name}_base, public.{name}_wait() as waited(n);
            """,
        )
        if unique:
            await database.execute_as(APP_OWNER, f"create unique index on {name} (id)")
        return cls(database, ViewName("public", name))

    async def shut(self) -> None:
        """Make every later refresh wait in the middle of its query."""
        await self.database.execute_as(APP_OWNER, f"select setval('{self.view.name}_gate', 1)")

    async def open(self) -> None:
        """Let it go on."""
        await self.database.execute_as(APP_OWNER, f"select setval('{self.view.name}_gate', 0)")

    async def reached(self) -> int:
        """Wait until a refresh stands at the gate; return its backend's process id."""
        return await refreshing_backend(self.database)


async def refreshing_backend(database: Database) -> int:
    """Wait until a backend of this database runs REFRESH and sleeps in its query; return its process id."""
    while True:
        pid = await database.value_as(
            SUPERUSER,
            "select pid from pg_stat_activity where datname = current_database() and query ilike 'refresh%'"
            " and wait_event = 'PgSleep'",
        )
        if isinstance(pid, int):
            return pid
        await asyncio.sleep(0.01)


async def settled(ask: Callable[[], Awaitable[object]], expected: object, *, seconds: float = 5) -> None:
    """Wait until an answer is the expected one; for what a server does a moment after it has answered."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await ask()
        if answer == expected:
            return
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s, not {expected!r}"
        await asyncio.sleep(0.01)


async def backends(database: Database, role: str = MV_OPERATOR) -> object:
    """Return how many connections of a role the database has."""
    return await database.value_as(
        SUPERUSER,
        "select count(*) from pg_stat_activity where datname = current_database() and usename = $1",
        role,
    )


async def refresh_group(
    database: Database,
    *names: str,
    via: Gateway | None = None,
    timeout_seconds: float = 20,
    slot: str | None = None,
    **fields: Any,
) -> list[RefreshResult]:
    """Refresh these views of schema public together, as the operator's role; further fields are the runs'."""
    fields["slot_id"] = request_id(slot or str(uuid.uuid4()))
    results = await Refresher().refresh_group(
        target=parse_url(database.url(via=via)),
        runs=[a_run(public(name), **fields) for name in names],
        timeout_seconds=timeout_seconds,
    )
    assert [result.view_name for result in results] == [*names]
    return [*results]


async def make_pair(database: Database) -> None:
    """Make two views, `first` and `last`, of one table `base` with the rows 1 to 3."""
    await database.execute_as(
        APP_OWNER,
        """
        create table base (id int primary key);
        insert into base select generate_series(1, 3);
        create materialized view first as select id from base;
        create unique index on first (id);
        create materialized view last as select id from base;
        create unique index on last (id);
        """,
    )


def public(name: str) -> ViewName:
    return ViewName("public", name)


def ended(result: RefreshResult) -> tuple[RefreshOutcome, RefreshReason | None]:
    return result.outcome, result.error_type


def failure(result: RefreshResult, reason: RefreshReason, *said: str) -> None:
    """Check that a run failed for a reason, and that its message says these things."""
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, reason), result.error_message
    assert result.error_message
    for text in said:
        assert text in result.error_message
    assert result.data_as_of is None
    assert result.verified_at is None


# What the catalogue says before anything is tried.


async def counted_view(database: Database, name: str = "counted") -> ViewName:
    """Make a view whose query counts how often it is run: a sequence is not rolled back."""
    await database.execute_as(
        APP_OWNER,
        f"""
        create sequence {name}_runs minvalue 0;
        create materialized view {name} as select 1 as id, nextval('public.{name}_runs') as run;
        create unique index on {name} (id);
        """,
    )
    return ViewName("public", name)


async def executions(database: Database, name: str = "counted") -> object:
    return await database.value_as(SUPERUSER, f"select case when is_called then last_value else 0 end from {name}_runs")


async def ledger_rows(database: Database) -> list[tuple[object, ...]]:
    """Return outcome, reason, attempt and whether it settles, in the order of writing."""
    rows = await database.fetch_as(
        SUPERUSER, "select outcome, reason, attempt, settles from matview_ops.refresh_run order by run_id"
    )
    return [tuple(row) for row in rows]
