"""`python -m sandbox [FOLDER]`: the demo's servers, without show and operator, for work on the operator.

FOLDER, .sandbox if not given, holds `env`, which a shell sources; so one sandbox at a time for each folder.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from sandbox.environment import write_environment
from sandbox.errors import SandboxError
from sandbox.foreground import in_foreground
from sandbox.interruption import Interrupted, interrupt_on_signals, to_the_end
from sandbox.operator_process import LOOPBACK, NAMESPACE, PROGRAM, SERVICE_ACCOUNT
from sandbox.processes import free_port
from sandbox.reference import OWNER_ROLE
from sandbox.stack import SAMPLES, Stack, running_stack
from sandbox.steps import Steps
from sandbox.terminal import Terminal
from sandbox.workspace import ROOT, Workspace


class _Sandbox:
    """One sandbox from its start to its end. `run` is called once."""

    def __init__(self, *, folder: Path, terminal: Terminal) -> None:
        self._folder = folder
        self._environment = folder / "env"
        self._terminal = terminal
        self.was_up = False

    async def run(self) -> None:
        """Start the servers, tell how to reach them, and stop them when cancelled."""
        workspace = Workspace.claim_only("sandbox", root=self._folder)
        try:
            async with AsyncExitStack() as exits:
                with Steps(self._terminal) as steps:
                    stack = await exits.enter_async_context(
                        running_stack(workspace.path, with_operator=False, steps=steps)
                    )
                exits.callback(self._environment.unlink, missing_ok=True)
                self._tell(stack, folder=workspace.path)
                self.was_up = True
                await asyncio.Event().wait()
        finally:
            await to_the_end(workspace.release)

    def _tell(self, stack: Stack, *, folder: Path) -> None:
        write_environment(
            self._environment,
            folder=folder,
            cluster=stack.control_plane,
            variables={
                "DATABASE_URL": stack.analytics.url(OWNER_ROLE),
                "ADMIN_DATABASE_URL": stack.analytics.admin_url,
            },
        )
        account = stack.control_plane.service_account_kubeconfig(
            namespace=NAMESPACE, name=SERVICE_ACCOUNT, path=folder / "operator" / "kubeconfig"
        )
        self._terminal.say(
            f"\n{self._environment}:\n\n{self._environment.read_text()}\n"
            "In another terminal:\n\n"
            f"source {shlex.quote(str(self._environment))}\n\n"
            "# Two tenants' databases and policies; their namespaces and Secrets are there.\n"
            f"kubectl apply -k {shlex.quote(str(SAMPLES))}\n\n"
            "# The operator, under its own ServiceAccount.\n"
            f"KUBECONFIG={shlex.quote(str(account))} MATVIEW_HOST=127.0.0.1 MATVIEW_PORT={free_port()} "
            f"MATVIEW_ALLOWED_HOSTS={LOOPBACK} "
            f"{shlex.quote(str(PROGRAM))} run\n\n"
            "Ctrl-C stops the servers and cleans up."
        )


def main() -> int:
    """Run the sandbox and return its exit code."""
    interrupt_on_signals()
    terminal = Terminal()
    folder = Path(sys.argv[1]).absolute() if sys.argv[1:] else ROOT
    sandbox = _Sandbox(folder=folder, terminal=terminal)
    try:
        in_foreground(
            sandbox.run,
            what="The sandbox",
            on_signal=lambda: terminal.say("\nStopping and cleaning up…"),
            terminal=terminal,
        )
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        terminal.say("Stopped: no process, port or file of the sandbox is left.")
        # Being interrupted is how it is meant to end; before it was up, it is not.
        return 0 if sandbox.was_up else interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
