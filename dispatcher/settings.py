"""The dispatcher's settings: each variable with its default and meaning, once (see shared.settings)."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.http_door import HttpLimits
from dispatcher.key_file import REFUSED_UNDER, KeysFault, load_keys
from dispatcher.requests import MOST_TARGETS
from shared.origins import origin_patterns
from shared.settings import RoleSettings, existing_file, is_loopback, port_number, seconds, setting, whole


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise ValueError("expected how many a second, 0 or more")
    return value


@dataclass(frozen=True, slots=True)
class DispatcherSettings(RoleSettings):
    """What a dispatcher reads."""

    http_host: str = setting(
        "PUSH_HTTP_HOST", "", "bind address of the HTTP port; default: 0.0.0.0, with PUSH_AUTH=off 127.0.0.1"
    )
    http_port: int = setting(
        "PUSH_HTTP_PORT", 8080, "HTTP: sends, placement, health, metrics; 0: any free one", port_number
    )
    api_keys: str = setting("PUSH_API_KEYS", "", "JSON file of the callers' API keys", existing_file)
    caller_rate: float = setting(
        "PUSH_CALLER_RATE", 0.0, "sends a second of a caller with a JWT, or a key that names no rate; 0: any", _rate
    )
    caller_audience: str = setting(
        "PUSH_CALLER_AUDIENCE", "", "what the aud of a caller's JWT has to be or hold; unset: PUSH_JWT_AUDIENCE"
    )
    auth_failures: float = setting(
        "PUSH_AUTH_FAILURES", 100.0, "requests a second without a good key from one address; 0: any", _rate
    )
    cors_origins: tuple[str, ...] = setting(
        "PUSH_CORS_ORIGINS", (), "origins whose pages may read answers, as PUSH_ALLOWED_ORIGINS", origin_patterns
    )
    http_max_body: int = setting(
        "PUSH_HTTP_MAX_BODY", 1 << 20, "bytes of a request's body at most", whole(1024, 64 << 20)
    )
    http_max_head: int = setting(
        "PUSH_HTTP_MAX_HEAD", 32_768, "bytes of a request's head at most", whole(1024, 1 << 20)
    )
    http_max_headers: int = setting("PUSH_HTTP_MAX_HEADERS", 100, "header lines at most", whole(8, 10_000))
    http_max_in_flight: int = setting("PUSH_HTTP_MAX_IN_FLIGHT", 2048, "requests under way; 429 beyond", whole(1))
    http_max_connections: int = setting("PUSH_HTTP_MAX_CONNECTIONS", 10_000, "connections; 503 beyond", whole(1))
    http_address_connections: int = setting(
        "PUSH_HTTP_ADDRESS_CONNECTIONS", 2_000, "connections from one address; 503 beyond", whole(1)
    )
    http_header_timeout_s: float = setting(
        "PUSH_HTTP_HEADER_TIMEOUT", 10.0, "seconds that a request's head may take", seconds(0.1, 3600)
    )
    http_body_timeout_s: float = setting(
        "PUSH_HTTP_BODY_TIMEOUT", 30.0, "seconds that a request's body may take", seconds(0.1, 3600)
    )
    http_keepalive_s: float = setting(
        "PUSH_HTTP_KEEPALIVE", 75.0, "seconds that an idle connection is kept", seconds(0.1, 86_400)
    )
    max_targets: int = setting("PUSH_MAX_TARGETS", MOST_TARGETS, "clients that one send may name", whole(1, 100_000))
    inbox_messages: int = setting("PUSH_INBOX_MESSAGES", 1000, "messages a client's inbox holds at most", whole(1))
    inbox_bytes: int = setting("PUSH_INBOX_BYTES", 4 << 20, "bytes a client's inbox holds at most", whole(1024))
    timeline_messages: int = setting(
        "PUSH_TIMELINE_MESSAGES", 10_000, "messages that a group's timeline, or everyone's, keeps at most", whole(1)
    )
    timeline_bytes: int = setting("PUSH_TIMELINE_BYTES", 64 << 20, "and their bytes", whole(1024))
    timeline_s: float = setting(
        "PUSH_TIMELINE_SECONDS", 604_800.0, "seconds that a timeline keeps a message", seconds(1, 2_592_000)
    )
    broadcast_rate: int = setting(
        "PUSH_BROADCAST_RATE", 1_000, "targets a second of a broadcast that names no rate", whole(1, 100_000)
    )
    revoked_s: float = setting(
        "PUSH_REVOKED_SECONDS",
        2_592_000.0,
        "seconds a revocation of a client's tokens is kept; at least as long as a token lives",
        seconds(60, 315_360_000),
    )
    max_lag_s: float = setting(
        "PUSH_MAX_LAG",
        10.0,
        "seconds a node may be behind with its topic; beyond it 429 for what would go there",
        seconds(0.1, 3600),
    )
    outbox_bytes: int = setting(
        "PUSH_OUTBOX_BYTES", 64 << 20, "bytes of sends that may wait in Redis while the bus is away", whole(1024)
    )

    @property
    def bind_host(self) -> str:
        return self.http_host or self.default_host

    @property
    def least_key(self) -> int:
        """Characters of an API key in plain: where others reach the port a key that can be guessed is refused."""
        return 1 if self.insecure or is_loopback(self.bind_host) else REFUSED_UNDER

    @property
    def http_limits(self) -> HttpLimits:
        return HttpLimits(
            max_body=self.http_max_body,
            max_in_flight=self.http_max_in_flight,
            max_connections=self.http_max_connections,
            address_connections=self.http_address_connections,
            max_head=self.http_max_head,
            max_headers=self.http_max_headers,
            header_timeout_s=self.http_header_timeout_s,
            body_timeout_s=self.http_body_timeout_s,
            keepalive_s=self.http_keepalive_s,
        )

    def faults(self) -> list[str]:
        """What does not fit together, a line each."""
        faults = self.auth_fault("PUSH_HTTP_HOST", self.bind_host)
        faults += self.token_fault()
        faults += self.tls_fault()
        if self.auth == "off":
            return faults
        if not self.api_keys:
            faults.append(
                "PUSH_API_KEYS='': expected a JSON file of API keys, such as "
                '{"keys":[{"name":"billing","sha256":"<hex of the key\'s SHA-256>","scopes":["send"]}]}; '
                "or PUSH_AUTH=off on a loopback address for development"
            )
            return faults
        try:
            load_keys(self.api_keys, least_key=self.least_key)
        except KeysFault as fault:
            faults.append(f"PUSH_API_KEYS={self.api_keys!r}: {fault}")
        return faults
