"""Lives through histories: `python -m tests.simulation SEED` tells one, `FIRST NUMBER` tries so many of them.

The order of Python's sets depends on PYTHONHASHSEED; it is set to 0 here, so that a seed means the same everywhere.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.simulation import prepare, simulate

_AT_ONCE = 50
_SHOWN = 10


def main(arguments: list[str]) -> int:
    """Return 1 if a promise was broken."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(  # noqa: S606 - ourselves again
            sys.executable, [sys.executable, "-m", "tests.simulation", *arguments], os.environ | {"PYTHONHASHSEED": "0"}
        )
    first, *rest = map(int, arguments)
    return many(first, rest[0]) if rest else tell(first)


def tell(seed: int) -> int:
    """Print all that happens in one history."""
    prepare()
    outcome = simulate(seed, tell=True)
    print(*outcome.told, sep="\n")
    print(f"seed {seed}: trace {outcome.trace}, {outcome.calls} calls, {len(outcome.violations)} broken promises")
    return 1 if outcome.violations else 0


def many(first: int, number: int) -> int:
    """Print which of these histories broke a promise, and how to see it."""
    begun = time.perf_counter()
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=prepare) as processes:
        outcomes = [*processes.map(simulate, range(first, first + number), chunksize=_AT_ONCE)]
    broken = [outcome for outcome in outcomes if outcome.violations]
    for outcome in broken[:_SHOWN]:
        print(f"seed {outcome.seed} (make simulate SEEDS={outcome.seed}, trace {outcome.trace}):")
        for violation in outcome.violations[:3]:
            print(f"  {violation}")
    days = sum(outcome.seconds for outcome in outcomes) / 86_400
    print(
        f"{number} histories from seed {first}, {days:.0f} days with {sum(each.calls for each in outcomes)} refreshes, "
        f"in {time.perf_counter() - begun:.0f} s: {len(broken)} broke a promise."
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
