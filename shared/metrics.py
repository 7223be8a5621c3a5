"""
Every metric name of both roles, in one place (Prometheus).

Counters on hot paths are raised once a batch, not once a message: an increment costs about as much as a
dictionary look-up and a lock.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

BUS_RECORDS_SET_ASIDE = Counter(
    "push_bus_records_set_aside_total", "Records that could not be decoded and were passed over", ["topic"]
)
BUS_RECONNECTS = Counter("push_bus_reconnects_total", "Connections to a broker that were made again", ["peer"])
BATCH_SIZE = Histogram(
    "push_batch_items",
    "Items that went out in one call, by batch",
    ["batch"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
BATCH_WAITING = Gauge("push_batch_waiting", "Items that wait for the next call, by batch", ["batch"])
TLS_EXPIRES = Gauge("push_tls_certificate_expires_seconds", "When the port's certificate ends (epoch s); 0 without TLS")
PRESENCE_EVENTS = Counter("push_presence_events_total", "Sessions that came or went, by event", ["event"])
PRESENCE_DROPPED = Counter("push_presence_dropped_total", "Presence events that were not published")
