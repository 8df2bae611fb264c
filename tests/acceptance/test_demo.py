"""`make demo`: the main job, live, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sandbox.cache import FOLDER_VARIABLE
from sandbox.demo.hints import commands, is_command
from sandbox.workspace import Workspace
from tests.acceptance.program import Program

if TYPE_CHECKING:
    from pathlib import Path

DEMO = (sys.executable, "-m", "sandbox.demo")
EVERY_FEW_SECONDS = {
    "tenant-a/realtime-revenue": 5,
    "tenant-a/daily-revenue": 15,
    "tenant-a/reconciliation": 10,
    "tenant-b/revenue": 10,
    "tenant-b/reconciliation": 10,
}
CLEAN = "Stopped: no process, port or file of the demo is left."

pytestmark = pytest.mark.timeout(240)  # the first test of a pair of demos waits for both


@dataclass(frozen=True, slots=True)
class Performance:
    """A demo that has ended."""

    exit_code: int
    output: str
    leftovers: list[str]
    environment: Path
    servers: int


@dataclass(frozen=True, slots=True)
class Pasted:
    """One printed command as a visitor's shell ran it."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two demos that ran at the same time."""

    visited: Performance
    pasted: dict[str, Pasted]
    """What a visitor of the first one pasted."""
    broken: Performance
    """The other one, which lost a view."""
    visitors_home: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two demos at once: in one a visitor tries all that is printed, in the other somebody takes a view away."""
    folder = tmp_path_factory.mktemp("demos")
    with (
        Program(DEMO, folder=folder / "visited", env={"DEMO_SECONDS": "30"}) as visited,
        Program(DEMO, folder=folder / "broken", env={"DEMO_SECONDS": "25"}) as broken,
        ThreadPoolExecutor() as pool,
    ):
        visited.wait_for("In another terminal")
        home = folder / "visitor"
        home.mkdir()
        visit = pool.submit(paste, visited.environment, home=home)
        broken.wait_for("tenant-a/realtime-revenue S")
        asyncio.run(take_view_away(broken.environment.read_text()))
        return Pair(visited=ended(visited), pasted=visit.result(), broken=ended(broken), visitors_home=home)


def ended(program: Program) -> Performance:
    environment = program.environment
    return Performance(program.wait(), program.output, program.leftovers(), environment, program.servers)


def paste(environment: Path, *, home: Path) -> dict[str, Pasted]:
    """Run the printed commands in one shell, one after another, and tell what each of them did."""
    wanted = [line for line in commands(environment).splitlines() if is_command(line)]
    # Words that no command prints, and its exit code; the shell itself stays as a visitor's.
    script = "".join(f'{line}\necho "@@ $? @@"\n' for line in wanted)
    done = subprocess.run(
        ["bash"],
        input=script,
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    said = re.findall(r"(.*?)@@ (\d+) @@\n", done.stdout, flags=re.DOTALL)
    return {line: Pasted(exit_code=int(code), output=text) for line, (text, code) in zip(wanted, said, strict=True)}


async def take_view_away(environment: str) -> None:
    url = re.search(r"ADMIN_DATABASE_URL=(\S+)", environment)
    assert url is not None
    connection = await asyncpg.connect(*shlex.split(url[1]), ssl=False)
    try:
        await connection.execute("alter materialized view public.mv_realtime_revenue rename to mv_elsewhere")
    finally:
        await connection.close()


def table(output: str) -> dict[str, list[int]]:
    """The counts of the table at the end: due, refreshed, covered, failed, missed."""
    lines = re.findall(r"^(tenant-[ab]/\S+)((?: +\d+){5})(?: +\S+){2} *$", output, flags=re.MULTILINE)
    return {policy: [int(count) for count in counts.split()] for policy, counts in lines}


def test_a_demo_with_an_end_exits_0_when_every_slot_was_refreshed_or_covered(pair: Pair) -> None:
    assert pair.visited.exit_code == 0, pair.visited.output
    counts = table(pair.visited.output)
    assert counts.keys() == EVERY_FEW_SECONDS.keys() | {"tenant-a/attribution", "tenant-b/channels"}
    for policy, (due, refreshed, covered, failed, missed) in counts.items():
        assert (due, failed, missed) == (refreshed + covered, 0, 0), policy
    for policy, seconds in EVERY_FEW_SECONDS.items():
        # A visitor may have suspended it for a moment.
        assert counts[policy][0] >= max(1, 30 // seconds - 3), policy
    # Every ten seconds both tenants are due with that one view.
    covered_by_another = [counts[f"tenant-{tenant}/reconciliation"][2] for tenant in "ab"]
    assert sum(covered_by_another) >= 2, counts


def test_it_shows_a_view_that_lags_and_becomes_fresh(pair: Pair) -> None:
    changes = re.findall(
        r"mv_realtime_revenue, .*: was ([\d,.]+), refreshed to ([\d,.]+), tables ([\d,.]+)", pair.visited.output
    )
    assert len(changes) >= 3
    for texts in changes:
        before, now, true = (float(text.replace(",", "")) for text in texts)
        assert before < now <= true
    behind = re.findall(r"mv_realtime_revenue, .*: view [\d,.]+, tables [\d,.]+, behind ([\d,.]+)", pair.visited.output)
    assert any(float(number.replace(",", "")) > 0 for number in behind)


def test_it_tells_before_it_begins_how_long_it_takes_and_what_it_needs(pair: Pair) -> None:
    first = pair.visited.output.split("✓")[0]
    assert re.search(r"takes about \d+ s to start, downloads nothing, and needs up to \d+ MB\s+of\s+disk", first)


def test_two_demos_at_once_leave_nothing_and_do_not_disturb_each_other(pair: Pair) -> None:
    assert pair.visited.environment.parent != pair.broken.environment.parent
    for performance in (pair.visited, pair.broken):
        assert performance.servers >= 4
        assert performance.leftovers == []
    assert not pair.visited.environment.parent.exists()


def test_a_view_that_fails_makes_the_exit_code_1(pair: Pair) -> None:
    assert pair.broken.exit_code == 1, pair.broken.output
    counts = table(pair.broken.output)
    assert counts["tenant-a/realtime-revenue"][3] > 0
    assert counts["tenant-a/daily-revenue"][3:] == [0, 0]
    assert "tenant-a/realtime-revenue FAILED" in pair.broken.output
    assert "Not every slot that became due was refreshed or covered: see " in pair.broken.output


def test_the_logs_of_a_demo_that_failed_can_be_read_until_the_next(pair: Pair) -> None:
    folder = pair.broken.environment.parent
    assert f"The servers' logs are in {folder}" in pair.broken.output.replace("\n", "")
    # Another demo may have come since, which is what `until` means; so look only if the folder is ours to take.
    operator_log = (folder / "operator" / "operator.log").read_text()
    assert "ViewNotFound" in operator_log
    # They were asked to stop, not killed.
    assert "SIGTERM" in operator_log
    assert "database system is shut down" in (folder / "postgresql" / "postgresql-18.log").read_text()
    # Nothing else, secrets least of all.
    assert {path.suffix for path in folder.rglob("*") if not path.is_dir()} == {".log"}


def test_every_printed_command_does_what_it_says(pair: Pair) -> None:
    refused = [line for line, pasted in pair.pasted.items() if pasted.exit_code != 0]
    assert refused == ['kubectl apply -f "$DEMO/invalid.yaml"'], pair.pasted
    output = {line: pasted.output for line, pasted in pair.pasted.items()}

    def of(part: str) -> str:
        (found,) = (text for line, text in output.items() if part in line)
        return found

    assert of("get mvrp -A").count("\n") == 8
    assert "everySeconds" in of("explain")
    assert "condition met" in of("lastHandledRequest")
    assert "exactly one of" in of("invalid.yaml")
    assert "mv_no_such_view" in of("{.status.conditions")
    assert "ViewNotFound" in of("events --for")
    assert "deleted" in of("delete -f")
    assert 'matview_runs_total{namespace="tenant-a"' in of("METRICS_URL")


def test_the_printed_commands_write_nothing_into_the_visitors_home(pair: Pair) -> None:
    (source,) = (line for line in pair.pasted if line.startswith("source "))
    assert source == f"source {shlex.quote(str(pair.visited.environment))}"
    assert list(pair.visitors_home.rglob("*")) == []


def test_ctrl_c_on_a_terminal_ends_the_show_and_prints_what_to_try(tmp_path: Path) -> None:
    with Program(["make", "-s", "demo"], folder=tmp_path, columns=80) as demo:
        demo.wait_for("rows written by the application")
        demo.wait_for("+2 -2")
        environment = demo.environment
        assert environment.stat().st_mode & 0o077 == 0
        demo.press_ctrl_c()
        # The shell that make is called from sees make's own answer to Ctrl-C.
        assert demo.wait() in (-signal.SIGINT, 2, 130), demo.output
        assert CLEAN in demo.output
        assert commands(environment) in demo.output.replace("\r", "")
        assert demo.leftovers() == []
        assert not environment.parent.exists()
        for shown in ("POLICY", "TENANT", "LAST OUTCOME", "NEXT", "TOOK", "ROWS", "IN VIEW", "IN TABLES", "BEHIND"):
            assert shown in demo.output, shown


def test_sigterm_to_make_ends_a_demo_and_impatience_spoils_nothing(tmp_path: Path) -> None:
    with Program(["make", "-s", "demo"], folder=tmp_path) as demo:
        demo.wait_for("SUCCESS")
        demo.send(signal.SIGTERM)
        demo.send(signal.SIGTERM)
        demo.wait()
        assert CLEAN in demo.output
        assert demo.leftovers() == []


@pytest.mark.parametrize(
    ("moment", "wanted"),
    [
        ("to start, downloads nothing", signal.SIGINT),
        ("PostgreSQL 18 on", signal.SIGTERM),
        ("Kubernetes API server and etcd on", signal.SIGINT),
        ("base rows of", signal.SIGHUP),
    ],
)
def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path, moment: str, wanted: signal.Signals) -> None:
    with Program(DEMO, folder=tmp_path, env={"DEMO_SECONDS": "60"}) as demo:
        demo.wait_for(moment)
        demo.send(wanted)
        assert demo.wait() == 128 + wanted, demo.output
        assert CLEAN in demo.output
        assert demo.leftovers() == []
        assert "SUCCESS" not in demo.output


def test_a_signal_while_the_control_plane_is_built_leaves_no_compiler(tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "go"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\ncase "$1" in env) echo go1.99 ;; *) touch "$0.runs"; exec sleep 600 ;; esac\n')
    compiler.chmod(0o755)
    env = {
        "PATH": f"{compiler.parent}:{os.environ['PATH']}",
        FOLDER_VARIABLE: str(tmp_path / "cache"),
        "KUBEBUILDER_ASSETS": "",
    }
    with Program(DEMO, folder=tmp_path, env=env) as demo:
        demo.wait_for_file(compiler.with_suffix(".runs"))
        demo.send(signal.SIGTERM)
        assert demo.wait() == 128 + signal.SIGTERM, demo.output
        assert demo.leftovers() == []
        assert demo.processes >= 2


def test_an_operator_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    with Program(DEMO, folder=tmp_path) as demo:
        demo.wait_for("In another terminal")
        found = re.search(r"Operator, process (\d+),", demo.output)
        assert found is not None
        demo.send_to(int(found[1]), signal.SIGKILL)
        assert demo.wait() == 1, demo.output
        assert "The operator has ended. The end of its log:\n" in demo.output
        assert '"action": ' in demo.output
        assert demo.leftovers() == []


def test_a_reader_who_leaves_ends_the_demo(tmp_path: Path) -> None:
    with Program(["sh", "-c", f"{shlex.join(DEMO)} | head -n 4"], folder=tmp_path) as demo:
        demo.wait()
        assert "Nobody reads the output any more: everything was stopped and cleaned up." in demo.output
        assert "Traceback" not in demo.output
        assert demo.leftovers() == []


@pytest.mark.parametrize("seconds", ["5", "15", "soon", "-1", "30.5"])
def test_a_demo_too_short_to_see_every_policy_is_refused_at_once(tmp_path: Path, seconds: str) -> None:
    with Program(DEMO, folder=tmp_path, env={"DEMO_SECONDS": seconds}) as demo:
        assert demo.wait() == 1
        assert "DEMO_SECONDS must be a whole number of seconds, 16 at least" in demo.output
        assert demo.servers == 0


def test_a_folder_belongs_to_one_process_and_is_emptied_for_the_next(tmp_path: Path) -> None:
    first, second = (Workspace.claim("demo", root=tmp_path) for _ in range(2))
    assert [first.path.name, second.path.name] == ["demo-1", "demo-2"]
    for name in ("server/server.log", "server/data/secret", "link"):
        (first.path / name).parent.mkdir(parents=True, exist_ok=True)
        (first.path / name).write_text("by the first process")
    first.release(keep_logs=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first.path / "server" / "server.log"]
    again = Workspace.claim("demo", root=tmp_path)
    assert again.path == first.path
    assert list(again.path.iterdir()) == []
    again.release()
    second.release()
    assert list(tmp_path.iterdir()) == []
