"""Before anything is refreshed the catalogue says what is missing; the statement in the message mends it, as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import APP_OWNER, MV_OPERATOR, quoted
from tests.refreshes import public, refresh

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.api.outcome import RefreshMode
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import ViewCheck
from matview_operator.domain.mode import ModeChoice

if TYPE_CHECKING:
    from tests.database import Database

    from matview_operator.domain.view import ViewName

ODD_ROLE, ODD_OWNER = 'Odd "role"; --', "Owner's $1"
ALWAYS, IF_POSSIBLE = Concurrently.ALWAYS, Concurrently.IF_POSSIBLE


async def inspected(
    database: Database, view: ViewName, *, role: str = MV_OPERATOR, concurrently: Concurrently = IF_POSSIBLE
) -> ModeChoice | Problem:
    check = ViewCheck(view=view, concurrently=concurrently, isolation=Isolation.SHARED)
    target = parse_url(database.url(role))
    inspection = await Inspector().inspect(target=target, checks=[check], allow_superuser=False)
    return inspection.answers[check]


async def problem_with(database: Database, view: ViewName, **asked: object) -> Problem:
    answer = await inspected(database, view, **asked)  # type: ignore[arg-type]  # as inspected has them
    assert isinstance(answer, Problem), answer
    return answer


def statements(problem: Problem) -> str:
    return problem.message.partition("Run: ")[2]


async def odd_world(database: Database) -> ViewName:
    """Make a view in an odd schema of an odd owner, and an odd role; both names need quoting."""
    await database.allow_login(ODD_ROLE, ODD_OWNER)
    return await database.make_view('mv "x"', schema='S "y"', owner=ODD_OWNER)


@pytest.fixture
async def odd(database: Database) -> ViewName:
    return await odd_world(database)


async def mended(database: Database, view: ViewName, *, reason: Reason = Reason.PERMISSION_DENIED) -> list[str]:
    """Run what the messages say, one after another, until nothing is missing; return the statements."""
    ran: list[str] = []
    while isinstance(found := await inspected(database, view, role=ODD_ROLE), Problem):
        assert found.reason is reason, found.message
        result = await refresh(database, view, role=ODD_ROLE)
        assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, reason)
        assert statements(found) not in ran, "it did not help"
        ran.append(statements(found))
        await database.execute_as(SUPERUSER, ran[-1])
    assert (await refresh(database, view, role=ODD_ROLE)).outcome is RefreshOutcome.SUCCESS
    return ran


@pytest.fixture
async def roles_parted(database: Database) -> object:
    """Roles are the server's: take back after the test what a statement granted."""
    yield
    await database.execute_as(
        SUPERUSER,
        f"revoke {quoted(ODD_OWNER)} from {quoted(ODD_ROLE)}; alter role {quoted(ODD_ROLE)} inherit; "
        f"alter role {quoted(ODD_OWNER)} nobypassrls",
    )


@pytest.mark.usefixtures("roles_parted")
@pytest.mark.parametrize("inherits", [True, False], ids=["inherit", "noinherit"])
async def test_a_stranger_becomes_able_by_running_exactly_what_is_said(
    database: Database, odd: ViewName, *, inherits: bool
) -> None:
    await database.execute_as(SUPERUSER, f"alter role {quoted(ODD_ROLE)} {'inherit' if inherits else 'noinherit'}")
    (ran,) = await mended(database, odd)
    assert "GRANT USAGE ON SCHEMA" in ran
    assert ("GRANT MAINTAIN" in ran) == (database.version >= 17)


@pytest.mark.usefixtures("roles_parted")
@pytest.mark.parametrize("databases", [15, 16], indirect=True)
async def test_a_member_without_the_owners_rights_gets_them(database: Database, odd: ViewName) -> None:
    await database.execute_as(
        SUPERUSER, f"alter role {quoted(ODD_ROLE)} noinherit; grant {quoted(ODD_OWNER)} to {quoted(ODD_ROLE)}"
    )
    (ran,) = await mended(database, odd)
    assert "INHERIT" in ran


@pytest.mark.usefixtures("roles_parted")
async def test_temp_for_an_odd_owner(database: Database, odd: ViewName) -> None:
    await mended(database, odd)
    await database.execute_as(SUPERUSER, f"revoke temp on database {database.name} from public")
    assert (await mended(database, odd)) == [f"GRANT TEMP ON DATABASE {database.name} TO {quoted(ODD_OWNER)};"]


@pytest.mark.usefixtures("roles_parted")
async def test_row_security_for_an_odd_owner(database: Database, odd: ViewName) -> None:
    await mended(database, odd)
    table = f"{quoted(odd.schema)}.{quoted(f'{odd.name}_base')}"
    await database.execute_as(ODD_OWNER, f"alter table {table} enable row level security, force row level security")
    ran = await mended(database, odd, reason=Reason.ROW_SECURITY_HAZARD)
    assert ran == [f"ALTER ROLE {quoted(ODD_OWNER)} BYPASSRLS;"]


async def test_always_says_how_to_populate(database: Database) -> None:
    view = await database.make_view()
    await database.execute_as(APP_OWNER, "refresh materialized view mv with no data")
    problem = await problem_with(database, view, concurrently=ALWAYS)
    assert problem.reason is Reason.NOT_POPULATED
    await database.execute_as(APP_OWNER, statements(problem))
    assert await inspected(database, view, concurrently=ALWAYS) == ModeChoice(RefreshMode.CONCURRENT)


async def test_always_says_which_view_wants_an_index(database: Database) -> None:
    view = await database.make_view('mv "x"', unique=False)
    problem = await problem_with(database, view, concurrently=ALWAYS)
    assert problem.reason is Reason.NO_UNIQUE_INDEX
    statement = problem.message.partition("tell its rows apart: ")[2]
    assert "…" in statement
    await database.execute_as(APP_OWNER, statement.replace("…", "id"))
    assert await inspected(database, view, concurrently=ALWAYS) == ModeChoice(RefreshMode.CONCURRENT)


# What the owner has to be allowed to read: the query's answer and REFRESH's must agree on every case.

READING: dict[str, tuple[str, list[str]]] = {
    "a table": ("select id from source.t", ["source.t"]),
    "some columns of a table": ("select id from source.t where v > 0", ["source.t"]),
    "no column of a table": ("select count(*) from source.t", ["source.t"]),
    "a whole row": ("select t as whole from source.t", ["source.t"]),
    "a system column": ("select tableoid::int as o from source.t", ["source.t"]),
    "a partitioned table": ("select id from source.p", ["source.p"]),
    "another materialized view": ("select id from source.m", ["source.m"]),
    "a view of somebody else": ("select id from source.v", ["source.v"]),
    "a view of one's own": ("select id from own_view", ["source.t"]),
    "a security_invoker view": ("select id from source.i", ["source.i", "source.t"]),
    "a view in a security_invoker view": ("select id from source.j", ["source.j", "source.v"]),
    "a subquery, a join and a CTE": (
        """with c as (select id from source.p)
           select c.id from c join source.t using (id) where exists (select from source.m)""",
        ["source.m", "source.p", "source.t"],
    ),
    "a function": ("select source.f(1) as id", ["source.f(integer)"]),
    "a function in a view": ("select id from public.w", ["source.f(integer)"]),
}
_SOURCES = f"""
create schema source; grant usage on schema source to {APP_OWNER};
create table source.t (id int, v int); create table source.p (id int) partition by range (id);
create table source.p1 partition of source.p for values from (0) to (10);
create materialized view source.m as select 1 as id;
create view source.v as select id from source.t;
create view source.i with (security_invoker) as select id from source.t;
create view source.j with (security_invoker) as select id from source.v;
create function source.f(n int) returns int language plpgsql as 'begin return n; end';
create view w as select source.f(1) as id; grant select on w to {APP_OWNER};
grant select on all tables in schema source to {APP_OWNER};
"""
_NOTHING_GRANTED = f"""
revoke select on all tables in schema source from {APP_OWNER};
revoke execute on function source.f from public, {APP_OWNER};
"""


async def test_what_the_owner_may_not_read_is_found_named_and_mended(database: Database) -> None:
    await database.execute_as(SUPERUSER, _SOURCES)
    await database.execute_as(APP_OWNER, "create view own_view as select id from source.t")
    views = {case: public(f"mv_{number}") for number, case in enumerate(READING)}
    for case, view in views.items():
        await database.execute_as(APP_OWNER, f"create materialized view {view} as {READING[case][0]} with no data")
    checks = {
        case: ViewCheck(view=view, concurrently=IF_POSSIBLE, isolation=Isolation.SHARED) for case, view in views.items()
    }

    async def all_inspected() -> dict[str, ModeChoice | Problem]:
        target = parse_url(database.url())
        inspection = await Inspector().inspect(target=target, checks=checks.values(), allow_superuser=False)
        return {case: inspection.answers[check] for case, check in checks.items()}

    assert [case for case, answer in (await all_inspected()).items() if isinstance(answer, Problem)] == []
    await database.execute_as(SUPERUSER, _NOTHING_GRANTED)
    for case, problem in (await all_inspected()).items():
        expected = READING[case][1]
        assert isinstance(problem, Problem), case
        assert problem.reason is Reason.PERMISSION_DENIED
        for each in expected:
            assert f"{each} as {APP_OWNER}" in problem.message
        grants = statements(problem).removesuffix(";").split("; ")
        assert len(grants) == len(expected)
        # Each of the grants is needed, and all of them are enough.
        for number, grant in enumerate(grants):
            result = await refresh(database, views[case])
            assert result.error_type is Reason.PERMISSION_DENIED
            assert number or result.error_message == problem.message
            await database.execute_as(SUPERUSER, grant)
        assert (await refresh(database, views[case])).outcome is RefreshOutcome.SUCCESS, case
        await database.execute_as(SUPERUSER, _NOTHING_GRANTED)


@pytest.mark.parametrize("columns", ["id", "id, v"])
async def test_grants_on_columns_are_enough_where_they_cover_the_query(database: Database, columns: str) -> None:
    await database.execute_as(SUPERUSER, _SOURCES)
    await database.execute_as(APP_OWNER, "create materialized view mv as select id from source.t where v > 0")
    await database.execute_as(
        SUPERUSER, f"revoke select on source.t from {APP_OWNER}; grant select ({columns}) on source.t to {APP_OWNER}"
    )
    enough = "v" in columns
    assert isinstance(await inspected(database, public("mv")), ModeChoice if enough else Problem)
    outcome = (await refresh(database, public("mv"))).outcome
    assert outcome is (RefreshOutcome.SUCCESS if enough else RefreshOutcome.FAILED)


async def test_a_refusal_inside_a_function_is_told_as_the_server_tells_it(database: Database) -> None:
    await database.execute_as(
        SUPERUSER,
        "create table hidden (id int); create function peep() returns bigint language sql as "
        "'select count(*) from public.hidden'",
    )
    await database.execute_as(APP_OWNER, "create materialized view mv as select public.peep() with no data")
    assert isinstance(await inspected(database, public("mv")), ModeChoice)
    result = await refresh(database, public("mv"))
    assert result.error_type is Reason.PERMISSION_DENIED
    assert result.error_message == "permission denied for table hidden (SQLSTATE 42501)"
