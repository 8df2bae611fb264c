"""What to try next, as commands that can be pasted; a test runs them as they are printed."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

_FILES = ("invalid.yaml", "missing-view.yaml")

# $DEMO, $METRICS_URL and a kubectl that fits are in the environment that the first command reads.
_COMMANDS = """\
# All policies: ready? fresh? when next?
kubectl get mvrp -A
kubectl explain mvrp.spec.schedule

# Suspend one, see it on the board, and resume it.
kubectl -n tenant-a patch mvrp daily-revenue --type=merge -p '{"spec":{"suspend":true}}'
kubectl -n tenant-a patch mvrp daily-revenue --type=merge -p '{"spec":{"suspend":false}}'

# Refresh now, and wait until it is done.
token=$(date +%s)
kubectl -n tenant-a annotate mvrp attribution --overwrite matviews.skeldir.io/requestedAt=$token
kubectl -n tenant-a wait mvrp/attribution --for=jsonpath='{.status.lastHandledRequest}'=$token --timeout=60s

# Apply an invalid one: the API server refuses it and says why.
kubectl apply -f "$DEMO/invalid.yaml"

# Apply one whose view does not exist, read the error, and delete it.
kubectl apply -f "$DEMO/missing-view.yaml"
kubectl -n tenant-a wait mvrp/missing-view --for=condition=Ready=False --timeout=60s
kubectl -n tenant-a get mvrp missing-view -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}{"\\n"}'
kubectl -n tenant-a events --for=matviewrefreshpolicy/missing-view
kubectl delete -f "$DEMO/missing-view.yaml"

# What Prometheus would scrape.
"""

_FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
"""What curl does, by what is there in any case."""


def write_files(folder: Path) -> None:
    """Put the files that the commands apply into the demo's folder."""
    for name in _FILES:
        shutil.copy(Path(__file__).with_name(name), folder)


def source_command(environment: Path) -> str:
    """Return the command that prepares a shell for the others."""
    return f"source {shlex.quote(str(environment))}"


def commands(environment: Path) -> str:
    """Return all commands, each on a line, with comments."""
    fetch = "curl -s" if shutil.which("curl") else f"python3 -c {shlex.quote(_FETCH)}"
    return f'{source_command(environment)}\n\n{_COMMANDS}{fetch} "$METRICS_URL" | grep ^matview_\n'


def is_command(line: str) -> bool:
    """Tell a command from a comment and an empty line."""
    return bool(line.strip()) and not line.startswith("#")
