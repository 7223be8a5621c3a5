"""The hub: the sessions on this node, by id."""

from __future__ import annotations

from gateway_node.session import Session


class Hub:
    """`by_id` also holds sessions that are being registered; `registered` counts those that are."""

    __slots__ = ("by_id", "registered")

    def __init__(self) -> None:
        self.by_id: dict[bytes, Session] = {}
        self.registered = 0

    def add(self, session: Session) -> None:
        self.by_id[session.session_id] = session

    def remove(self, session: Session) -> bool:
        """Whether it was there."""
        return self.by_id.pop(session.session_id, None) is not None

    def __len__(self) -> int:
        return len(self.by_id)
