"""What a connection needs until its request is answered, and no longer. Pure."""

from __future__ import annotations

from gateway_node.websocket.handshake import Request, head_end, parse_request


class Opening:
    """The request head as it comes; `received` is what came of it, and of what is behind it once `request` is set."""

    __slots__ = ("_searched", "received", "request")

    def __init__(self) -> None:
        self.received = b""
        self.request: Request | None = None
        self._searched = 0

    def feed(self, data: bytes, max_head: int, max_headers: int) -> Request | None:
        """The request, if its head ends in `data`. Raises `Refused`."""
        received = self.received = self.received + data
        if self.request is not None:
            return None
        end = head_end(received, self._searched, max_head)
        if end < 0:
            self._searched = len(received)
            return None
        self.received = received[end:]
        self.request = parse_request(received[:end], max_head, max_headers)
        return self.request
