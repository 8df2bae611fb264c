"""How the command line ends other than well: the exit code, a sentence, and never a password."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from sandbox.processes import free_port
from tests.command_line import end, run, start
from tests.database import MV_OPERATOR
from tests.refreshes import GatedView, backends

if TYPE_CHECKING:
    from tests.database import Database


CANARY = "c4n4ry-Pa55"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_stops_the_server_and_tells_what_was_done(
    database: Database, number: signal.Signals, code: int
) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    arguments = ("refresh", "gated_plain", "gated", "gated_plain", "-o", "json")
    process = await start(*arguments, url=database.url())
    await gated.reached()
    process.send_signal(number)
    async with asyncio.timeout(5):
        ended = await end(process)
    assert (ended.code, ended.err) == (code, "")
    assert ended.outcomes() == {"gated_plain": "SUCCESS", "gated": "INTERRUPTED"}
    assert await backends(database) == 0


async def test_a_background_job_ignores_ctrl_c(database: Database) -> None:
    gated = await GatedView.make(database)
    await gated.shut()
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, as by a shell's background job
    try:
        process = await start("refresh", "gated", "-o", "json", url=database.url())
    finally:
        signal.signal(signal.SIGINT, ignored)
    await gated.reached()
    process.send_signal(signal.SIGINT)
    await gated.open()
    assert (await end(process)).outcomes() == {"gated": "SUCCESS"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mv", "--all"],
        ["a.b.c"],
        ["--all", "--isolation", "Tenant"],
        ["--all", "--isolation", "Both"],
        ["--all", "--tenant", "GLOBAL"],
        ["--all", "--tenant", ""],
        ["--all", "--timeout", "0"],
        ["--all", "--timeout", "soon"],
        ["--all", "--correlation-id", "a\nb"],
        ["--all", "--unknown"],
        ["--all", "--database-url-file", "/nowhere"],
        ["--all", "--database-url", f"https://u:{CANARY}@h/d"],
        ["--all", "--database-url", f"postgresql://u:{CANARY}@h:port/d"],
        [f"postgresql://u:{CANARY}@h/d"],
        [f"postgresql://u:{'x' * 90}{CANARY}@h/d"],
    ],
)
async def test_what_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    ended = await run("refresh", *arguments, url="postgresql://u:p@127.0.0.1:1/d")
    assert ended.code == 2
    assert ended.out == ""
    assert "Usage: matview-operator refresh" in ended.err
    assert "Error: " in ended.err
    assert CANARY not in ended.err


async def test_no_database_is_a_usage_error() -> None:
    for arguments in (["refresh", "--all"], ["migrate"], ["migrate", "--check"]):
        ended = await run(*arguments)
        assert (ended.code, "DATABASE_URL" in ended.err) == (2, True)


async def test_a_database_that_cannot_be_reached_is_a_failure_of_each_view(database: Database) -> None:
    nowhere = f"postgresql://u:{CANARY}@127.0.0.1:{free_port()}/d"
    ended = await run("refresh", "a", "b", "-o", "json", url=nowhere)
    assert (ended.code, [result["error_type"] for result in ended.results()]) == (1, ["ConnectionFailed"] * 2)
    ended = await run("refresh", "--all", "-o", "json", url=nowhere)
    assert (ended.code, ended.results()) == (1, [])
    assert ended.err.startswith("Error: Cannot connect")
    wrong = database.url().replace(database.passwords[MV_OPERATOR], CANARY)
    for arguments in (["refresh", "mv"], ["refresh", "--all"], ["migrate"], ["migrate", "--check"]):
        ended = await run(*arguments, url=wrong)
        assert ended.code == 1
        assert "password authentication failed" in ended.out + ended.err
        assert CANARY not in ended.out + ended.err


async def test_names_are_no_commands_to_the_terminal(database: Database) -> None:
    await database.make_view("evil\x1b[2J[bold]", unique=False)
    ended = await run("refresh", '"evil\x1b[2J[bold]"', '"gone\x07"', url=database.url())
    assert "\x1b" not in ended.out
    assert "\x07" not in ended.out
    assert r"evil\x1b[2J[bold]" in ended.out


async def test_a_password_in_the_wrong_place_is_not_shown() -> None:
    for credentials in (f"u:{CANARY}", f"u:p@{CANARY}", f"u:a b{CANARY}"):
        ended = await run("migrate", f"postgresql://{credentials}@h/d")
        assert ended.code == 2
        assert "://…@h/d" in ended.err
        assert CANARY not in ended.err


async def test_what_a_url_looks_like_is_shown() -> None:
    ended = await run("refresh", "mv", url="postgresql://h/d")
    assert "postgresql://user:password@host/database" in ended.err
