"""
The dispatcher's metrics (Prometheus); those of both roles are in shared.metrics.

What is counted for each send is kept in plain numbers (`Tally`) and turned into Prometheus's form when it is scraped:
an increment of a Counter costs about as much as a dictionary look-up and a lock, an observation more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

LIVE_NODES = Gauge("push_live_nodes", "Nodes with a live lease")
STALE_ROUTES_REMOVED = Counter("push_stale_routes_removed_total", "Routes of dead nodes that were taken out of Redis")
NODES_BEHIND = Gauge("push_nodes_behind", "Nodes that get nothing more for now, since they are behind")
NODES_BURIED = Counter("push_nodes_buried_total", "Dead nodes whose topic was deleted")
ROUTES_CLEANED = Counter("push_routes_cleaned_total", "Routes of dead nodes that the janitor took out of Redis")
REROUTED = Counter("push_rerouted_total", "Lines of dead nodes' topics that went to where their clients are now")
NODE_TOPICS_MISSING = Counter("push_node_topics_missing_total", "Publishes to a node whose topic is gone")
UPSTREAM = Counter("push_upstream_total", "Clients' frames taken from the upstream topic, by outcome", ["outcome"])
OUTBOX_ENTRIES = Gauge("push_outbox_entries", "Publishes that wait in Redis for the bus")
OUTBOX_BYTES = Gauge("push_outbox_bytes", "Bytes of publishes that wait in Redis for the bus")
OUTBOX_PUBLISHED = Counter("push_outbox_published_total", "Lines published from the outbox")
OUTBOX_DROPPED = Counter("push_outbox_dropped_total", "Lines in the outbox that could not be published", ["reason"])
BROADCASTS_RUNNING = Gauge("push_broadcasts_running", "Broadcasts that this dispatcher runs")
BROADCAST_TARGETS = Counter("push_broadcast_targets_total", "Targets that broadcasts came to, by state", ["state"])
API_KEYS = Gauge("push_api_keys", "API keys in use, as entries of their file")
API_KEYS_NOT_READ = Counter("push_api_keys_not_read_total", "States of the file of API keys that could not be used")
REFUSED = Counter("push_dispatcher_refused_total", "What was refused because of a limit, by limit", ["limit"])


def count_refused(limit: str, count: int) -> None:
    REFUSED.labels(limit).inc(count)


_BOUNDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Tally(Collector):
    """What became of sends and targets, and how long HTTP requests took."""

    __slots__ = ("_buckets", "_seconds", "connections", "in_flight", "sends", "targets")

    def __init__(self) -> None:
        self.sends: Counts[int] = Counts()
        self.targets: Counts[str] = Counts()
        self.in_flight = 0
        self.connections = 0
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def took(self, seconds: float) -> None:
        """One HTTP request that sends, from its arrival to its answer."""
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        sends = CounterMetricFamily("push_sends", "Sends by the status of their answer", labels=["status"])
        for status, count in self.sends.items():
            sends.add_metric([str(status)], count)
        yield sends
        targets = CounterMetricFamily("push_targets", "Targets of sends that were answered 200", labels=["state"])
        for state, count in self.targets.items():
            targets.add_metric([state], count)
        yield targets
        yield GaugeMetricFamily("push_http_in_flight", "HTTP requests under way", value=self.in_flight)
        yield GaugeMetricFamily("push_http_connections", "Connections to the HTTP port", value=self.connections)
        buckets, total = [], 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(
            "push_http_send_seconds",
            "Time from a send's arrival to its answer",
            buckets=buckets,
            sum_value=self._seconds,
        )
