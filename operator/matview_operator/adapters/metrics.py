"""What Prometheus reads. No tenant is in a label; series end with their policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain.result import RefreshResult
from matview_operator.engine.ports import Key

# A second series beside each counter and histogram, which nobody here reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

_LAG_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
_PLACE = ("namespace", "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReading:
    """What a scrape asks of one policy."""

    key: Key
    ready: bool | None
    seconds_since_verified: float
    """Since the stalest of its views was known to be current; since its creation if one never was."""


class PrometheusMetrics:
    """Counters that the engine drives, and gauges that are computed at each scrape, from time and not from events."""

    def __init__(
        self,
        *,
        version: str,
        revision: str,
        policies: Callable[[], Iterable[PolicyReading]],
        queue_depth: Callable[[], int],
        leads: Callable[[], bool],
    ) -> None:
        self.registry = CollectorRegistry()
        self._seen: defaultdict[Key, set[tuple[str, str]]] = defaultdict(set)
        self._retried: defaultdict[Key, set[str]] = defaultdict(set)
        self._measured: defaultdict[str, set[str]] = defaultdict(set)
        self._runs = Counter(
            "matview_runs",
            "Runs of single views that ended, by outcome and reason.",
            (*_PLACE, "outcome", "reason"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "matview_run_duration_seconds",
            "How long runs took that refreshed their view.",
            ("namespace",),
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self._missed = Counter(
            "matview_slots_missed",
            "Slots that were not run: later than startingDeadlineSeconds, superseded, or locked out.",
            _PLACE,
            registry=self.registry,
        )
        self._retries = Counter(
            "matview_retries",
            "Attempts at a view that were made again in the same slot, by the reason why.",
            (*_PLACE, "reason"),
            registry=self.registry,
        )
        self._lag = Histogram(
            "matview_scheduler_lag_seconds",
            "From the instant a slot is due to the start of its first run.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        build = Gauge("matview_build_info", "Which build this is.", ("version", "revision"), registry=self.registry)
        build.labels(version, revision).set(1)
        leader = Gauge("matview_leader", "1 if this process works, 0 if it stands by.", registry=self.registry)
        leader.set_function(lambda: float(leads()))
        self.registry.register(_Readings(policies, queue_depth))

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        """Count one run of one view; its duration only if it did refresh."""
        labels = (result.outcome.value, "" if result.error_type is None else result.error_type.value)
        self._seen[key].add(labels)
        self._runs.labels(*key, *labels).inc()
        if result.outcome is RefreshOutcome.SUCCESS and result.error_type is not RefreshReason.RECOVERED:
            self._measured[key.namespace].add(key.name)
            self._durations.labels(key.namespace).observe(result.duration_ms / 1000)

    def slot_started(self, *, lag_seconds: float) -> None:
        """Observe a slot's lag."""
        self._lag.observe(lag_seconds)

    def slots_missed(self, key: Key, count: int) -> None:
        """Count slots that were not run."""
        self._missed.labels(*key).inc(count)

    def retried(self, key: Key, reason: RefreshReason) -> None:
        """Count an attempt that is made again."""
        self._retried[key].add(reason.value)
        self._retries.labels(*key, reason.value).inc()

    def policy_gone(self, key: Key) -> None:
        """Drop its series."""
        for reason in self._retried.pop(key, ()):
            self._retries.remove(*key, reason)
        for labels in self._seen.pop(key, ()):
            self._runs.remove(*key, *labels)
        measured = self._measured.get(key.namespace, set())
        if key.name in measured:
            measured.remove(key.name)
            if not measured:
                del self._measured[key.namespace]
                self._durations.remove(key.namespace)
        if key in self._missed._metrics:  # noqa: SLF001 - remove() logs or raises on a series that never was
            self._missed.remove(*key)

    def exposition(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)


class _Readings(Collector):
    def __init__(self, policies: Callable[[], Iterable[PolicyReading]], queue_depth: Callable[[], int]) -> None:
        self._policies = policies
        self._queue_depth = queue_depth

    def collect(self) -> Iterator[Metric]:
        staleness = GaugeMetricFamily(
            "matview_seconds_since_verified",
            "Age of the stalest view: since it was last known to be current, or since the policy was created.",
            labels=_PLACE,
        )
        counts = {"True": 0, "False": 0, "Unknown": 0}
        for reading in self._policies():
            staleness.add_metric(list(reading.key), reading.seconds_since_verified)
            counts["Unknown" if reading.ready is None else str(reading.ready)] += 1
        yield staleness
        policies = GaugeMetricFamily("matview_policies", "Policies by their Ready condition.", labels=["ready"])
        for ready, count in counts.items():
            policies.add_metric([ready], count)
        yield policies
        yield GaugeMetricFamily(
            "matview_queue_depth", "Slots, requests and runs that are due and wait.", value=self._queue_depth()
        )


def since(moment: datetime, *, now: datetime) -> float:
    """Seconds since a moment, never negative: two machines' clocks may differ a little."""
    return max(0.0, (now - moment).total_seconds())
