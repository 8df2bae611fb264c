"""Whether and how a view can be refreshed, decided from what the catalogue says, with what a person has to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from matview_operator.api.database import Bookkeeping
from matview_operator.api.outcome import RefreshMode, RefreshReason
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import Problem
from matview_operator.domain.mode import ModeChoice, choose_mode
from matview_operator.domain.preflight import (
    MissingPrivilege,
    RowSecurityHazard,
    ViewFacts,
    check_view,
    hazard_problem,
    privilege_problem,
)
from matview_operator.domain.server import ServerFacts, check_server, ledger_advice, search_path_advice, version_advice
from matview_operator.domain.view import ViewName

VIEW = ViewName("public", "Odd Name")
FACTS = ViewFacts(
    oid=1,
    quoted='public."Odd Name"',
    relkind="m",
    populated=True,
    usable_index=True,
    may_refresh=True,
    may_use_schema=True,
    schema="public",
    owner="app_owner",
    is_member=True,
    owner_has_temp=True,
)
SERVER = ServerFacts(
    version="18.4",
    version_num=180_004,
    database="app",
    role="mv_operator",
    quoted_role="mv_operator",
    quoted_database="app",
    inherits=True,
    superuser=False,
    in_recovery=False,
    bookkeeping=Bookkeeping.INSTALLED,
)
IF_POSSIBLE, ALWAYS, NEVER = Concurrently.IF_POSSIBLE, Concurrently.ALWAYS, Concurrently.NEVER
CONCURRENT, BLOCKING = RefreshMode.CONCURRENT, RefreshMode.BLOCKING


def problem_of(
    facts: ViewFacts | None, *, concurrently: Concurrently = IF_POSSIBLE, server: ServerFacts = SERVER
) -> Problem:
    with pytest.raises(Problem) as caught:
        check_view(VIEW, facts, concurrently=concurrently, server=server)
    return caught.value


@pytest.mark.parametrize(
    ("concurrently", "populated", "index", "expected"),
    [
        (IF_POSSIBLE, True, True, ModeChoice(CONCURRENT)),
        (IF_POSSIBLE, True, False, ModeChoice(BLOCKING, RefreshReason.NO_UNIQUE_INDEX)),
        (IF_POSSIBLE, False, True, ModeChoice(BLOCKING, RefreshReason.FIRST_POPULATE)),
        (IF_POSSIBLE, False, False, ModeChoice(BLOCKING, RefreshReason.FIRST_POPULATE)),
        (ALWAYS, True, True, ModeChoice(CONCURRENT)),
        (ALWAYS, True, False, RefreshReason.NO_UNIQUE_INDEX),
        (ALWAYS, False, False, RefreshReason.NO_UNIQUE_INDEX),
        (ALWAYS, False, True, RefreshReason.NOT_POPULATED),
        (NEVER, True, True, ModeChoice(BLOCKING)),
        (NEVER, False, False, ModeChoice(BLOCKING)),
    ],
)
def test_the_mode_is_the_one_wished_for_where_it_can_be_had(
    concurrently: Concurrently, *, populated: bool, index: bool, expected: ModeChoice | RefreshReason
) -> None:
    found: ModeChoice | RefreshReason
    try:
        found = choose_mode(concurrently, populated=populated, usable_index=index, view="mv")
    except Problem as problem:
        found = problem.reason
    assert found == expected


@pytest.mark.parametrize(
    ("concurrently", "populated", "index", "expected"),
    [
        (IF_POSSIBLE, True, True, ModeChoice(CONCURRENT)),
        (IF_POSSIBLE, True, False, RefreshReason.NO_UNIQUE_INDEX),
        (IF_POSSIBLE, False, True, ModeChoice(BLOCKING, RefreshReason.FIRST_POPULATE)),
        (IF_POSSIBLE, False, False, RefreshReason.NO_UNIQUE_INDEX),
        (ALWAYS, False, True, RefreshReason.NOT_POPULATED),
        (NEVER, True, True, RefreshReason.INVALID_SPEC),
    ],
)
def test_in_a_group_nobody_who_reads_a_view_waits(
    concurrently: Concurrently, *, populated: bool, index: bool, expected: ModeChoice | RefreshReason
) -> None:
    facts = replace(FACTS, populated=populated, usable_index=index)
    found: ModeChoice | RefreshReason
    try:
        found = check_view(VIEW, facts, concurrently=concurrently, grouped=True, server=SERVER)
    except Problem as problem:
        found = problem.reason
    assert found == expected


def test_a_view_in_good_order_is_refreshed_as_wished() -> None:
    assert check_view(VIEW, FACTS, concurrently=ALWAYS, server=SERVER) == ModeChoice(CONCURRENT)


def test_a_missing_view_is_named_with_its_database() -> None:
    problem = problem_of(None)
    assert problem.reason is RefreshReason.VIEW_NOT_FOUND
    assert "Odd Name" in problem.message
    assert "database app" in problem.message


@pytest.mark.parametrize(
    ("relkind", "words"),
    [("r", "a table"), ("v", "an ordinary view"), ("p", "a partitioned table"), ("t", "another kind of relation")],
)
def test_what_is_no_materialized_view_is_called_by_its_kind(relkind: str, words: str) -> None:
    problem = problem_of(replace(FACTS, relkind=relkind, may_refresh=False))
    assert problem.reason is RefreshReason.NOT_MATERIALIZED_VIEW
    assert f'public."Odd Name" is {words}' in problem.message


@pytest.mark.parametrize(
    ("version", "member", "inherits", "statements"),
    [
        (180_004, False, True, 'GRANT MAINTAIN ON public."Odd Name" TO mv_operator;'),
        (170_000, True, False, 'GRANT MAINTAIN ON public."Odd Name" TO mv_operator;'),
        (160_014, False, True, "GRANT app_owner TO mv_operator WITH INHERIT TRUE;"),
        (160_014, True, False, "GRANT app_owner TO mv_operator WITH INHERIT TRUE;"),
        (150_020, False, True, "GRANT app_owner TO mv_operator;"),
        (150_020, True, False, "ALTER ROLE mv_operator INHERIT;"),
        (150_020, False, False, "GRANT app_owner TO mv_operator; ALTER ROLE mv_operator INHERIT;"),
    ],
)
def test_a_missing_privilege_comes_with_the_statements_for_this_server_and_role(
    version: int, *, member: bool, inherits: bool, statements: str
) -> None:
    facts = replace(FACTS, may_refresh=False, is_member=member)
    problem = problem_of(facts, server=replace(SERVER, version_num=version, inherits=inherits))
    assert problem.reason is RefreshReason.PERMISSION_DENIED
    assert problem.message.endswith(f". Run: {statements}")
    without_schema = problem_of(
        replace(facts, may_use_schema=False), server=replace(SERVER, version_num=version, inherits=inherits)
    )
    assert without_schema.message.endswith(f". Run: GRANT USAGE ON SCHEMA public TO mv_operator; {statements}")


def test_usage_of_the_schema_alone_may_be_missing() -> None:
    problem = problem_of(replace(FACTS, may_use_schema=False))
    assert problem.reason is RefreshReason.PERMISSION_DENIED
    assert problem.message.endswith("Run: GRANT USAGE ON SCHEMA public TO mv_operator;")


def test_what_the_owner_may_not_read_comes_with_the_grants() -> None:
    missing = [MissingPrivilege(object=f"t{n}", role="r", mend=f"GRANT SELECT ON t{n} TO r;") for n in range(5)]
    problem = privilege_problem(VIEW, missing[:2], sqlstate="42501")
    assert (problem.reason, problem.sqlstate) == (RefreshReason.PERMISSION_DENIED, "42501")
    assert "t0 as r; t1 as r. Run: GRANT SELECT ON t0 TO r; GRANT SELECT ON t1 TO r;" in problem.message
    assert "t2 as r and 2 more." in privilege_problem(VIEW, missing).message


def test_concurrently_needs_temp_for_the_owner_and_blocking_does_not() -> None:
    without = replace(FACTS, owner_has_temp=False)
    problem = problem_of(without)
    assert problem.reason is RefreshReason.PERMISSION_DENIED
    assert "GRANT TEMP ON DATABASE app TO app_owner;" in problem.message
    assert check_view(VIEW, without, concurrently=NEVER, server=SERVER) == ModeChoice(BLOCKING)


def test_no_unique_index_under_always_is_a_problem() -> None:
    assert problem_of(replace(FACTS, usable_index=False), concurrently=ALWAYS).reason is RefreshReason.NO_UNIQUE_INDEX


def test_a_row_security_hazard_names_the_tables_and_whom_they_are_read_as() -> None:
    hazards = [RowSecurityHazard(relation=f"t{n}", read_as="app_owner", forced=n == 0) for n in range(5)]
    problem = hazard_problem(VIEW, hazards, sqlstate="42501")
    assert (problem.reason, problem.sqlstate) == (RefreshReason.ROW_SECURITY_HAZARD, "42501")
    assert "t0 as app_owner (FORCE); t1 as app_owner; t2 as app_owner and 2 more." in problem.message
    assert problem.message.endswith("Run: ALTER ROLE app_owner BYPASSRLS;")
    assert "t3" not in problem.message
    assert "BYPASSRLS" in hazard_problem(VIEW, []).message


def test_a_standby_and_a_superuser_are_refused() -> None:
    check_server(SERVER, allow_superuser=False)
    with pytest.raises(Problem) as standby:
        check_server(replace(SERVER, in_recovery=True), allow_superuser=True)
    assert standby.value.reason is RefreshReason.READ_ONLY_SERVER
    with pytest.raises(Problem) as superuser:
        check_server(replace(SERVER, superuser=True), allow_superuser=False)
    assert superuser.value.reason is RefreshReason.SUPERUSER_REFUSED
    assert "mv_operator" in superuser.value.message
    check_server(replace(SERVER, superuser=True), allow_superuser=True)


# The ledger.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bookkeeping": Bookkeeping.MISSING}, "Install it: matview-operator migrate --grant-to mv_operator"),
        ({"bookkeeping": Bookkeeping.OUTDATED}, "up to date: matview-operator migrate --grant-to mv_operator"),
        (
            {"bookkeeping": Bookkeeping.MISSING, "bookkeeping_forbidden": True},
            "owner can grant that: matview-operator migrate --grant-to mv_operator",
        ),
        (
            {"bookkeeping": Bookkeeping.OUTDATED, "bookkeeping_flaw": "it has a rule"},
            "it has a rule. Such a table could run somebody's code as mv_operator",
        ),
    ],
)
def test_what_keeps_the_ledger_from_being_used_is_said_with_what_to_run(changes: dict[str, Any], said: str) -> None:
    assert said in (ledger_advice(replace(SERVER, **changes)) or "")
    assert ledger_advice(SERVER) is None


# T5: REFRESH … CONCURRENTLY as a role that does not own the view.


@pytest.mark.parametrize(
    ("version", "exploitable"),
    [
        (150_000, True),
        (150_005, True),
        (150_006, None),
        (150_020, None),
        (160_000, False),
        (160_001, False),
        (160_002, None),
        (170_000, None),
        (180_004, None),
        (190_000, None),
    ],
)
def test_t5_minor_versions_that_would_run_the_owners_code_as_the_operators_role(
    version: int, *, exploitable: bool | None
) -> None:
    server = replace(SERVER, version="15.5", version_num=version)
    advice = version_advice(server)
    if exploitable is None:
        assert advice is None
    else:
        assert advice
        assert "CVE-2024-0985" in advice
        assert ("no exploit is known" in advice) is not exploitable
    if exploitable:
        problem = problem_of(FACTS, server=server)
        assert problem.reason is RefreshReason.VULNERABLE_SERVER
        for said in ("CVE-2024-0985", 'public."Odd Name"', "app_owner", "15.6 or later", "concurrently: Never"):
            assert said in problem.message
    else:
        assert check_view(VIEW, FACTS, concurrently=IF_POSSIBLE, server=server) == ModeChoice(CONCURRENT)


def test_t5_ones_own_views_and_blocking_refreshes_are_not_concerned() -> None:
    server = replace(SERVER, version_num=150_005)
    assert check_view(VIEW, FACTS, concurrently=NEVER, server=server) == ModeChoice(BLOCKING)
    assert check_view(VIEW, replace(FACTS, populated=False), concurrently=IF_POSSIBLE, server=server)
    own = replace(FACTS, owner=SERVER.quoted_role)
    assert check_view(VIEW, own, concurrently=ALWAYS, server=server) == ModeChoice(CONCURRENT)


def test_a_search_path_that_comes_to_nothing_is_said() -> None:
    advice = search_path_advice(SERVER, ("app",))
    assert advice
    assert "no effect on PostgreSQL 17 and later" in advice
    assert search_path_advice(SERVER, ()) is None
    assert search_path_advice(replace(SERVER, version_num=160_014), ("app",)) is None
