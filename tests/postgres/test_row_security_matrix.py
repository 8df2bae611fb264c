"""Whether REFRESH would lose rows to row-level security: the catalogue's answer is the server's, case by case."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, RLS_BYPASS_OWNER
from tests.refreshes import public, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import ViewCheck

if TYPE_CHECKING:
    from tests.database import Database

TABLES, BETWEEN = "rls_tables", "rls_between"
"""Owners of the tables, and of ordinary views in between: neither is exempt from anything."""
MEMBER = "rls_member"
"""A member of the tables' owner."""


class Case(NamedTuple):
    """A materialized view, who owns it, and which tables are hazards and as whom they are read."""

    query: str
    hazards: dict[str, str]
    owner: str = APP_OWNER


CASES = {
    "no row security": Case("select id from plain", {}),
    "another's table": Case("select id from t", {"t": APP_OWNER}),
    "one's own table": Case("select id from t", {}, TABLES),
    "one's own table with FORCE": Case("select id from forced", {"forced": TABLES}, TABLES),
    "another's table with FORCE": Case("select id from forced", {"forced": APP_OWNER}),
    "owner is a member of the table's owner": Case("select id from t", {}, MEMBER),
    "owner is a member, and FORCE": Case("select id from forced", {"forced": MEMBER}, MEMBER),
    "owner has BYPASSRLS": Case("select id from t", {}, RLS_BYPASS_OWNER),
    "owner has BYPASSRLS, and FORCE": Case("select id from forced", {}, RLS_BYPASS_OWNER),
    "a policy that shows every row": Case("select id from open_to_all", {"open_to_all": APP_OWNER}),
    "enabled without any policy": Case("select id from no_policy", {"no_policy": APP_OWNER}),
    "policies, but not enabled": Case("select id from disabled", {}),
    "a view of the table's owner": Case("select id from v", {}),
    "a view of the table's owner, and FORCE": Case("select id from v_forced", {"forced": TABLES}),
    "a view of somebody else": Case("select id from v_between", {"t": BETWEEN}),
    "a view of somebody else, view owner exempt": Case("select id from v_bypass", {}),
    "a security_invoker view": Case("select id from i", {"t": APP_OWNER}),
    "a security_invoker view, owner exempt": Case("select id from i", {}, RLS_BYPASS_OWNER),
    "a security_invoker view, owner owns the table": Case("select id from i", {}, TABLES),
    "security_invoker = false written": Case("select id from i_false", {}),
    "a security_invoker view in a view": Case("select id from v_of_i", {"t": APP_OWNER}),
    "a view in a security_invoker view": Case("select id from i_of_v", {}),
    "three deep, security_invoker below": Case("select id from i_of_v_of_i", {"t": APP_OWNER}),
    "three deep, all security_invoker": Case("select id from i_of_i_of_i", {"t": APP_OWNER}),
    "three deep, a stranger's view at the bottom": Case("select id from i_of_v_between", {"t": BETWEEN}),
    "two ways to one table": Case("select id from v union all select id from t", {"t": APP_OWNER}),
    "another materialized view": Case("select id from m", {}),
    "in a subquery": Case("select 1 as id where exists (select from t)", {"t": APP_OWNER}),
    "in a CTE": Case("with c as (select id from t) select id from c", {"t": APP_OWNER}),
    "a partitioned table": Case("select id from p", {"p": APP_OWNER}),
    "a partition by itself": Case("select id from p_plain_1", {"p_plain_1": APP_OWNER}),
    "a partition's row security through the parent": Case("select id from p_plain", {}),
    "the parent's row security on a partition": Case("select id from p_1", {}),
    "an inheritance parent": Case("select id from parent", {"parent": APP_OWNER}),
    "an inheritance child by itself": Case("select id from child_secured", {"child_secured": APP_OWNER}),
    "a child's row security through the parent": Case("select id from parent_plain", {}),
    "only the parent of a secured child": Case("select id from only parent_plain", {}),
}
_WORLD = f"""
create table plain (id int); create table t (id int); create table forced (id int); create table open_to_all (id int);
create table no_policy (id int); create table disabled (id int);
create policy every on open_to_all using (true); create policy none on disabled using (false);
create table p (id int) partition by range (id); create table p_1 partition of p for values from (0) to (9);
create table p_plain (id int) partition by range (id);
create table p_plain_1 partition of p_plain for values from (0) to (9);
create table parent (id int); create table child () inherits (parent);
create table parent_plain (id int); create table child_secured () inherits (parent_plain);
insert into plain values (1); insert into t values (1); insert into forced values (1);
insert into open_to_all values (1);
alter table t enable row level security; alter table open_to_all enable row level security;
alter table no_policy enable row level security; alter table p enable row level security;
alter table p_plain_1 enable row level security; alter table parent enable row level security;
alter table child_secured enable row level security;
alter table forced enable row level security, force row level security;
create view v as select id from t; create view v_forced as select id from forced;
create view i with (security_invoker) as select id from t;
create view i_false with (security_invoker = false) as select id from t;
create view v_of_i as select id from i; create view i_of_v with (security_invoker) as select id from v;
create view i_of_v_of_i with (security_invoker = on) as select id from v_of_i;
create view i_of_i with (security_invoker = 1) as select id from i;
create view i_of_i_of_i with (security_invoker = true) as select id from i_of_i;
create materialized view m as select id from t;
grant select on all tables in schema public to {APP_OWNER}, {RLS_BYPASS_OWNER}, {BETWEEN}, {MEMBER};
"""


async def make_world(database: Database) -> None:
    await database.allow_login(TABLES, BETWEEN, MEMBER)
    await database.execute_as(
        SUPERUSER,
        f"grant create on schema public to {TABLES}, {BETWEEN}, {MEMBER}; grant {TABLES} to {MEMBER}; "
        f"grant {TABLES}, {BETWEEN}, {MEMBER} to mv_operator",
    )
    await database.execute_as(TABLES, _WORLD)
    await database.execute_as(BETWEEN, "create view v_between as select id from t")
    await database.execute_as(RLS_BYPASS_OWNER, "create view v_bypass as select id from t")
    await database.execute_as(BETWEEN, "create view i_of_v_between with (security_invoker) as select id from v_between")
    await database.execute_as(
        SUPERUSER, f"grant select on v_between, v_bypass, i_of_v_between to {APP_OWNER}, {TABLES}, {MEMBER}"
    )


async def test_query_and_refresh_agree_on_every_case(database: Database) -> None:
    await make_world(database)
    views = {}
    for number, (name, case) in enumerate(CASES.items()):
        views[name] = public(f"mv_{number}")
        await database.execute_as(case.owner, f"create materialized view mv_{number} as {case.query} with no data")
    checks = {
        name: ViewCheck(view=view, concurrently=Concurrently.NEVER, isolation=Isolation.SHARED)
        for name, view in views.items()
    }
    inspection = await Inspector().inspect(
        target=parse_url(database.url()), checks=checks.values(), allow_superuser=False
    )
    for name, case in CASES.items():
        answer = inspection.answers[checks[name]]
        result = await refresh(database, views[name], concurrently=Concurrently.NEVER)
        if not case.hazards:
            assert not isinstance(answer, Problem), (name, answer)
            assert result.outcome is RefreshOutcome.SUCCESS, (name, result.error_message)
            continue
        assert isinstance(answer, Problem), name
        assert answer.reason is Reason.ROW_SECURITY_HAZARD, name
        assert (result.error_type, result.error_message) == (Reason.ROW_SECURITY_HAZARD, answer.message), name
        named = "; ".join(
            f"public.{table} as {role}{' (FORCE)' if table == 'forced' else ''}" for table, role in case.hazards.items()
        )
        assert f"under row-level security: {named}." in answer.message, name
        assert answer.message.endswith(f"Run: ALTER ROLE {next(iter(case.hazards.values()))} BYPASSRLS;"), name


async def test_a_function_that_turns_row_security_on_is_what_no_check_can_see(database: Database) -> None:
    """As docs/row-level-security.md says; a guard with keepTenants is the net below."""
    await make_world(database)
    await database.execute_as(
        APP_OWNER,
        """
        create function every_id() returns setof int language sql set row_security = on as 'select id from public.t';
        create materialized view mv as select every_id() as id with no data;
        """,
    )
    result = await refresh(database, public("mv"), concurrently=Concurrently.NEVER)
    assert (result.outcome, result.rows_inserted) == (RefreshOutcome.SUCCESS, 0)
    assert await database.value_as(SUPERUSER, "select count(*) from t") == 1
