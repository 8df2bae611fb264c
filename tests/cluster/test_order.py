"""GATE-2C on a real server: policies that are due together go in the order in which their views read each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, condition, is_ready, not_ready_because, policy
from tests.database import APP_OWNER

if TYPE_CHECKING:
    from sandbox.operator_process import OperatorProcess

# The names go against the order. Each refresh takes long enough for the others to overtake it, if they could.
CHAIN = """
create table source (id int primary key);
create materialized view z_first as select id, pg_sleep(0.3) is null as slow from source;
create unique index on z_first (id);
create view between as select id from z_first;
create materialized view m_second as select id, pg_sleep(0.3) is null as slow from between;
create unique index on m_second (id);
create function second() returns setof int language plpgsql stable set search_path = public
  as 'begin return query select id from m_second; end';
create materialized view a_third as select s as id from second() s;
create unique index on a_third (id);
insert into source values (1);
"""
THIRD: Json = {"name": "a_third", "dependsOn": [{"name": "m_second"}]}


async def test_gate_2c_a_chain_over_three_policies_is_fresh_to_its_end_after_one_slot(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.execute_as(APP_OWNER, CHAIN)
    tenant.connect(spec={"limits": {"maxConcurrentRefreshes": 10}})
    tenant.apply(
        policy("third", THIRD, every=5), policy("second", "m_second", every=5), policy("first", "z_first", every=5)
    )
    for name in ("first", "second", "third"):
        tenant.wait(name, is_ready)
    tenant.wait("third", lambda status: status.get("lastSlotTime"), what="run")
    ledger = await tenant.database.fetch_as(
        SUPERUSER,
        "select slot_id, array_agg(view_name::text order by finished_at) as ended, "
        "array_agg(view_name::text order by data_as_of) as begun, "
        "bool_and(data_as_of > before) as apart from (select *, "
        "coalesce(lag(finished_at) over (partition by slot_id order by finished_at), '-infinity') as before "
        "from matview_ops.refresh_run) r group by slot_id order by slot_id",
    )
    order = ["z_first", "m_second", "a_third"]
    assert [row for row in ledger if len(row["ended"]) == len(order)]
    for row in ledger:
        assert row["begun"] == row["ended"] == sorted(row["ended"], key=order.index), row
        assert row["apart"], row
    # One slot is enough: each read what the one before it had just written.
    assert await tenant.database.value_as(APP_OWNER, "select count(*) from a_third") == 1


async def test_fault_23_a_cycle_and_a_missing_name_are_told_in_stalled_and_mended_by_an_apply(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.execute_as(APP_OWNER, CHAIN)
    tenant.connect()
    missing: Json = {"name": "z_first", "dependsOn": [{"name": "a_third"}]}
    tenant.apply(policy("first", missing))
    status = tenant.wait("first", not_ready_because("DependencyMissing"))
    assert "z_first depends on a_third" in condition(status, "Stalled")["message"]
    tenant.apply(
        policy("second", "m_second"), policy("third", {"name": "a_third", "dependsOn": [{"name": "m_second"}]})
    )
    for name in ("first", "second", "third"):
        status = tenant.wait(name, not_ready_because("DependencyCycle"))
        assert "a_third → m_second → z_first → a_third" in condition(status, "Stalled")["message"]
    tenant.apply(policy("first", "z_first"))
    for name in ("first", "second", "third"):
        assert condition(tenant.wait(name, is_ready), "Stalled") == {}


# Each takes two seconds and more, and neither reads the other.
TWINS = """
create materialized view mv_left as select 1 as id, pg_sleep(2) is null as slow;
create unique index on mv_left (id);
create materialized view mv_right as select 1 as id, pg_sleep(2) is null as slow;
create unique index on mv_right (id);
"""
SPANS = (
    "select view_name::text as view, data_as_of, finished_at from matview_ops.refresh_run "
    "where slot_id = $1 and outcome = 'SUCCESS' order by data_as_of"
)


async def test_independent_views_of_one_policy_are_refreshed_at_the_same_time_and_one_place_keeps_them_apart(
    operator: OperatorProcess,  # noqa: ARG001 - it has to run
    tenant: Tenant,
) -> None:
    await tenant.database.execute_as(APP_OWNER, TWINS)
    tenant.connect(spec={"limits": {"maxConcurrentRefreshes": 2}})
    tenant.apply(policy("twins", "mv_right", "mv_left"))
    tenant.wait("twins", is_ready)
    status = tenant.refresh_now("twins", "together")
    assert [(view["name"], view["outcome"]) for view in status["views"]] == [
        ("mv_right", "SUCCESS"),
        ("mv_left", "SUCCESS"),
    ]
    first, second = await tenant.database.fetch_as(SUPERUSER, SPANS, "request:together")
    assert {first["view"], second["view"]} == {"mv_left", "mv_right"}
    assert second["data_as_of"] < first["finished_at"], "the second one began before the first one had ended"
    assert status["history"][0]["durationMs"] < 4000  # not as long as both of them

    tenant.connect(spec={"limits": {"maxConcurrentRefreshes": 1}})
    tenant.wait("analytics", lambda status: status.get("observedGeneration") == 2, kind="mvdb", what="looked at again")
    status = tenant.refresh_now("twins", "apart")
    first, second = await tenant.database.fetch_as(SUPERUSER, SPANS, "request:apart")
    assert [first["view"], second["view"]] == ["mv_right", "mv_left"]  # as listed
    assert second["data_as_of"] >= first["finished_at"]
    assert status["history"][0]["durationMs"] >= 4000
