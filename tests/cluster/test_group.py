"""consistency: Group in a policy: its views agree or keep their old rows together, and the status says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.tenant import Json, Tenant, condition, is_ready, not_ready_because, policy
from tests.database import APP_OWNER

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

GROUP: Json = {"consistency": "Group"}


async def test_group_all_views_are_fresh_or_none_and_the_status_names_the_cause(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.make_view(rows=3)
    await tenant.database.execute_as(
        APP_OWNER,
        """
        create materialized view mv_share as select id, 100 / v as share from mv_base;
        create unique index on mv_share (id);
        """,
    )
    tenant.connect()
    tenant.apply(policy("sales", {"name": "mv"}, {"name": "mv_share"}, **GROUP))
    tenant.wait("sales", is_ready)

    await tenant.database.execute_as(APP_OWNER, "insert into mv_base values (4, 'b', 40)")
    status = tenant.refresh_now("sales", "good")
    assert [view["outcome"] for view in status["views"]] == ["SUCCESS", "SUCCESS"]
    assert len({view["dataAsOf"] for view in status["views"]}) == 1  # one snapshot
    assert await _rows(tenant) == (4, 4)

    # The second view divides by zero: the first keeps its old rows too.
    await tenant.database.execute_as(APP_OWNER, "insert into mv_base values (5, 'a', 0)")
    status = tenant.refresh_now("sales", "bad")
    assert [(view["name"], view["outcome"], view["reason"]) for view in status["views"]] == [
        ("mv", "INTERRUPTED", "GroupRolledBack"),
        ("mv_share", "FAILED", "ViewQueryFailed"),
    ]
    assert condition(status, "Fresh")["status"] == "False"
    assert await _rows(tenant) == (4, 4)
    (entry, *_) = status["history"]
    assert (entry["outcome"], entry["failed"]) == ("FAILED", 2)

    await tenant.database.execute_as(APP_OWNER, "update mv_base set v = 50 where id = 5")
    assert condition(tenant.refresh_now("sales", "mended"), "Fresh")["status"] == "True"
    assert await _rows(tenant) == (5, 5)


async def test_group_that_would_make_readers_wait_is_refused_before_anything_is_due(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.make_view(unique=False)
    tenant.connect()
    tenant.apply(policy("sales", {"name": "mv"}, **GROUP))
    status = tenant.wait("sales", not_ready_because("NoUniqueIndex"))
    assert condition(status, "Stalled")["reason"] == "NoUniqueIndex"


async def _rows(tenant: Tenant) -> tuple[object, object]:
    return (
        await tenant.database.value_as(APP_OWNER, "select count(*) from mv"),
        await tenant.database.value_as(APP_OWNER, "select count(*) from mv_share"),
    )
