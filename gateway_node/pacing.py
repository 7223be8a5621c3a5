"""
Pacing: the node reads its topic no faster than its sockets take what comes.

A slow consumer is its own fault, and is cut with 4008 beyond its outbox. When many are blocked it is the machine or the
network that cannot keep up, or the node that wrote faster than anybody could read: then what is behind has to stay on
the topic, and nobody is to be cut for it. So whenever a quarter of an outbox was handed out to each session, those that
are blocked get a moment to catch up, and longer while more than half of all are blocked and something moves. A client
that does not read at all costs the others a few such moments, until its outbox is full; in between, and while little
is sent, nobody waits.
"""

from __future__ import annotations

import asyncio

from gateway_node.metrics import PACED
from gateway_node.websocket.gate import Gate

_LOOK_S = 0.002
_MOMENT_S = 0.25
_NO_PROGRESS_S = 0.5
_REST_S = 5.0  # after waiting for nothing


class Pacing:
    """`gate` counts the connections and those that are blocked."""

    __slots__ = ("_bytes", "_gate", "_rest_until", "_step")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._step = gate.limits.max_outbox_bytes // 4
        self._bytes = 0
        self._rest_until = 0.0

    def handed_out(self, size: int) -> None:
        """So many bytes went to each session."""
        self._bytes += size

    def is_due(self) -> bool:
        """Whether to wait now."""
        gate = self._gate
        return gate.blocked > 0 and (self._bytes >= self._step or 2 * gate.blocked > gate.alive)

    async def until_room(self) -> None:
        """Wait a moment for those that are blocked; longer while most are, and something moves."""
        self._bytes = 0
        loop, gate = asyncio.get_running_loop(), self._gate
        began = moved = loop.time()
        if began < self._rest_until:
            return
        PACED.inc()
        unblocked = gate.unblocked
        while gate.blocked:
            await asyncio.sleep(_LOOK_S)
            now = loop.time()
            if gate.unblocked != unblocked:
                unblocked, moved = gate.unblocked, now
            elif now - moved > _NO_PROGRESS_S:
                self._rest_until = now + _REST_S
                return
            if now - began > _MOMENT_S and 2 * gate.blocked <= gate.alive:
                return
