"""
Eviction: sessions that end because somebody else says so, on this node or another.

A session that a newer one replaced (PUSH_SESSION_POLICY, PUSH_CLIENT_SESSIONS) is out of its client's route already.
One on this node is closed at once, one elsewhere by a `close` line on its node's topic. Should that line never come,
the sweep of the other node finds the session without a route and ends it (reconcile.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway_node.hub import Hub
from gateway_node.neighbours import Neighbours
from gateway_node.session import Session
from shared.errors import CloseCode
from shared.record import close_line, decode_close

_REPLACED = "replaced by a newer session"
REVOKED = "the token was revoked"


class Eviction:
    """Ends sessions; owned by app.py."""

    __slots__ = ("_hub", "_neighbours")

    def __init__(self, hub: Hub, neighbours: Neighbours) -> None:
        self._hub = hub
        self._neighbours = neighbours

    def replaced(self, session_ids: Iterable[str]) -> None:
        """End these, wherever they are, with 4003."""
        for session_id in session_ids:
            session = self._hub.by_id.get(session_id.encode())
            if session is None:
                self._neighbours.tell(session_id, close_line(session_id, CloseCode.REPLACED, _REPLACED))
            else:
                self.end_replaced(session)

    def end_replaced(self, session: Session) -> None:
        session.connection.close(CloseCode.REPLACED, _REPLACED)

    def end_revoked(self, session: Session) -> None:
        session.connection.close(CloseCode.TOKEN_EXPIRED, REVOKED)

    def close_line(self, envelope: bytes) -> None:
        """A line told to close a session. Raises ValueError when it cannot be read."""
        close = decode_close(envelope)
        session = self._hub.by_id.get(close.session_id.encode())
        if session is not None:
            session.connection.close(close.code, close.reason)
