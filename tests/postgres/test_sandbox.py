"""The sandbox's promises: servers that start for anybody, stay apart, and leave nothing behind."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest
from sandbox.account import DISK, MEMORY, ServerHome
from sandbox.cache import FOLDER_VARIABLE, require_disk
from sandbox.errors import MissingPart, SandboxError
from sandbox.pgbinaries import VERSIONS, PostgresBinaries
from sandbox.postgres import PostgresServer
from sandbox.processes import ServerProcess, answers, has_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.postgres import Mode
    from tests.databases import Databases

_CHECKOUT = Path(__file__).parents[2]

_ORPHAN_MAKER = """
import sys, threading, time
from pathlib import Path
from sandbox.postgres import PostgresServer

# In a thread that ends: the server must outlive it, and die with the process only.
started = []
thread = threading.Thread(target=lambda: started.append(PostgresServer.start(directory=Path(sys.argv[1]))))
thread.start()
thread.join()
time.sleep(0.5)
print(started[0].pid, started[0].port, started[0].data, flush=True)
time.sleep(600)
"""

_RESTLESS = """
import signal, sys
from pathlib import Path
from sandbox.postgres import PostgresServer

# Shells start background jobs with Ctrl-C ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("begin", flush=True)
while True:
    with PostgresServer.start(directory=Path(sys.argv[1])):
        pass
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_leaves_no_process_no_port_and_no_data(version: int, tmp_path: Path) -> None:
    with PostgresServer.start(version=version, directory=tmp_path) as server:
        postmaster = psutil.Process(server.pid)
        family = [postmaster, *postmaster.children(recursive=True)]
        assert postmaster.uids().real != 0
        assert answers(server.port)
        assert server.data.is_dir()
    assert all(map(has_ended, family))
    assert not answers(server.port)
    assert not server.data.parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == [server.log.name]
    server.stop()


async def test_each_server_has_its_own_password_and_data(start_server: Callable[..., Databases]) -> None:
    one, other = start_server().server, start_server().server
    connection = await asyncpg.connect(one.admin_url(), ssl=False)
    await connection.execute("create database only_here")
    await connection.close()
    foreign = other.admin_url().replace(f":{other.port}/", f":{one.port}/")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(foreign, ssl=False)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(other.admin_url("only_here"), ssl=False)
    one.stop()
    connection = await asyncpg.connect(other.admin_url(), ssl=False)
    assert await connection.fetchval("select pg_postmaster_start_time() < now()")
    await connection.close()


def test_initdb_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    made: list[dict[str, int]] = []
    for run in range(2):
        with PostgresServer.start(directory=tmp_path / str(run)):
            kept = (tmp_path / "cache" / "postgresql").rglob("PG_VERSION")
            made.append({str(path): path.stat().st_mtime_ns for path in kept})
    assert made[0]
    assert made[0] == made[1]


async def test_data_outlives_a_restart(start_server: Callable[..., Databases]) -> None:
    server = start_server().server
    modes: tuple[Mode, ...] = ("fast", "immediate")
    for mode in modes:
        connection = await asyncpg.connect(server.admin_url(), ssl=False)
        await connection.execute(f"create table kept_{mode} (id int)")
        connection.terminate()
        server.restart(mode)
    connection = await asyncpg.connect(server.admin_url(), ssl=False)
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public' order by 1")
    await connection.close()
    assert [row[0] for row in tables] == ["kept_fast", "kept_immediate"]


def test_a_killed_parent_leaves_no_server(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _ORPHAN_MAKER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=_CHECKOUT
    )
    try:
        assert owner.stdout is not None
        pid, port, data = owner.stdout.readline().split(maxsplit=2)
        server = psutil.Process(int(pid))
        family = [server, *server.children(recursive=True)]
        assert answers(int(port))
    finally:
        owner.kill()
        owner.communicate()
    left = _kill_what_is_left(family)
    assert left == []
    assert not answers(int(port))
    # Whoever comes next clears what nobody could.
    ServerHome.create(name="next", directory=tmp_path).remove()
    assert not Path(data.strip()).exists()


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.7, 1.0, 1.4])
def test_ctrl_c_at_any_moment_leaves_nothing(seconds: float, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _RESTLESS, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_CHECKOUT,
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "begin\n"
        # The moment is the point here: no event marks the middle of a start.
        time.sleep(seconds)
        family = psutil.Process(owner.pid).children(recursive=True)
        owner.send_signal(signal.SIGINT)
        _, complaint = owner.communicate(timeout=60)
    finally:
        owner.kill()
        owner.communicate()
    assert complaint.splitlines()[-1] == "KeyboardInterrupt"
    assert _kill_what_is_left(family) == []
    homes = [folder.glob(f"matview-sandbox-{owner.pid}-*") for folder in (DISK, MEMORY, tmp_path)]
    assert [home for found in homes for home in found] == []


def test_a_server_that_ignores_its_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    # The child is in a session of its own, as PostgreSQL's backends are: no signal to the group reaches it.
    script = "trap '' TERM; setsid sleep 600 & echo started; wait; wait"
    process = ServerProcess.start(["sh", "-c", script], name="stubborn", log=tmp_path / "log")
    process.wait_ready(lambda: "started" in process.log_tail(), timeout=10)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.stop(timeout=0.2)
    assert process.exit_code == -signal.SIGKILL
    assert _kill_what_is_left(family, patience=0) == []


def test_a_server_that_dies_at_its_start_shows_its_log_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SandboxError, match="could not create any TCP/IP sockets"):
        PostgresServer.start(directory=tmp_path, settings={"listen_addresses": "192.0.2.1"})
    with pytest.raises(SandboxError, match="no_such_setting"):
        PostgresServer.start(directory=tmp_path, settings={"no_such_setting": 1})
    assert time.monotonic() - began < 30
    assert [path.name for path in tmp_path.iterdir()] == ["postgresql-18.log"]


def test_a_taken_port_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PostgresServer.start(directory=tmp_path / "first") as first:
        ports = iter([first.port, 0])
        find = sys.modules["sandbox.postgres"].free_port
        monkeypatch.setattr("sandbox.postgres.free_port", lambda: next(ports) or find())
        with PostgresServer.start(directory=tmp_path / "second") as second:
            assert second.port != first.port
            assert answers(second.port)


def test_programs_in_a_closed_home_are_copied_for_the_servers_account(tmp_path: Path) -> None:
    """Under root tmp_path is closed to nobody, as /root is; a user's own server needs no copy."""
    found = PostgresBinaries.find(18)
    assert found.wheel is not None
    closed = tmp_path / "closed"
    for part in (found.bin.parents[1].name, f"{found.bin.parents[1].name}.libs"):
        shutil.copytree(found.wheel / part, closed / part, ignore=shutil.ignore_patterns("include", "*.a"))
    closed.chmod(0o700)
    hidden = replace(found, wheel=closed, bin=closed / found.bin.relative_to(found.wheel))
    home = ServerHome.create(name="copy", directory=tmp_path)
    try:
        runnable = hidden.runnable_in(home)
        assert (runnable.bin == hidden.bin) == (home.account is None)
        subprocess.run(
            [runnable.bin / "initdb", "--version"],
            check=True,
            env={},
            user=home.account.uid if home.account else None,
        )
    finally:
        home.remove()


def test_a_missing_part_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pgbinaries._DEBIAN_VERSIONS", frozenset({14}))
    with pytest.raises(MissingPart, match="PostgreSQL 14 is missing: apt-get install postgresql-14"):
        PostgresServer.start(version=14, directory=tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=rf"The moon needs 1,000,000,000 MB of disk.*{FOLDER_VARIABLE}"):
        require_disk(path=tmp_path / "not" / "yet", needed_bytes=10**15, what="The moon")
    require_disk(path=tmp_path / "not" / "yet", needed_bytes=1, what="A grain")


async def test_tls_is_offered_with_a_certificate_of_its_own(start_server: Callable[..., Databases]) -> None:
    server = start_server(version=15, tls=True).server
    server.pg_hba_prepend(["hostnossl all all 127.0.0.1/32 reject"])
    trusting = ssl.create_default_context(cafile=server.ca)
    trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the default of Python 3.13, which wants more of an authority
    connection = await asyncpg.connect(server.admin_url(), ssl=trusting)
    assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    await connection.close()
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(server.admin_url(), ssl=False)


def _kill_what_is_left(family: list[psutil.Process], *, patience: float = 10) -> list[psutil.Process]:
    """Return the processes that have not ended after `patience` s; a failed test leaves none of them behind."""
    deadline = time.monotonic() + patience
    while not all(map(has_ended, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [process for process in family if not has_ended(process)]
    for process in left:
        process.kill()
    return left
