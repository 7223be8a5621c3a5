"""
Registration: sessions into and out of the registry, in batches.

Thousands of clients come at once when a node dies; while one call to Redis is in flight the next batch gathers. A
removal is done in the end, also when Redis is away meanwhile. When this node's lease was lost (a long pause, a Redis
that was away or came back empty) every session is suspended and registered again, under the new epoch; one whose place
a newer session has taken ends, and so does one whose token was revoked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway_node.audiences import Audiences
from gateway_node.backlog import Backlog
from gateway_node.delivery import Delivery
from gateway_node.eviction import Eviction
from gateway_node.hub import Hub
from gateway_node.metrics import REFUSED
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from shared.batching import Batcher
from shared.errors import StoreUnavailable
from shared.registry import Joined, Joining, Registry

_MOST_WAITING = 20_000


class Registration:
    """`epoch` gives the one that the node's lease has now."""

    __slots__ = (
        "_again",
        "_audiences",
        "_delivery",
        "_epoch",
        "_eviction",
        "_hub",
        "_join",
        "_leave",
        "_node_id",
        "_registry",
        "_settings",
    )

    def __init__(
        self,
        node_id: str,
        epoch: Callable[[], str],
        hub: Hub,
        registry: Registry,
        settings: GatewaySettings,
        delivery: Delivery,
        audiences: Audiences,
        eviction: Eviction,
    ) -> None:
        self._node_id = node_id
        self._audiences = audiences
        self._epoch = epoch
        self._hub = hub
        self._registry = registry
        self._settings = settings
        self._delivery = delivery
        self._eviction = eviction
        self._join: Batcher[Session, Joined] = Batcher("register", self._register, most=128, most_waiting=_MOST_WAITING)
        self._leave: Backlog[tuple[str, str, str]] = Backlog("unregister", self._registry.unregister)
        self._again: Backlog[Session] = Backlog("register_again", self._register_again)

    def join(self, session: Session) -> asyncio.Future[list[Joined]]:
        """A future of the session's first slice of its inbox. Raises (or carries) Overloaded and StoreUnavailable."""
        return self._join.submit((session,))

    def leave(self, session: Session) -> None:
        self._leave.add((session.client_id, session.session_id.decode(), ""))

    def replaced(self, joined: Joined) -> None:
        """A session is registered: end those whose place it took."""
        if joined.crowded:
            REFUSED.labels("client_sessions").inc(joined.crowded)
        if joined.replaced:
            self._eviction.replaced(session_id for session_id, _ in joined.replaced)

    def join_again(self, session: Session) -> None:
        """It is to be registered once more, as one that was before."""
        self._again.add(session)

    def join_all_again(self, kept: bool) -> None:
        """`kept`: Redis still has what it held, so what is not in an inbox was acknowledged."""
        self._audiences.suspend_all()
        for session in self._hub.by_id.values():
            self._delivery.suspend(session, resync=kept)
            self._again.add(session)

    async def finish(self) -> None:
        """Register nobody any more; return when every session that has ended is out of the registry."""
        await self._join.close()
        await self._again.settled()
        await self._leave.settled()

    async def close(self, within_s: float) -> None:
        await self._again.close(0.0)
        await self._join.close()
        await self._leave.close(within_s)

    async def _register(self, sessions: list[Session]) -> Sequence[Joined]:
        epoch = self._epoch()
        joined = await self._call(sessions, epoch, self._settings.window_messages, again=False)
        with suppress(StoreUnavailable):  # then they are entered as soon as it is back
            await self._audiences.prepare(name for each in joined for name in each.audiences.cursors)
        if epoch != self._epoch():  # the lease was lost meanwhile; the first slice is good all the same
            for session in sessions:
                self._again.add(session)
        return joined

    async def _register_again(self, sessions: list[Session]) -> None:
        open_ones = [session for session in sessions if session.session_id in self._hub.by_id]
        if not open_ones:
            return
        answers = await self._call(open_ones, self._epoch(), 0, again=True)
        for session, joined in zip(open_ones, answers, strict=True):
            if session.session_id not in self._hub.by_id:
                self.leave(session)
            elif joined.outdated:
                self._eviction.end_replaced(session)
            elif joined.revoked:
                self._eviction.end_revoked(session)
            else:
                self.replaced(joined)
                self._audiences.attach(session, joined.audiences)
                self._delivery.resume(session)

    async def _call(self, sessions: list[Session], epoch: str, most: int, *, again: bool) -> Sequence[Joined]:
        return await self._registry.register(
            self._node_id,
            epoch,
            [
                Joining(
                    session.client_id,
                    session.session_id.decode(),
                    session.device,
                    self._audiences.begin(session),
                    session.issued_s,
                )
                for session in sessions
            ],
            most=most,
            most_bytes=self._settings.window_bytes,
            again=again,
        )
