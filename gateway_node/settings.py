"""The node's settings; see shared.settings for how they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway_node.websocket.pace import BURST_S
from shared.ids import is_node_id
from shared.origins import origin_patterns
from shared.settings import RoleSettings, is_loopback, one_of, port_number, seconds, setting, whole
from shared.upstream import MOST_IN_RECORD


def _node_id(text: str) -> str:
    if text and not is_node_id(text):
        raise ValueError("expected ip:port as clients and ops see it, [v6]:port for IPv6")
    return text


def _time_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected a name of the tz database, like Asia/Shanghai or UTC") from None
    return text


@dataclass(frozen=True, slots=True)
class GatewaySettings(RoleSettings):
    """What a node reads besides what both roles read."""

    host: str = setting(
        "PUSH_NODE_HOST", "", "bind address of the WebSocket port; default: 0.0.0.0, with PUSH_AUTH=off 127.0.0.1"
    )
    port: int = setting("PUSH_NODE_PORT", 9000, "the WebSocket port; 0 takes a free one", port_number)
    advertise: str = setting(
        "PUSH_NODE_ADVERTISE", "", "ip:port that clients and ops see; default: bind address", _node_id
    )
    url: str = setting(
        "PUSH_NODE_URL", "", "what /server/get tells clients; default ws://<nodeId>/websocket, wss:// with TLS"
    )
    admin_host: str = setting("PUSH_ADMIN_HOST", "127.0.0.1", "bind address of the admin port")
    admin_port: int = setting("PUSH_ADMIN_PORT", 9100, "metrics, health and counts; 0 takes a free one", port_number)
    allowed_origins: tuple[str, ...] = setting(
        "PUSH_ALLOWED_ORIGINS", (), "comma separated, * matches a label; unset: any", origin_patterns
    )
    session_policy: str = setting(
        "PUSH_SESSION_POLICY",
        "multi",
        "multi: any number of sessions a client; device: one a device; client: one",
        one_of("multi", "device", "client"),
    )
    client_sessions: int = setting(
        "PUSH_CLIENT_SESSIONS",
        100,
        "sessions of a client at most; beyond it the oldest are replaced",
        whole(1, 10_000),
    )
    group_join: str = setting(
        "PUSH_GROUP_JOIN",
        "open",
        "open: clients join any group whose id they know; closed: none",
        one_of("open", "closed"),
    )
    weight: int = setting("PUSH_NODE_WEIGHT", 1, "share of connections beside other nodes", whole(1, 1000))
    max_sessions: int = setting("PUSH_MAX_SESSIONS", 100_000, "connections beyond it are refused with 503", whole(1))
    max_frame: int = setting("PUSH_MAX_FRAME", 262_144, "bytes of a client's message at most", whole(125, 1 << 24))
    max_fragments: int = setting("PUSH_MAX_FRAGMENTS", 1024, "frames that a message may come in", whole(1))
    message_rate: int = setting(
        "PUSH_MESSAGE_RATE", 1_000, "messages a second of a session, five seconds' worth at once; 0: any", whole(0)
    )
    byte_rate: int = setting(
        "PUSH_BYTE_RATE", 4 << 20, "bytes a second of a session, five seconds' worth at once; 0: any", whole(0)
    )
    ping_rate: int = setting(
        "PUSH_PING_RATE", 10, "pings and pongs a second of a session, five seconds' worth at once; 0: any", whole(0)
    )
    frame_targets: int = setting(
        "PUSH_FRAME_TARGETS", 1_000, "clients that one frame of a client may name", whole(1, MOST_IN_RECORD)
    )
    session_errands: int = setting(
        "PUSH_SESSION_ERRANDS", 64, "frames of a session under way; beyond it the node reads on when they are", whole(1)
    )
    group_creates: int = setting(
        "PUSH_GROUP_CREATES", 60, "groups a minute that a session may make, as many at once; 0: any", whole(0)
    )
    max_outbox: int = setting("PUSH_MAX_OUTBOX", 1 << 20, "bytes waiting for a slow consumer at most", whole(1 << 12))
    max_outbox_total: int = setting(
        "PUSH_MAX_OUTBOX_TOTAL", 64 << 20, "bytes waiting for all consumers together at most", whole(1 << 16)
    )
    window_messages: int = setting("PUSH_WINDOW_MESSAGES", 256, "messages a session may leave unacknowledged", whole(1))
    window_bytes: int = setting("PUSH_WINDOW_BYTES", 1 << 20, "and their bytes", whole(1 << 10))
    ack_timeout_s: float = setting("PUSH_ACK_TIMEOUT", 10.0, "seconds until a message is resent", seconds(0.05, 3600))
    heartbeat_timeout_s: float = setting(
        "PUSH_HEARTBEAT_TIMEOUT", 60.0, "seconds of silence that end a session", seconds(0.2, 86400)
    )
    handshake_timeout_s: float = setting(
        "PUSH_HANDSHAKE_TIMEOUT", 10.0, "seconds a connection has until it is a session", seconds(0.1, 600)
    )
    max_handshakes: int = setting(
        "PUSH_MAX_HANDSHAKES", 10_000, "connections that are no session yet; beyond it the oldest is ended", whole(1)
    )
    max_header_bytes: int = setting(
        "PUSH_MAX_HEADER_BYTES", 8192, "bytes of a request head at most", whole(256, 1 << 20)
    )
    max_headers: int = setting("PUSH_MAX_HEADERS", 64, "header lines of a request at most", whole(1, 1000))
    address_connections: int = setting(
        "PUSH_ADDRESS_CONNECTIONS", 20_000, "connections of one address at most; 0: any number"
    )
    address_connect_rate: float = setting(
        "PUSH_ADDRESS_CONNECT_RATE",
        2500.0,
        "connections a second of one address, two seconds' worth at once; 0: any number",
        seconds(0, 1e6),
    )
    address_auth_failures: float = setting(
        "PUSH_ADDRESS_AUTH_FAILURES",
        100.0,
        "refused tokens a second of one address, two seconds' worth at once, a flood is 25; 0: any",
        seconds(0, 1e6),
    )
    proxy_protocol: bool = setting(
        "PUSH_PROXY_PROTOCOL", False, "1: every connection begins with a PROXY header (v1 or v2) of a trusted proxy"
    )
    connect_rate: float = setting(
        "PUSH_CONNECT_RATE", 5000.0, "connections a second let in, two seconds' worth at once; 0: all", seconds(0, 1e6)
    )
    reconcile_s: float = setting(
        "PUSH_RECONCILE_SECONDS", 30.0, "seconds in which each session's inbox is swept once", seconds(0.1, 3600)
    )
    bad_frames: int = setting("PUSH_BAD_FRAMES", 30, "bad frames a minute that a session may send", whole(1))
    chat_timezone: str = setting(
        "PUSH_CHAT_TIMEZONE", "Asia/Shanghai", "time zone of the dates in the chat dialect", _time_zone
    )
    drain_s: float = setting(
        "PUSH_DRAIN_SECONDS", 10.0, "seconds over which a drain closes sessions; 0: at once", seconds(0, 3600)
    )
    drain_pace: int = setting("PUSH_DRAIN_PACE", 500, "sessions a second that a drain closes at most", whole(1))

    @property
    def bind_host(self) -> str:
        return self.host or self.default_host

    def faults(self) -> Iterable[str]:
        """What is wrong between settings."""
        yield from self.auth_fault("PUSH_NODE_HOST", self.bind_host)
        yield from self.token_fault()
        if 0 < self.byte_rate * BURST_S < self.max_frame:
            yield f"PUSH_BYTE_RATE={self.byte_rate}: expected a fifth of PUSH_MAX_FRAME or more, so that one passes"
        yield from self.tls_fault()
        if self.proxy_protocol and not self.trusted_proxies and not is_loopback(self.bind_host):
            yield "PUSH_PROXY_PROTOCOL=1: expected PUSH_TRUSTED_PROXIES, or anybody could say to be any address"
        if self.auth == "jwt" and not (self.jwt_secret or self.jwt_jwks):
            yield "PUSH_JWT_SECRET: expected 32 bytes or more, or PUSH_JWT_JWKS (or PUSH_AUTH=off on loopback)"
