"""docs/metrics.md says what /metrics holds; and no tenant is in a label."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from matview_operator.adapters.metrics import PolicyReading, PrometheusMetrics
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.engine.ports import Key

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
KEY = Key("analytics", "daily-revenue")
TENANT = "123e4567-e89b-12d3-a456-426614174000"


def exposition() -> str:
    """Every series there can be: one policy, one run, one slot, one missed."""
    metrics = PrometheusMetrics(
        version="0.1.0",
        revision="abc",
        policies=lambda: [PolicyReading(key=KEY, ready=True, seconds_since_verified=3.0)],
        queue_depth=lambda: 1,
        leads=lambda: True,
    )
    metrics.run_ended(
        KEY,
        RefreshResult(
            view_name="mv_daily_revenue_summary",
            tenant_id=TENANT,
            correlation_id="one",
            outcome=RefreshOutcome.SUCCESS,
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            duration_ms=5,
            lock_key_debug="view_key=1,tenant_key=2",
            rows_inserted=1,
        ),
    )
    metrics.slot_started(lag_seconds=0.1)
    metrics.slots_missed(KEY, 1)
    metrics.retried(KEY, RefreshReason.CONNECTION_FAILED)
    return metrics.exposition().decode()


def exposed() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels by name."""
    found = {}
    for family in text_string_to_metric_families(exposition()):
        labels = frozenset(name for sample in family.samples for name in sample.labels if name != "le")
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    return found


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    rows = [re.split(r" ?\| ?", line.strip("|").strip()) for line in TEXT.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): (row[1], frozenset(re.findall(r"`(\w+)`", row[2]))) for row in rows}


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    assert documented() == exposed()


def test_the_alerts_use_metrics_and_labels_that_exist() -> None:
    names = {name if kind != "histogram" else f"{name}_bucket": labels for name, (kind, labels) in documented().items()}
    alerts = re.findall(r"```promql\n(.*?)```", TEXT, re.DOTALL)
    used = [match for alert in alerts for match in re.finditer(r"(matview_\w+)(?:\{(\w+)=)?", alert)]
    assert len(alerts) == 8
    assert len(used) == 9
    for match in used:
        assert match[1] in names
        assert match[2] is None or match[2] in names[match[1]]


def test_metrics_policy_no_tenant_and_no_view_is_in_a_label() -> None:
    text = exposition()
    assert KEY.name in text
    assert TENANT not in text
    assert "mv_daily_revenue_summary" not in text
    for _, labels in exposed().values():
        assert labels <= {"namespace", "policy", "outcome", "reason", "ready", "version", "revision"}
