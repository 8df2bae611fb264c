"""What Prometheus reads. No tenant is in a label; series end with their policy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
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


@dataclass(slots=True)
class _Counts:
    """Of one policy. A series of the library's own, with its lock, takes three times as much memory."""

    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By outcome and reason."""
    missed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    """By reason."""
    is_measured: bool = False


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
        self._counts: defaultdict[Key, _Counts] = defaultdict(_Counts)
        self._measured: Counter[str] = Counter()
        """By namespace: policies with a run whose duration was observed."""
        self._durations = Histogram(
            "matview_run_duration_seconds",
            "How long runs took that refreshed their view.",
            ("namespace",),
            buckets=_DURATION_BUCKETS,
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
        self.registry.register(_Counters(self._counts))

    def run_ended(self, key: Key, result: RefreshResult) -> None:
        """Count one run of one view; its duration only if it did refresh."""
        counts = self._counts[key]
        counts.runs[_why(result.outcome, result.error_type)] += 1
        if result.outcome is RefreshOutcome.SUCCESS and result.error_type is not RefreshReason.RECOVERED:
            self._durations.labels(key.namespace).observe(result.duration_ms / 1000)
            self._measured[key.namespace] += not counts.is_measured
            counts.is_measured = True

    def slot_started(self, *, lag_seconds: float) -> None:
        """Observe a slot's lag."""
        self._lag.observe(lag_seconds)

    def slots_missed(self, key: Key, count: int) -> None:
        """Count slots that were not run."""
        self._counts[key].missed += count

    def retried(self, key: Key, reason: RefreshReason) -> None:
        """Count an attempt that is made again."""
        self._counts[key].retries[reason] += 1

    def policy_gone(self, key: Key) -> None:
        """Drop its series."""
        counts = self._counts.pop(key, None)
        if counts is not None and counts.is_measured:
            self._measured[key.namespace] -= 1
            if not self._measured[key.namespace]:
                del self._measured[key.namespace]
                self._durations.remove(key.namespace)

    def exposition(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)


class _Counters(Collector):
    def __init__(self, counts: Mapping[Key, _Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        runs = CounterMetricFamily(
            "matview_runs",
            "Runs of single views that ended, by outcome and reason.",
            labels=(*_PLACE, "outcome", "reason"),
        )
        missed = CounterMetricFamily(
            "matview_slots_missed",
            "Slots that were not run: later than startingDeadlineSeconds, superseded, or locked out.",
            labels=_PLACE,
        )
        retries = CounterMetricFamily(
            "matview_retries",
            "Attempts at a view that were made again in the same slot, by the reason why.",
            labels=(*_PLACE, "reason"),
        )
        for key, counts in self._counts.items():
            for why, count in counts.runs.items():
                runs.add_metric([*key, *why], count)
            if counts.missed:
                missed.add_metric(key, counts.missed)
            for reason, count in counts.retries.items():
                retries.add_metric([*key, reason], count)
        yield from (runs, missed, retries)


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


@cache
def _why(outcome: RefreshOutcome, reason: RefreshReason | None) -> tuple[str, str]:
    """The labels of a run; each pair is there once."""
    return outcome.value, "" if reason is None else reason.value


def since(moment: datetime, *, now: datetime) -> float:
    """Seconds since a moment, never negative: two machines' clocks may differ a little."""
    return max(0.0, (now - moment).total_seconds())
