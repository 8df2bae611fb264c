"""Whatever a hostile server says of itself and of its views, a status can be made of it: somebody hears of the run."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

import pytest
from sandbox.pgtemplate import SUPERUSER
from tests.database import MV_OPERATOR
from tests.liar import Liar
from tests.refreshes import a_run, public
from tests.unit.ports import EPOCH

from matview_operator import RefreshOutcome
from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.adapters.postgres.inspector import Inspector
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import Isolation
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.api.view import Concurrently
from matview_operator.domain.connection import parse_url
from matview_operator.domain.errors import Problem
from matview_operator.domain.inspection import ViewCheck
from matview_operator.domain.reading import read_policy_status
from matview_operator.domain.result import MESSAGE_BYTES
from matview_operator.domain.slot import SlotReport, scheduled
from matview_operator.domain.status import Standing, after_slot, fresh_after, with_conditions
from matview_operator.domain.text import is_printable
from matview_operator.engine.preflight import _server_status

if TYPE_CHECKING:
    from tests.database import Database

    from matview_operator.domain.connection import ConnectionTarget
    from matview_operator.domain.result import RefreshResult

LONG = b"x" * 3_000_000
UNPRINTABLE = "a\x1b[2J\u202eb\r\nc".encode()
INT8 = {"negative": struct.pack("!q", -5), "huge": struct.pack("!q", 2**63 - 1), "null": None}
TIMES = {
    "infinity": struct.pack("!q", 2**63 - 1),
    "minus infinity": struct.pack("!q", -(2**63)),
    "year 9999": struct.pack("!q", (9999 - 2000) * 365 * 86_400_000_000),
    "null": None,
}
TEXTS = {"long": LONG, "unprintable": UNPRINTABLE, "empty": b"", "not utf-8": b"\xff\xfe", "null": None}
LIES: dict[str, dict[str, bytes | None]] = {
    "version database role bookkeeping quoted owner relkind": TEXTS,
    "inserted deleted estimated_rows size_bytes run_id earlier_attempts system_identifier": INT8,
    "data_as_of now": TIMES,
    "oid version_num": {"null": None, "short": b"\0"},
    "superuser in_recovery populated usable_index may_refresh owner_has_temp in_use": {"null": None},
}


@pytest.mark.parametrize("databases", [18], indirect=True)
@pytest.mark.parametrize(("columns", "lies"), LIES.items(), ids=["texts", "numbers", "times", "oids", "truths"])
async def test_any_lie_ends_in_a_status_that_can_be_written(
    database: Database, columns: str, lies: dict[str, bytes | None]
) -> None:
    view = await database.make_view()
    async with Liar(database.server.port).listen() as liar:
        target = parse_url(database.url(via=liar))
        for column, (name, lie) in itertools.product(columns.split(), lies.items()):
            liar.lies = {column: lie}
            result = await Refresher().refresh(target=target, run=a_run(view, timeout_seconds=5, due_at=EPOCH))
            where = f"{column} {name}: {result}"
            if result.outcome is RefreshOutcome.SUCCESS:
                assert result.rows_inserted is None or 0 <= result.rows_inserted <= 10**15, where
            else:
                assert result.error_type, where
                assert result.error_message, where
            check_status(result)
            for message in (result.error_message or "", await inspected(target) or ""):
                assert is_printable(message), where
                assert len(message.encode()) <= 4 * MESSAGE_BYTES, where


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_hostile_servers_error_is_cut_and_cleaned(database: Database) -> None:
    await database.make_view()
    async with Liar(database.server.port).listen() as liar:
        target = parse_url(database.url(via=liar))
        liar.error = b"SERROR\0C" + LONG + b"\0M" + UNPRINTABLE + LONG + b"\0D" + LONG + b"\0R" + LONG + b"\0"
        await database.execute_as(SUPERUSER, f"alter database {database.name} connection limit 0")
        result = await Refresher().refresh(target=target, run=a_run(public("mv"), timeout_seconds=5))
        problem = await inspected(target)
    assert result.outcome is RefreshOutcome.FAILED
    assert result.error_message
    assert len(result.error_message.encode()) <= MESSAGE_BYTES
    assert is_printable(result.error_message)
    assert problem
    assert len(problem) <= MESSAGE_BYTES
    check_status(result)


@pytest.mark.parametrize("databases", [18], indirect=True)
async def test_a_name_that_an_encoding_cannot_write_is_one_views_problem_alone(database: Database) -> None:
    await database.execute_as(
        SUPERUSER, f"create database {database.name}_latin1 template template0 encoding 'LATIN1' locale 'C'"
    )
    try:
        url = database.server.url(
            user=MV_OPERATOR, password=database.passwords[MV_OPERATOR], database=f"{database.name}_latin1"
        )
        target = parse_url(url)
        well = ViewCheck(view=public("mv"), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED)
        odd = ViewCheck(view=public("表"), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED)
        answers = (await Inspector().inspect(target=target, checks=[odd, well], allow_superuser=False)).answers
        for check in (well, odd):
            answer = answers[check]
            assert isinstance(answer, Problem)
            assert answer.reason is RefreshReason.VIEW_NOT_FOUND
        result = await Refresher().refresh(target=target, run=a_run(public("表")))
        assert result.error_type is RefreshReason.VIEW_NOT_FOUND
        tenant = a_run(public("mv"), isolation=Isolation.TENANT, tenant_id="表")
        result = await Refresher().refresh(target=target, run=tenant)
        assert result.error_type is RefreshReason.TENANT_SETTING_INVALID
    finally:
        await database.execute_as(SUPERUSER, f"drop database {database.name}_latin1 with (force)")


async def inspected(target: ConnectionTarget) -> str | None:
    """Make the database's status of a preflight; return the message of its problem, if any."""
    check = ViewCheck(view=public("mv"), concurrently=Concurrently.IF_POSSIBLE, isolation=Isolation.SHARED)
    try:
        inspection = await Inspector().inspect(target=target, checks=[check], allow_superuser=False)
    except Problem as problem:
        return problem.message
    server = _server_status(inspection.server)
    assert is_printable(f"{server.version}{server.role}{server.database}")
    answer = inspection.answers[check]
    return answer.message if isinstance(answer, Problem) else None


def check_status(result: RefreshResult) -> None:
    """Fold a result into a policy's status, twice, and read it again as the API server stores it."""
    slot = scheduled(EPOCH, starting_deadline_seconds=300)
    report = SlotReport(
        slot=slot,
        correlation_id="c",
        started_at=result.started_at,
        ended_at=result.started_at,
        results=((public("mv"), result),),
    )
    status = MatviewRefreshPolicyStatus()
    for _ in range(3):
        status = after_slot(status, report, history_limit=5)
    status = with_conditions(
        status,
        Standing(generation=1, problem=None),
        timetable=None,
        next_slot=None,
        now=EPOCH,
        fresh=fresh_after(report),
    )
    document = status_document(status)
    assert (
        read_policy_status({"status": {key: value for key, value in document.items() if value is not None}}) == status
    )
