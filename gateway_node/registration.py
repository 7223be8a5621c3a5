"""
Registration: sessions into and out of the registry, in batches.

Thousands of clients come at once when a node dies; while one call to Redis is in flight the next batch gathers. A
removal is done in the end, also when Redis is away meanwhile. When this node's lease was lost (a long pause, a Redis
that came back empty) every session is registered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway_node.backlog import Backlog
from gateway_node.hub import Hub
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from shared.batching import Batcher
from shared.inbox import Slice
from shared.registry import Registry


class Registration:
    """`fell_behind` is called with each session that was registered again and has messages in its inbox."""

    __slots__ = ("_again", "_epoch", "_fell_behind", "_hub", "_join", "_leave", "_node_id", "_registry", "_settings")

    def __init__(
        self,
        node_id: str,
        epoch: str,
        hub: Hub,
        registry: Registry,
        settings: GatewaySettings,
        fell_behind: Callable[[Session], None],
    ) -> None:
        self._node_id = node_id
        self._epoch = epoch
        self._hub = hub
        self._registry = registry
        self._settings = settings
        self._fell_behind = fell_behind
        self._join: Batcher[Session, Slice] = Batcher("register", self._register, most=128)
        self._leave: Backlog[tuple[str, str]] = Backlog("unregister", self._registry.unregister)
        self._again: Backlog[Session] = Backlog("register_again", self._register_again)

    def join(self, session: Session) -> asyncio.Future[list[Slice]]:
        """A future of the session's first slice of its inbox. Raises (or carries) Overloaded and StoreUnavailable."""
        return self._join.submit((session,))

    def leave(self, session: Session) -> None:
        self._leave.add((session.client_id, session.session_id.decode()))

    def join_all_again(self) -> None:
        for session in self._hub.by_id.values():
            self._again.add(session)

    async def close(self, within_s: float) -> None:
        await self._again.close(0.0)
        await self._join.close()
        await self._leave.close(within_s)

    async def _register(self, sessions: list[Session]) -> Sequence[Slice]:
        return await self._call(sessions, self._settings.window_messages)

    async def _register_again(self, sessions: list[Session]) -> None:
        open_ones = [session for session in sessions if session.session_id in self._hub.by_id]
        if not open_ones:
            return
        for session, inbox in zip(open_ones, await self._call(open_ones, 0), strict=True):
            if session.session_id not in self._hub.by_id:
                self.leave(session)
            elif inbox.held:
                self._fell_behind(session)

    async def _call(self, sessions: list[Session], most: int) -> list[Slice]:
        return await self._registry.register(
            self._node_id,
            self._epoch,
            [(session.client_id, session.session_id.decode()) for session in sessions],
            most=most,
            most_bytes=self._settings.window_bytes,
        )
