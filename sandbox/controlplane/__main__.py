"""`python -m sandbox.controlplane build`: have the control plane's programs ready, or say that they are."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click
from rich.console import Console

from sandbox.controlplane.binaries import Binaries
from sandbox.errors import SandboxError


@click.group()
def main() -> None:
    """The Kubernetes control plane of demo, tests and benchmarks."""


@main.command()
def build() -> None:
    """Build the control plane's programs into the cache, unless they are there."""
    # As Ctrl-C: the compilers are stopped and what they finished is kept.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    try:
        binaries = Binaries.obtain(console=console)
        console.print(f"The control plane is ready in {binaries.kube_apiserver.parent}.", soft_wrap=True)
    except SandboxError as error:
        sys.exit(str(error))


def _interrupt(signum: int, frame: object) -> NoReturn:
    del signum, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="python -m sandbox.controlplane")
