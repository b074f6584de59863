"""What the server counts, in a registry of its own.

Children are bound once per route, so a request costs two increments.  Index gauges are read from the engine
when they are asked for.  What this module does not do: keep history; Prometheus does.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lakehouse.collection import Collection
from lakehouse.sql.execution import State
from lakehouse.sql.service import SqlService

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The server's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lakehouse_http_requests_total",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lakehouse_http_request_seconds",
            "Seconds from the request's head to its answer's last byte, by route.",
            ("route",),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._store_calls = Counter(
            "lakehouse_store_operations_total",
            "Calls to the object store, by operation and outcome.",
            ("operation", "outcome"),
            registry=self.registry,
        )
        self._store_seconds = Histogram(
            "lakehouse_store_operation_seconds",
            "Seconds a call to the object store took, by operation.",
            ("operation",),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._bound: dict[tuple[str, int], Callable[[float], None]] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        bound = self._bound.get((route, status))
        if bound is None:
            bound = self._bound[route, status] = self._bind(route, status)
        bound(seconds)

    def _bind(self, route: str, status: int) -> Callable[[float], None]:
        count = self._requests.labels(route, str(status)).inc
        observe = self._seconds.labels(route).observe

        def both(seconds: float) -> None:
            count()
            observe(seconds)

        return both

    def observe(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one call to the store (`lakehouse.store.wrappers.StoreObserver`)."""
        self._store_calls.labels(operation, outcome).inc()
        self._store_seconds.labels(operation).observe(seconds)

    def watch(self, collections: Callable[[], Iterable[Collection]]) -> None:
        """Read gauges of every open index when metrics are asked for."""
        self.registry.register(_IndexGauges(collections))

    def watch_sql(self, sql: SqlService) -> None:
        """Read the SQL service's numbers when metrics are asked for."""
        self.registry.register(_SqlNumbers(sql))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _IndexGauges(Collector):
    """Gauges computed from the engine's own numbers."""

    def __init__(self, collections: Callable[[], Iterable[Collection]]) -> None:
        self._collections = collections

    def collect(self) -> Iterator[Metric]:
        labels = ("index", "shard")
        items = GaugeMetricFamily("lakehouse_index_items", "Live items.", labels=labels)
        position = GaugeMetricFamily(
            "lakehouse_index_position", "Newest log sequence number applied.", labels=labels
        )
        log_bytes = GaugeMetricFamily(
            "lakehouse_index_log_bytes", "Bytes of log past the newest snapshot.", labels=labels
        )
        queue = GaugeMetricFamily(
            "lakehouse_index_queue_bytes", "Bytes of writes waiting for their commit.", labels=labels
        )
        damaged = GaugeMetricFamily(
            "lakehouse_index_damaged", "1 when the log is damaged and writes are refused.", labels=labels
        )
        for collection in self._collections():
            for shard in collection.shard_list:
                place = (collection.name, str(shard.number))
                items.add_metric(place, len(shard))
                position.add_metric(place, shard.position)
                log_bytes.add_metric(place, shard.replica.log_bytes)
                queue.add_metric(place, shard.queued_bytes)
                damaged.add_metric(place, 0 if shard.damage is None else 1)
        yield from (items, position, log_bytes, queue, damaged)


class _SqlNumbers(Collector):
    """What the SQL service counts itself."""

    def __init__(self, sql: SqlService) -> None:
        self._sql = sql

    def collect(self) -> Iterator[Metric]:
        now = GaugeMetricFamily("lakehouse_sql_queries", "SQL queries now, by state.", labels=("state",))
        for state in (State.QUEUED, State.RUNNING):
            now.add_metric((state.value,), self._sql.count(state))
        ended = CounterMetricFamily(
            "lakehouse_sql_queries_ended",
            "SQL queries that ended: succeeded, cancelled, or the kind of their failure.",
            labels=("outcome",),
        )
        for outcome, count in sorted(self._sql.numbers.ended.items()):
            ended.add_metric((outcome,), count)
        seconds = CounterMetricFamily(
            "lakehouse_sql_seconds", "Seconds of all ended SQL queries, from admission to end."
        )
        seconds.add_metric((), self._sql.numbers.seconds)
        cached = GaugeMetricFamily("lakehouse_sql_cache_bytes", "Bytes of dataset files kept for SQL.")
        cached.add_metric((), self._sql.cache.size_bytes)
        yield from (now, ended, seconds, cached)
