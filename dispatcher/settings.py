"""The dispatcher's settings: each variable with its default and meaning, once (see shared.settings)."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.callers import KeysFault, load_keys
from dispatcher.requests import MOST_TARGETS
from shared.settings import RoleSettings, existing_file, port_number, seconds, setting, whole


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
            load_keys(self.api_keys)
        except KeysFault as fault:
            faults.append(f"PUSH_API_KEYS={self.api_keys!r}: {fault}")
        return faults
