"""What a connection asks of the layer above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway_node.websocket.connection import Connection
    from gateway_node.websocket.handshake import Request


class Upper(Protocol):
    """The layer above a connection. Its callbacks must not block; one that raises closes its connection with 1011."""

    now: float
    """A coarse monotonic clock in seconds, kept by the layer above, so that no read asks the system for the time."""

    def request_received(self, connection: Connection, request: Request) -> None:
        """A request head came. To be answered with `accept` or `refuse`, now or within the handshake timeout."""

    def message_received(self, connection: Connection, data: bytes) -> None:
        """A text message came; `data` is valid UTF-8."""

    def limit_exceeded(self, connection: Connection, limit: str) -> None:
        """
        The peer exceeded this limit, and its connection is being closed for it: `messages`, `bytes`, `pings` (4029),
        `fragments` (1008), `message_bytes` (1009).
        """

    def connection_closed(self, connection: Connection, code: int, reason: str, clean: bool) -> None:
        """
        TCP is gone. `code` is the one of who closed first, 1006 if no one did; `clean`: both sides said close.

        Called exactly once for an accepted connection and for one that is lost before its request was answered;
        never after `refuse` or after an `accept` that returned False because of the request.
        """

    def drained(self, connection: Connection) -> None:
        """The kernel has taken everything sent so far, after it had refused some."""
