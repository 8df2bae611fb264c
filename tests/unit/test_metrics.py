"""What Prometheus reads: names, labels, series that end with their policy, and staleness that time alone makes grow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.world import policy_spec

from matview_operator.adapters.metrics import PolicyReading, PrometheusMetrics, since
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus, ViewStatus
from matview_operator.domain.result import RefreshResult
from matview_operator.engine.ports import Key, ObjectRef
from matview_operator.engine.registry import Policy
from matview_operator.main import _reading

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
A, B, OTHER = Key("ns", "a"), Key("ns", "b"), Key("elsewhere", "a")
TENANT = "11111111-1111-1111-1111-111111111111"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """Metrics, and what a scrape finds."""

    def __init__(self) -> None:
        self.readings: list[PolicyReading] = []
        self.depth = 0
        self.metrics = PrometheusMetrics(
            version="0.1.0", revision="abc", policies=self._policies, queue_depth=lambda: self.depth, leads=lambda: True
        )

    def _policies(self) -> Iterator[PolicyReading]:
        yield from self.readings

    def ran(self, key: Key, outcome: RefreshOutcome = RefreshOutcome.SUCCESS, **fields: Any) -> None:
        result = RefreshResult(
            view_name="mv_secret",
            tenant_id=TENANT,
            correlation_id="c",
            outcome=outcome,
            started_at=NOW,
            duration_ms=2000,
            lock_key_debug="",
        )
        if outcome is RefreshOutcome.SUCCESS:
            fields = {"mode": RefreshMode.CONCURRENT} | fields
        self.metrics.run_ended(key, result.model_copy(update=fields))

    def series(self, name: str) -> Series:
        """The samples of one name by labels, without the build's."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.metrics.exposition().decode())
            for sample in family.samples
            if sample.name.startswith(name)
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.series(name).get((name, tuple(sorted(labels.items()))))


def test_there_are_these_names_and_no_others() -> None:
    scraped = Scraped()
    scraped.ran(A)
    scraped.metrics.slot_started(lag_seconds=0.02)
    scraped.metrics.slots_missed(A, 2)
    scraped.readings = [PolicyReading(key=A, ready=True, seconds_since_verified=1)]
    assert {name for name, _ in scraped.series("")} == {
        "matview_runs_total",
        "matview_run_duration_seconds_bucket",
        "matview_run_duration_seconds_count",
        "matview_run_duration_seconds_sum",
        "matview_seconds_since_verified",
        "matview_slots_missed_total",
        "matview_policies",
        "matview_queue_depth",
        "matview_scheduler_lag_seconds_bucket",
        "matview_scheduler_lag_seconds_count",
        "matview_scheduler_lag_seconds_sum",
        "matview_leader",
        "matview_build_info",
    }
    labels = {name for _, pairs in scraped.series("") for name, _ in pairs}
    assert labels == {"namespace", "policy", "outcome", "reason", "le", "ready", "version", "revision"}
    text = scraped.metrics.exposition().decode()
    assert TENANT not in text
    assert "mv_secret" not in text


def test_runs_are_counted_by_outcome_and_reason() -> None:
    scraped = Scraped()
    scraped.ran(A)
    scraped.ran(A)
    scraped.ran(A, RefreshOutcome.FAILED, error_type=RefreshReason.TIMEOUT)
    scraped.ran(B, RefreshOutcome.SKIPPED_LOCK_HELD, error_type=RefreshReason.LOCK_HELD)
    count = {
        dict(labels)["policy"] + dict(labels)["outcome"]: n for (_, labels), n in scraped.series("matview_runs").items()
    }
    assert count == {"aSUCCESS": 2, "aFAILED": 1, "bSKIPPED_LOCK_HELD": 1}
    assert scraped.value("matview_runs_total", namespace="ns", policy="a", outcome="SUCCESS", reason="") == 2
    assert scraped.value("matview_runs_total", namespace="ns", policy="a", outcome="FAILED", reason="Timeout") == 1


@pytest.mark.parametrize(
    ("outcome", "fields", "measured"),
    [
        (RefreshOutcome.SUCCESS, {}, 1),
        (RefreshOutcome.SUCCESS, {"error_type": RefreshReason.FIRST_POPULATE}, 1),
        (RefreshOutcome.SUCCESS, {"error_type": RefreshReason.RECOVERED}, 0),  # looked up, not refreshed
        (RefreshOutcome.FAILED, {"mode": RefreshMode.CONCURRENT}, 0),
        (RefreshOutcome.SKIPPED_COVERED, {}, 0),
        (RefreshOutcome.SKIPPED_LOCK_HELD, {}, 0),
    ],
)
def test_durations_are_of_runs_that_refreshed_their_view(
    outcome: RefreshOutcome, fields: dict[str, Any], measured: int
) -> None:
    scraped = Scraped()
    scraped.ran(A, outcome, **fields)
    assert (scraped.value("matview_run_duration_seconds_count", namespace="ns") or 0) == measured
    assert (scraped.value("matview_run_duration_seconds_sum", namespace="ns") or 0) == measured * 2


def test_the_series_of_a_policy_end_with_it_and_leave_others_alone() -> None:
    scraped = Scraped()
    for key in (A, B, OTHER):
        scraped.ran(key)
        scraped.ran(key, RefreshOutcome.FAILED, error_type=RefreshReason.TIMEOUT)
        scraped.metrics.slots_missed(key, 1)
        scraped.metrics.retried(key, RefreshReason.TIMEOUT)
    scraped.metrics.policy_gone(A)
    left = {
        dict(labels).get("policy"): dict(labels)["namespace"]
        for _, labels in scraped.series("matview_")
        if "namespace" in dict(labels) and "policy" in dict(labels)
    }
    assert left == {"b": "ns", "a": "elsewhere"}
    assert scraped.value("matview_run_duration_seconds_count", namespace="ns") == 2  # b is still there
    scraped.metrics.policy_gone(B)
    assert scraped.value("matview_run_duration_seconds_count", namespace="ns") is None
    assert scraped.value("matview_run_duration_seconds_count", namespace="elsewhere") == 1
    scraped.metrics.policy_gone(OTHER)
    scraped.metrics.policy_gone(OTHER)
    scraped.metrics.policy_gone(Key("never", "seen"))
    assert not [labels for _, labels in scraped.series("matview_") if "namespace" in dict(labels)]


def test_a_policy_that_comes_again_counts_from_nothing() -> None:
    scraped = Scraped()
    scraped.ran(A)
    scraped.metrics.slots_missed(A, 5)
    scraped.metrics.policy_gone(A)
    scraped.ran(A)
    scraped.metrics.slots_missed(A, 1)
    assert scraped.value("matview_runs_total", namespace="ns", policy="a", outcome="SUCCESS", reason="") == 1
    assert scraped.value("matview_slots_missed_total", namespace="ns", policy="a") == 1
    assert scraped.value("matview_run_duration_seconds_count", namespace="ns") == 1


def test_staleness_is_read_anew_at_each_scrape_and_ends_with_the_policy() -> None:
    scraped = Scraped()
    verified, now = NOW, NOW

    def policies() -> Iterator[PolicyReading]:
        yield PolicyReading(key=A, ready=True, seconds_since_verified=since(verified, now=now))

    metrics = PrometheusMetrics(version="1", revision="r", policies=policies, queue_depth=lambda: 0, leads=lambda: True)
    scraped.metrics = metrics
    for seconds in (0, 10, 3600):
        now = NOW + timedelta(seconds=seconds)  # nothing else happens
        assert scraped.value("matview_seconds_since_verified", namespace="ns", policy="a") == seconds
    verified = now
    assert scraped.value("matview_seconds_since_verified", namespace="ns", policy="a") == 0
    assert since(now + timedelta(seconds=5), now=now) == 0  # the server's clock may be ahead


def test_a_policys_age_is_of_its_stalest_view_and_of_its_creation_until_all_were_verified() -> None:
    spec = MatviewRefreshPolicySpec.model_validate(policy_spec("p", views=[{"name": "a"}, {"name": "b"}]))
    policy = Policy(
        ref=ObjectRef(kind="MatviewRefreshPolicy", key=A, uid="00000000-0000-4000-8000-000000000001"),
        generation=1,
        created_at=NOW,
        spec=spec,
        status=MatviewRefreshPolicyStatus(),
        taken_until=NOW,
    )

    def age(seconds: float) -> float:
        return _reading(policy, now=NOW + timedelta(seconds=seconds)).seconds_since_verified

    def verified(**seconds: float) -> None:
        views = [
            ViewStatus(schema_name="public", name=n, verified_at=NOW + timedelta(seconds=s)) for n, s in seconds.items()
        ]
        policy.status = MatviewRefreshPolicyStatus(views=tuple(views))

    assert (age(5), age(500)) == (5, 500)
    verified(a=100)
    assert age(500) == 500
    verified(a=100, b=30)
    assert (age(500), age(501)) == (470, 471)
    policy.spec = None  # invalid now: not refreshed any more, and not as old as the policy for that
    assert age(500) == 470
    assert _reading(policy, now=NOW).ready is None


def test_policies_are_counted_by_ready_and_the_queue_by_its_depth() -> None:
    scraped = Scraped()
    scraped.depth = 7
    scraped.readings = [
        PolicyReading(key=Key("ns", f"p{number}"), ready=ready, seconds_since_verified=0)
        for number, ready in enumerate([True, True, False, None])
    ]
    assert scraped.value("matview_policies", ready="True") == 2
    assert scraped.value("matview_policies", ready="False") == 1
    assert scraped.value("matview_policies", ready="Unknown") == 1
    assert scraped.value("matview_queue_depth") == 7
    scraped.readings = []
    assert scraped.value("matview_policies", ready="True") == 0  # 0 and not absent, for alerts
    assert scraped.series("matview_seconds_since_verified") == {}


def test_the_build_is_told() -> None:
    assert Scraped().value("matview_build_info", version="0.1.0", revision="abc") == 1
