"""Every error of a server becomes one reason of the closed set, by its SQLSTATE and never by its text."""

from __future__ import annotations

import re

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.adapters.postgres.sqlstate import ROW_SECURITY_ROUTINE, problem_of
from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import MESSAGE_BYTES
from matview_operator.domain.text import is_printable, shown

IN_THE_RUN = {
    "42P01": Reason.VIEW_NOT_FOUND,
    "42883": Reason.VIEW_NOT_FOUND,
    "42704": Reason.VIEW_NOT_FOUND,
    "0A000": Reason.NOT_MATERIALIZED_VIEW,
    "42809": Reason.NOT_MATERIALIZED_VIEW,
    "55000": Reason.NO_UNIQUE_INDEX,
    "21000": Reason.DUPLICATE_ROWS,
    "23505": Reason.DUPLICATE_ROWS,
    "42501": Reason.PERMISSION_DENIED,
    "22012": Reason.VIEW_QUERY_FAILED,
    "22P02": Reason.VIEW_QUERY_FAILED,
    "P0001": Reason.VIEW_QUERY_FAILED,
    "XX000": Reason.VIEW_QUERY_FAILED,
    "25006": Reason.READ_ONLY_SERVER,
    "55P03": Reason.LOCK_TIMEOUT,
    "57014": Reason.CANCELLED,
    "25P03": Reason.TIMEOUT,
    "25P04": Reason.TIMEOUT,
    "40P01": Reason.DEADLOCK,
    "40001": Reason.DEADLOCK,
    "40003": Reason.DEADLOCK,
    "57P01": Reason.CONNECTION_LOST,
    "57P02": Reason.CONNECTION_LOST,
    "57P03": Reason.CONNECTION_LOST,
    "08003": Reason.CONNECTION_LOST,
    "08006": Reason.CONNECTION_LOST,
    "08P01": Reason.CONNECTION_LOST,
    "28P01": Reason.AUTHENTICATION_FAILED,
    "28000": Reason.AUTHENTICATION_FAILED,
    "3D000": Reason.AUTHENTICATION_FAILED,
    "53300": Reason.SERVER_BUSY,
    "53100": Reason.SERVER_RESOURCES,
    "53200": Reason.SERVER_RESOURCES,
    "53400": Reason.SERVER_RESOURCES,
    "58030": Reason.SERVER_RESOURCES,
}


def server_error(state: str, message: str = "something", **fields: str) -> asyncpg.PostgresError:
    """Return what asyncpg raises for a server's error response."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"S": "ERROR", "C": state, "M": message, **fields})
    return error


@pytest.mark.parametrize(("state", "reason"), IN_THE_RUN.items())
def test_each_state_has_its_reason(state: str, reason: Reason) -> None:
    problem = problem_of(server_error(state, "the text"))
    assert (problem.reason, problem.sqlstate) == (reason, state)
    assert problem.message == f"the text (SQLSTATE {state})"


@pytest.mark.parametrize("state", ["42P01", "42883", "42704"])
def test_a_missing_name_inside_a_view_that_was_found_is_the_search_paths(state: str) -> None:
    assert problem_of(server_error(state), view_found=True).reason is Reason.UNSAFE_SEARCH_PATH


def test_not_populated_is_told_by_what_the_lookup_found() -> None:
    assert problem_of(server_error("0A000"), view_found=True).reason is Reason.NOT_POPULATED


def test_a_bad_value_under_a_tenants_setting_is_the_settings() -> None:
    assert problem_of(server_error("22P02"), tenant_setting_given=True).reason is Reason.TENANT_SETTING_INVALID


def test_row_security_is_told_from_other_denials_by_the_routine() -> None:
    assert problem_of(server_error("42501", R=ROW_SECURITY_ROUTINE)).reason is Reason.ROW_SECURITY_HAZARD
    assert problem_of(server_error("42501", R="aclcheck_error")).reason is Reason.PERMISSION_DENIED


def test_a_pooler_that_refuses_is_not_a_lost_connection() -> None:
    assert problem_of(server_error("08P01"), connecting=True).reason is Reason.CONNECT_REJECTED


@pytest.mark.parametrize(
    "error",
    [
        OSError(),
        EOFError(),
        ConnectionResetError(),
        asyncpg.InterfaceError("closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InternalClientError("cannot switch to state 12"),
    ],
)
def test_what_has_no_state_is_the_connection(error: Exception) -> None:
    assert problem_of(error).reason is Reason.CONNECTION_LOST
    assert problem_of(error, connecting=True).reason is Reason.CONNECTION_FAILED


def test_silence_is_a_timeout_of_the_run_or_of_the_connection() -> None:
    assert problem_of(TimeoutError()).reason is Reason.TIMEOUT
    assert problem_of(TimeoutError(), connecting=True).reason is Reason.CONNECTION_FAILED


def test_a_bug_of_ours_shows_its_type_and_not_its_text() -> None:
    problem = problem_of(KeyError("secret"))
    assert problem.reason is Reason.INTERNAL_ERROR
    assert "secret" not in problem.message


def test_a_problem_stays_what_it_is() -> None:
    problem = Problem(Reason.SHARED_VIEW, "shared")
    assert problem_of(problem) is problem


def test_why_a_backend_ended_is_told_and_not_only_that_it_did() -> None:
    gone = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    gone.__cause__ = server_error("25P04", "terminating connection due to transaction timeout")
    assert problem_of(gone).reason is Reason.TIMEOUT
    closed = asyncpg.InterfaceError("connection is closed")
    closed.__context__ = gone
    assert problem_of(closed).reason is Reason.TIMEOUT


def test_detail_hint_and_context_stay_out() -> None:
    hidden = {field: f"row of another tenant {field}" for field in "DHWq"}
    problem = problem_of(server_error("23505", "duplicate key", **hidden))
    assert "another tenant" not in f"{problem.message}{problem.args}"


SECRET = "c4rd-4929"


@pytest.mark.parametrize(
    ("state", "message", "routine", "told"),
    [
        ("22P02", f'invalid input syntax for type integer: "{SECRET}"', "pg_strtoint32", "representation error"),
        ("22012", "division by zero", "int4div", "division by zero error"),
        ("P0001", f"odd row {SECRET}", "exec_stmt_raise", "raise error"),
        ("P0004", f"assertion about {SECRET}", "exec_stmt_assert", "assert error"),
        ("53400", f"raised under a state of ours: {SECRET}", "exec_stmt_raise", "configuration limit exceeded error"),
        ("42P01", f"raised under a state of ours: {SECRET}", "PLy_elog_impl", "undefined table error"),
        ("ZZ999", SECRET, "anything", "error"),
        ("XX000", SECRET, "anything", "internal server error"),
    ],
)
def test_t9_of_an_error_inside_the_views_query_only_the_kind_is_told(
    state: str, message: str, routine: str, told: str
) -> None:
    error = server_error(state, message, R=routine, D=SECRET)
    problem = problem_of(error, view_found=True)
    assert SECRET not in f"{problem.message}{problem.args}"
    assert f"{told} (SQLSTATE {state})" in problem.message
    assert "--verbose-errors" in problem.message
    assert problem.sqlstate == state
    assert message in problem_of(error, view_found=True, verbose=True).message


def test_t9_a_tenants_own_bad_value_is_not_repeated_either() -> None:
    problem = problem_of(server_error("22P02", SECRET), view_found=True, tenant_setting_given=True)
    assert problem.reason is Reason.TENANT_SETTING_INVALID
    assert SECRET not in problem.message


@pytest.mark.parametrize("state", ["42P01", "42501", "53400", "55P03", "23505", "21000"])
def test_what_postgresql_itself_says_of_names_and_limits_is_told(state: str) -> None:
    assert "its own words" in problem_of(server_error(state, "its own words", R="own"), view_found=True).message


def test_a_name_that_the_databases_encoding_cannot_write_is_no_view() -> None:
    for state in ("22P05", "22021"):
        assert problem_of(server_error(state)).reason is Reason.VIEW_NOT_FOUND
        assert problem_of(server_error(state), tenant_setting_given=True).reason is Reason.TENANT_SETTING_INVALID
        assert problem_of(server_error(state), view_found=True).reason is Reason.VIEW_QUERY_FAILED


@given(st.text(max_size=3000))
def test_any_message_is_one_line_of_one_kibibyte_that_the_ledger_can_hold(text: str) -> None:
    message = problem_of(server_error("42501", text)).message
    assert len(message.encode()) <= MESSAGE_BYTES
    assert message.endswith(" (SQLSTATE 42501)")
    assert is_printable(message)
    if is_printable(text):
        assert message.startswith(text[:200])


@given(st.text(max_size=50))
def test_what_a_hostile_server_calls_its_state_is_a_state_or_nothing(state: str) -> None:
    problem = problem_of(server_error(state), view_found=True)
    assert re.fullmatch("([0-9A-Z]{5})?", str(problem.sqlstate))
    assert len(problem.message) < MESSAGE_BYTES


def test_a_cut_never_splits_a_character() -> None:
    assert shown("x" + "€" * 1000, size=1024) == "x" + "€" * 341


def test_a_text_of_a_hundred_megabytes_is_not_walked_through() -> None:
    text = "x" * 100_000_000
    assert shown(text, size=1024) == text[:1024]


def test_escape_sequences_and_marks_of_direction_do_not_reach_a_terminal() -> None:
    assert shown("a\x1b[2Jb\u202ec\r\nd\0", size=99) == "a\ufffd[2Jb\ufffdc  d\ufffd"
