"""The operator's numbers, for Prometheus: what it did is counted, what there is is read when it is asked for.

What this module does not do: serve them (`health`), or measure the data plane; pods have numbers of their own.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lakehouse.control import kinds
from lakehouse.control.state import PAUSE_ANNOTATION
from lakehouse.runtime import Runtime
from lakehouse_operator.cache import Cache

PREFIX = "lakehouse_operator"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Outcome:
    """How a turn ended, as far as it is known."""

    def __init__(self) -> None:
        self.ok = True

    def failed(self) -> None:
        self.ok = False


class Metrics:
    """What is counted while the operator works."""

    def __init__(self, runtime: Runtime, cache: Cache) -> None:
        self._runtime = runtime
        self.registry = CollectorRegistry()
        self._turns = Counter(
            f"{PREFIX}_reconciles", "Turns that were given.", ["kind"], registry=self.registry
        )
        self._failures = Counter(
            f"{PREFIX}_reconcile_failures",
            "Turns that ended with an error.",
            ["kind"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}_reconcile_duration_seconds",
            "How long turns took.",
            ["kind"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.leader = Gauge(
            f"{PREFIX}_leader", "1 while this replica is the leader, else 0.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files, under their usual names
        self.registry.register(_Resources(runtime, cache))
        for kind in kinds.KINDS:
            self._turns.labels(kind)
            self._failures.labels(kind)

    def watch_queue(self, depth: Callable[[], float], oldest_s: Callable[[], float]) -> None:
        """Tell of a queue."""
        Gauge(f"{PREFIX}_queue_depth", "Resources whose turn is due.", registry=self.registry).set_function(
            depth
        )
        Gauge(
            f"{PREFIX}_queue_oldest_seconds",
            "How long the one that waits longest for its turn has waited.",
            registry=self.registry,
        ).set_function(oldest_s)

    @contextlib.contextmanager
    def reconciling(self, kind: str) -> Iterator[Outcome]:
        """One turn; not counted when it is cancelled."""
        outcome, began_s = Outcome(), self._runtime.monotonic()
        yield outcome
        self._turns.labels(kind).inc()
        self._seconds.labels(kind).observe(self._runtime.monotonic() - began_s)
        if not outcome.ok:
            self._failures.labels(kind).inc()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Resources(Collector):
    """What the cache knows, when it is asked."""

    def __init__(self, runtime: Runtime, cache: Cache) -> None:
        self._runtime = runtime
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        there = GaugeMetricFamily(f"{PREFIX}_resources", "Resources there are.", labels=["kind", "namespace"])
        paused = GaugeMetricFamily(
            f"{PREFIX}_paused", "1 for each resource that is paused.", labels=["kind", "namespace", "name"]
        )
        condition = GaugeMetricFamily(
            f"{PREFIX}_condition",
            "1 for the status and the reason that a condition has.",
            labels=["kind", "namespace", "name", "type", "status", "reason"],
        )
        for kind in kinds.KINDS:
            counts: dict[str, int] = {}
            for body in self._cache.resources(kind):
                namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
                counts[namespace] = counts.get(namespace, 0) + 1
                if (body["metadata"].get("annotations") or {}).get(PAUSE_ANNOTATION) == "true":
                    paused.add_metric([kind, namespace, name], 1)
                for one in (body.get("status") or {}).get("conditions") or ():
                    told = [one["type"], one["status"], one.get("reason", "")]
                    condition.add_metric([kind, namespace, name, *told], 1)
            for namespace, count in counts.items():
                there.add_metric([kind, namespace], count)
        yield from (there, paused, condition, self._missing(), *self._snapshots())

    def _missing(self) -> Metric:
        missing = GaugeMetricFamily(
            f"{PREFIX}_index_replicas_missing",
            "How many of its replicas the shard lacks that has the fewest pods which serve; of an index that is not "
            "suspended and has served.",
            labels=["namespace", "name"],
        )
        for key in self._cache.keys((kinds.VECTOR_INDEX,)):
            found = self._cache.parsed(key)
            if found is None or found.spec.suspend or found.meta.deletion_requested:
                continue
            if "position" in found.status:
                ready = found.status.get("readyReplicas", 0)
                missing.add_metric([*key[1:]], max(0, found.spec.replicas - ready))
        return missing

    def _snapshots(self) -> Iterator[Metric]:
        labels = ["namespace", "name"]
        last = GaugeMetricFamily(
            f"{PREFIX}_last_snapshot_success_timestamp_seconds",
            "When an index's last successful snapshot was complete, as Unix time.",
            labels=labels,
        )
        age = GaugeMetricFamily(
            f"{PREFIX}_snapshot_age_seconds",
            "How long ago an index's last successful snapshot was complete.",
            labels=labels,
        )
        now = self._runtime.now().timestamp()
        for body in self._cache.resources(kinds.VECTOR_INDEX):
            at = _completed(body)
            if at is not None:
                names = [body["metadata"]["namespace"], body["metadata"]["name"]]
                last.add_metric(names, at)
                age.add_metric(names, max(0.0, now - at))
        yield from (last, age)


def _completed(body: dict[str, Any]) -> float | None:
    snapshot = (body.get("status") or {}).get("snapshot") or {}
    at = (snapshot.get("lastSuccessful") or {}).get("completedAt")
    return None if not at else datetime.fromisoformat(at).timestamp()
