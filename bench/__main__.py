"""Run benchmarks: all of them, or those that are named."""

from __future__ import annotations

import asyncio
import sys

import click
from sandbox.errors import SandboxError

from bench import executor, fairness, guard, ledger, pgcron, scheduler, throughput

BENCHMARKS = {
    "executor": executor.measure,
    "fairness": fairness.measure,
    "guard": guard.measure,
    "throughput": throughput.measure,
    "ledger": ledger.measure,
    "scheduler": scheduler.measure,
    "pg_cron": pgcron.measure,
}


@click.command(context_settings={"max_content_width": 100})
@click.argument("names", metavar="[NAME]...", nargs=-1, type=click.Choice([*BENCHMARKS]))
def main(names: tuple[str, ...]) -> None:
    """Measure on servers of their own, print tables, and write bench/results.

    NAME is a benchmark, or none for all of them: executor (a run against a bare REFRESH), fairness (a tenant's view
    beside another's thousand), guard (what its checks add), throughput (runs per second, CPU time per run), ledger
    (a million runs, and how they are forgotten), scheduler (thousands of policies, twenty minutes) and pg_cron (the
    operator beside it, a quarter of an hour).
    Compare ratios, with nothing else running on the machine.
    """
    for name in names or BENCHMARKS:
        try:
            asyncio.run(BENCHMARKS[name]())
        except SandboxError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
