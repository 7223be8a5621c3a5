"""
Reconcile: a slow sweep that finds what no record brought.

Each session is looked at once in PUSH_RECONCILE_SECONDS, evenly spread, in batches: is it still in its client's
route, have its memberships changed, and does its inbox hold messages, older than a moment, that this session was not
sent? A session that is not in the route is registered again, which ends it when a newer one has taken its place.
Messages that were not sent make it read its inbox. Once in the same time each audience of the node is entered anew,
which finds messages of it that no record brought. So a record that was lost, a route that Redis forgot and a clock that
stepped back cost time and not messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gateway_node.audiences import Audiences
from gateway_node.backlog import Backlog
from gateway_node.delivery import Delivery
from gateway_node.hub import Hub
from gateway_node.lease import LeaseKeeper
from gateway_node.metrics import RECONCILED
from gateway_node.session import Session
from shared.registry import Registry

_GRACE_S = 2.0  # what was stored a moment ago has its record under way
_BATCH = 128


class Reconcile:
    """Owned by app.py, which calls `tick`. `register_again` is called with sessions that have no route."""

    __slots__ = (
        "_audiences",
        "_checks",
        "_delivery",
        "_due",
        "_enter_in_s",
        "_every_s",
        "_hub",
        "_lease",
        "_queue",
        "_register_again",
        "_registry",
    )

    def __init__(
        self,
        hub: Hub,
        registry: Registry,
        delivery: Delivery,
        audiences: Audiences,
        lease: LeaseKeeper,
        register_again: Callable[[Session], None],
        *,
        every_s: float,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._delivery = delivery
        self._audiences = audiences
        self._enter_in_s = every_s
        self._lease = lease
        self._register_again = register_again
        self._every_s = every_s
        self._due = 0.0
        self._queue: list[Session] = []
        self._checks: Backlog[Session] = Backlog("check", self._check, most=_BATCH)

    def tick(self, passed_s: float) -> None:
        """`passed_s` since the last tick."""
        if not self._lease.alive() or len(self._checks) > _BATCH:
            return  # Redis is slow or away: what is asked now would only wait
        self._enter_in_s -= passed_s
        if self._enter_in_s <= 0.0:
            self._enter_in_s = self._every_s * random.uniform(0.75, 1.0)
            self._audiences.enter_all()
        self._due = min(self._due + len(self._hub) * passed_s / self._every_s, float(len(self._hub)))
        while self._due >= 1.0:
            self._due -= 1.0
            if not self._queue:
                self._queue = list(self._hub.by_id.values())
            session = self._queue.pop()
            if session.early is None and session.session_id in self._hub.by_id:
                self._checks.add(session)

    async def close(self) -> None:
        await self._checks.close(0.0)

    async def _check(self, sessions: list[Session]) -> None:
        epoch = self._lease.epoch
        found = await self._registry.check(
            epoch, [(session.client_id, session.session_id.decode()) for session in sessions], grace_s=_GRACE_S
        )
        if epoch != self._lease.epoch:
            return  # all are registered again anyway
        for session, checked in zip(sessions, found, strict=True):
            if session.session_id not in self._hub.by_id:
                continue
            if checked is None:
                RECONCILED.labels("route").inc()
                self._register_again(session)
                continue
            if checked.version != session.version:
                RECONCILED.labels("memberships").inc()
                self._audiences.changed(session.session_id)
            if self._delivery.lacks(session, checked.message_ids):
                RECONCILED.labels("messages").inc()
                self._delivery.fall_behind(session)
