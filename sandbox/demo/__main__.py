"""`python -m sandbox.demo`: the main job, live, on real servers that are gone afterwards.

DEMO_SECONDS in the environment ends it by itself; the exit code is then 0 only if every slot that became due was
refreshed or covered.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from sandbox.demo.hints import commands, source_command, write_files
from sandbox.demo.show import Show
from sandbox.demo.summary import summary_table, totals, verdict
from sandbox.environment import write_environment
from sandbox.errors import SandboxError
from sandbox.foreground import in_foreground
from sandbox.interruption import Interrupted, interrupt_on_signals, to_the_end
from sandbox.reference import OWNER_ROLE
from sandbox.stack import apply_samples, longest_interval, running_stack
from sandbox.steps import Steps
from sandbox.terminal import Terminal
from sandbox.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.operator_process import OperatorProcess
    from sandbox.stack import Stack

SECONDS_VARIABLE = "DEMO_SECONDS"


class _Demo:
    """One demo from its start to its end. `run` is called once."""

    def __init__(self, *, terminal: Terminal, seconds: float | None) -> None:
        self._terminal = terminal
        self._seconds = seconds
        self._show: Show | None = None
        self._commands = ""

    async def run(self) -> bool:
        """Start, show and stop everything; tell whether every slot was refreshed or covered."""
        workspace = Workspace.claim("demo")
        keep_logs = False
        try:
            good = await self._run_in(workspace.path)
            keep_logs = not good
        except Exception:  # whatever went wrong, the logs tell more of it; it is raised on
            keep_logs = True
            raise
        else:
            return good
        finally:
            await to_the_end(lambda: workspace.release(keep_logs=keep_logs))
            if keep_logs:
                self._terminal.say(f"The servers' logs are in {workspace.path} until the next demo.")

    async def _run_in(self, folder: Path) -> bool:
        environment = folder / "env"
        self._commands = commands(environment)
        async with AsyncExitStack() as exits:
            with Steps(self._terminal) as steps:
                stack = await exits.enter_async_context(running_stack(folder, with_operator=True, steps=steps))
                with steps.step("Applying the tenants' databases and policies") as step:
                    await apply_samples(stack.control_plane)
                    step.result = "Two tenants' databases and policies: kubectl apply -k manifests/samples"
            write_files(folder)
            assert stack.operator is not None
            _write_environment(environment, stack=stack, operator=stack.operator)
            self._terminal.say(f"\nIn another terminal: {source_command(environment)}\n")
            hints = f"\nWhat to try next, in another terminal:\n\n{self._commands}"
            self._show = Show(stack=stack, operator=stack.operator, terminal=self._terminal, hints=hints)
            lines = await self._show.run(self._seconds)
        self._terminal.print(summary_table(lines))
        self._terminal.say(verdict(lines))
        return all(line.good for line in lines)

    @property
    def was_endless(self) -> bool:
        """Whether the show has begun, and would have gone on until somebody ended it."""
        return self._show is not None and self._seconds is None

    def say_farewell(self) -> None:
        """After Ctrl-C, when everything is cleaned up: what was done, and what to try next."""
        if self._show is not None:
            self._terminal.say(totals(self._show.accounts()))
        self._terminal.say("Stopped: no process, port or file of the demo is left.")
        if self._commands:
            self._terminal.say(f"\nWhat to try next: run make demo again, and in another terminal\n\n{self._commands}")

    def say_stopping(self) -> None:
        """After the first signal."""
        if self._show is None:
            self._terminal.say("\nStopping what has started and cleaning up…")
        else:
            self._show.say_goodbye()


def main() -> int:
    """Run the demo and return its exit code."""
    interrupt_on_signals()
    terminal = Terminal()
    demo: _Demo | None = None
    try:
        demo = _Demo(terminal=terminal, seconds=_seconds())
        good = in_foreground(demo.run, what="The demo", on_signal=demo.say_stopping, terminal=terminal)
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        if demo is None:
            return interrupted.exit_code
        demo.say_farewell()
        # Ctrl-C is how a demo without an end is meant to end.
        return 0 if demo.was_endless else interrupted.exit_code
    return 0 if good else 1


def _seconds() -> float | None:
    given = os.environ.get(SECONDS_VARIABLE)
    if not given:
        return None
    needed = longest_interval() + 1
    if not given.isdecimal() or int(given) < needed:
        raise SandboxError(
            f"{SECONDS_VARIABLE} must be a whole number of seconds, {needed} at least: "
            "every policy that is due every few seconds is to be seen at work."
        )
    return int(given)


def _write_environment(path: Path, *, stack: Stack, operator: OperatorProcess) -> None:
    write_environment(
        path,
        folder=path.parent,
        cluster=stack.control_plane,
        variables={
            "DATABASE_URL": stack.analytics.url(OWNER_ROLE),
            "ADMIN_DATABASE_URL": stack.analytics.admin_url,
            "METRICS_URL": operator.metrics_url,
            "DEMO": str(path.parent),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
