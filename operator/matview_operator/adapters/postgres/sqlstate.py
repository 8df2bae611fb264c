"""The one table from SQLSTATE to reason. A message's text is shown, cut, and never read.

Only the primary message is carried: DETAIL of a unique violation and CONTEXT of a function hold rows. So may the
primary message of an error inside the view's query (`invalid input syntax for type integer: "…"`, RAISE), and whoever
may read a policy's status need not be allowed to read its rows: of such an error only the condition's name is told.
"""

from __future__ import annotations

import re

import asyncpg

from matview_operator.api.outcome import RefreshReason as Reason
from matview_operator.domain.errors import Problem
from matview_operator.domain.result import MESSAGE_BYTES
from matview_operator.domain.text import shown

ROW_SECURITY_ROUTINE = "check_enable_rls"
_RAISED_BY_A_FUNCTION = frozenset({"exec_stmt_raise", "exec_stmt_assert", "PLy_elog_impl", "croak_cstr", "pltcl_elog"})
"""Routines by which PL/pgSQL, PL/Python, PL/Perl and PL/Tcl say what their author wrote, under any SQLSTATE."""
_MAY_QUOTE_ROWS = frozenset({Reason.VIEW_QUERY_FAILED, Reason.TENANT_SETTING_INVALID})

_STATES: dict[str, Reason] = {
    "42P01": Reason.VIEW_NOT_FOUND,
    "42883": Reason.VIEW_NOT_FOUND,
    "42704": Reason.VIEW_NOT_FOUND,
    "3F000": Reason.VIEW_NOT_FOUND,
    "0A000": Reason.NOT_MATERIALIZED_VIEW,
    "42809": Reason.NOT_MATERIALIZED_VIEW,
    "55000": Reason.NO_UNIQUE_INDEX,
    "21000": Reason.DUPLICATE_ROWS,
    "23505": Reason.DUPLICATE_ROWS,
    "42501": Reason.PERMISSION_DENIED,
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
    "57P05": Reason.CONNECTION_LOST,
    "28P01": Reason.AUTHENTICATION_FAILED,
    "28000": Reason.AUTHENTICATION_FAILED,
    "3D000": Reason.AUTHENTICATION_FAILED,
    "53300": Reason.SERVER_BUSY,
    "53100": Reason.SERVER_RESOURCES,
    "53200": Reason.SERVER_RESOURCES,
    "53400": Reason.SERVER_RESOURCES,
}
_CLASSES: dict[str, Reason] = {
    "08": Reason.CONNECTION_LOST,
    "22": Reason.VIEW_QUERY_FAILED,
    "53": Reason.SERVER_RESOURCES,
    "58": Reason.SERVER_RESOURCES,
}
_REMEDIES: dict[Reason, str] = {
    Reason.UNSAFE_SEARCH_PATH: (
        "A function that the view calls names it without a schema. Run ALTER FUNCTION … SET search_path = …, or write "
        "the schema in the function; on PostgreSQL 15 and 16 spec.searchPath of the MatviewDatabase, or --search-path, "
        "helps too."
    ),
}
"""What to do, where neither the server nor a check of the catalogue says so."""
_UNQUALIFIED_NAME = frozenset({"42P01", "42883", "42704"})
_UNSUPPORTED = "0A000"
_BAD_VALUE = "22P02"
_NOT_IN_THIS_ENCODING = frozenset({"22021", "22P05"})
_STATE = re.compile("[0-9A-Z]{5}")
_CONNECTION = "08"
_PROTOCOL_VIOLATION = "08P01"


def problem_of(  # noqa: PLR0911 - a table of cases
    error: BaseException,
    *,
    view_found: bool = False,
    connecting: bool = False,
    tenant_setting_given: bool = False,
    verbose: bool = False,
) -> Problem:
    """Classify whatever a conversation with the server raised.

    `view_found`: the lookup had found a materialized view, so that a missing name lies inside its query.
    `connecting`: nothing had been asked of the server yet. `tenant_setting_given`: the run is a tenant's own.
    `verbose`: the server's words are told though they may hold rows.
    """
    # A backend that ends says why; asyncpg raises that it is gone, and keeps the server's word beside it.
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error.__context__, asyncpg.PostgresError):
        error = error.__context__
    # So it does where our own guard dropped the connection.
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(
        error.__cause__, (asyncpg.PostgresError, Problem)
    ):
        error = error.__cause__
    match error:
        case Problem():
            return error
        case asyncpg.PostgresError():
            state = _state_of(error)
            reason = _reason_of(error, state, view_found=view_found, connecting=connecting, tenant=tenant_setting_given)
            remedy = _REMEDIES.get(reason)
            end = f" (SQLSTATE {state})" + ("" if remedy is None else f". {remedy}")
            if not verbose and view_found and _may_quote_rows(error, reason):
                return Problem(reason, f"{_without_rows(error, state)} {remedy or ''}".rstrip(), sqlstate=state)
            message = str(error.args[0]) if error.args else "server error"
            return Problem(reason, shown(message, size=MESSAGE_BYTES - len(end.encode())) + end, sqlstate=state)
        case TimeoutError() if connecting:
            return Problem(Reason.CONNECTION_FAILED, "The server did not answer in time. Check host, port and network.")
        case TimeoutError():
            return Problem(Reason.TIMEOUT, "The run did not end within its timeout.")
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() | OSError() | EOFError():
            if connecting:
                return Problem(Reason.CONNECTION_FAILED, f"Cannot connect: {_system_text(error)}.")
            return Problem(Reason.CONNECTION_LOST, "The connection to the server was lost.")
        case _:
            return Problem(Reason.INTERNAL_ERROR, f"An unexpected {type(error).__name__}; the log has its trace.")


def _reason_of(  # noqa: PLR0911 - a table of cases
    error: asyncpg.PostgresError, state: str, *, view_found: bool, connecting: bool, tenant: bool
) -> Reason:
    if state in _UNQUALIFIED_NAME and view_found:
        return Reason.UNSAFE_SEARCH_PATH
    if state == _UNSUPPORTED and view_found:
        return Reason.NOT_POPULATED
    if state[:2] == _CONNECTION and connecting:
        return Reason.CONNECT_REJECTED if state == _PROTOCOL_VIOLATION else Reason.CONNECTION_FAILED
    if state in _NOT_IN_THIS_ENCODING and not view_found:
        # A name or tenant id with characters that this database's encoding has not.
        return Reason.TENANT_SETTING_INVALID if tenant else Reason.VIEW_NOT_FOUND
    if state == _BAD_VALUE and tenant:
        return Reason.TENANT_SETTING_INVALID
    if getattr(error, "server_source_function", None) == ROW_SECURITY_ROUTINE:
        return Reason.ROW_SECURITY_HAZARD
    return _STATES.get(state) or _CLASSES.get(state[:2]) or Reason.VIEW_QUERY_FAILED


def _state_of(error: asyncpg.PostgresError) -> str:
    """Five characters, or none: what a hostile server calls its state may be anything."""
    state = error.sqlstate or ""
    return state if _STATE.fullmatch(state) else ""


def _may_quote_rows(error: asyncpg.PostgresError, reason: Reason) -> bool:
    return reason in _MAY_QUOTE_ROWS or getattr(error, "server_source_function", None) in _RAISED_BY_A_FUNCTION


def _without_rows(error: asyncpg.PostgresError, state: str) -> str:
    """Name the error by its SQLSTATE's condition, `division by zero error`; the driver names its classes so."""
    known = type(error).sqlstate == state
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower() if known else "error"
    return (
        f"The view's query failed: {name} (SQLSTATE {state}). The server's own words may hold rows: they are in its "
        "log, and --verbose-errors tells them here too."
    )


def _system_text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    match error:
        case asyncpg.InterfaceError() | asyncpg.ProtocolError():
            return "the server's answer was not PostgreSQL's"
        case asyncpg.InternalClientError():
            return "the server ended the session"
        case _:
            return "network error"
