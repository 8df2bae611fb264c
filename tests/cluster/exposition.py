"""What Prometheus would read from an operator."""

from __future__ import annotations

import urllib.request

from sandbox.operator_process import OperatorProcess


def scrape(operator: OperatorProcess) -> str:
    """Return all of its metrics."""
    with urllib.request.urlopen(operator.metrics_url, timeout=5) as answer:  # noqa: S310 - loopback
        return str(answer.read().decode())
