"""The node's metrics (Prometheus); those of both roles are in shared.metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

SESSIONS = Gauge("push_node_sessions", "Sessions registered on this node")
CONNECTIONS = Counter("push_node_connections_total", "Connections by how their handshake ended", ["outcome"])
SESSIONS_ENDED = Counter("push_node_sessions_ended_total", "Sessions ended, by close code", ["code"])
LINES = Counter("push_node_lines_total", "Lines of records, by what became of them", ["outcome"])
DELIVERED = Counter("push_node_delivered_total", "Envelopes written to sessions")
RESENT = Counter("push_node_resent_total", "Envelopes written again because no acknowledgement came")
REPLAYED = Counter("push_node_replayed_total", "Envelopes that came from an inbox or a timeline")
CURSORS_MOVED = Counter("push_node_cursors_moved_total", "Cursors in audiences that were moved in Redis")
TIMELINE_GAPS = Counter("push_node_timeline_gaps_total", "Times that a record of an audience was late or lost")
MESSAGES_CUT = Counter("push_node_messages_cut_total", "Sessions told that messages were not kept for as long")
PACED = Counter("push_node_paced_total", "Times that reading the topic waited for the sockets")
LAG = Gauge("push_node_lag_seconds", "How long ago the record in hand was stored; 0 when nothing waits")
RECONCILED = Counter("push_node_reconciled_total", "Sessions that the sweep found wanting, by what", ["what"])
RETIRED = Counter("push_node_retired_total", "Messages taken out of inboxes")
CLIENT_FRAMES = Counter("push_node_client_frames_total", "Frames from clients, by kind", ["kind"])
DRAIN_LEFT = Gauge("push_node_drain_left", "Sessions that a drain has still to see off; 0 while there is no drain")
REFUSED = Counter("push_node_refused_total", "What a limit refused, by limit", ["limit"])


def count_refused(limit: str, count: int) -> None:
    REFUSED.labels(limit).inc(count)


BACKLOG_LET_GO = Counter("push_node_backlog_let_go_total", "Items let go because a backlog was full", ["backlog"])
