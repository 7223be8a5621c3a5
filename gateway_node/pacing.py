"""
Pacing: the node reads its topic no faster than its sockets take what comes.

What is behind stays on the topic, where dispatchers see it (lag.py) and refuse to add to it. While more than half of
the connections are *blocked* (the kernel took not all of what it was given) the next part waits. And whenever a quarter
of an outbox went to everyone, those that are blocked get a moment to read, one slow consumer among many a quarter of a
second, and many of them more. What is sent to one that cannot even do that gathers until it is a whole outbox behind;
then it is cut with 4008, and the others have waited a second for it. So nobody is cut because the node wrote faster
than the machine or the network could carry.

A connection from which the kernel has taken nothing for a while (`stalled_s`) is *stalled*. It does not count any
more, so a node full of frozen clients goes on: those are then cut by their own bound. All outboxes together are
bounded, too: over `most_bytes` the next part waits, and connections that are stalled are cut.

Time passes here from look to look, and no look counts for more than it should have taken: a process that was stopped
or starved meanwhile has seen nobody read slowly.
"""

from __future__ import annotations

from time import monotonic

from gateway_node.metrics import PACED
from gateway_node.websocket.gate import Gate

_STALLED_S = 5.0
_MOMENT_S = 0.25
_MORE_FOR_MANY_S = 8.0  # if all were blocked
_LOOK_S = 0.02
_LOOKING_SHARE = 20  # a look at thousands takes a while: so many times as long until the next one


class Pacing:
    """
    `gate` has the connections, `most_bytes` bounds what all of them together leave to be taken.

    `await until_room()` when `is_due()`. `handed_out` counts the bytes that went to everyone, to each of them.
    """

    __slots__ = (
        "_bytes",
        "_gate",
        "_looked",
        "_mark",
        "_most_bytes",
        "_next_look",
        "_stalled",
        "_stalled_s",
        "_step",
        "handed_out",
    )

    def __init__(self, gate: Gate, most_bytes: int, *, stalled_s: float = _STALLED_S) -> None:
        self._gate = gate
        self._stalled_s = stalled_s
        self._most_bytes = most_bytes
        self._step = gate.limits.max_outbox_bytes // 4
        self._mark = 0
        self.handed_out = 0
        self._bytes = 0
        self._stalled = 0
        self._looked = 0.0
        self._next_look = 0.0

    def is_due(self) -> bool:
        """Whether what comes next should wait."""
        if not len(self._gate.blocked):
            self._bytes = self._stalled = 0
            self._mark = self.handed_out
            return False
        self._look_if_due()
        return self._is_crowded() or self._bytes > self._most_bytes or self.handed_out - self._mark >= self._step

    async def until_room(self) -> None:
        """Until few enough are blocked and little enough waits, or those that do have stalled."""
        PACED.inc()
        if self.handed_out - self._mark >= self._step:
            self._mark = self.handed_out
            await self._a_moment()
        while self.is_due():
            if self._bytes > self._most_bytes and self._stalled:
                self._cut_stalled()
            await self._pause(self._few())

    async def _a_moment(self) -> None:
        """Until all are taken from again but those that have stalled, for some time."""
        passed_s = 0.0
        while (slow := len(self._gate.blocked) - self._stalled) > 0:
            if passed_s >= _MOMENT_S + _MORE_FOR_MANY_S * slow / self._gate.alive:
                return
            passed_s += await self._pause(self._stalled)
            self._look_if_due()

    async def _pause(self, few: int) -> float:
        """Until no more than `few` are blocked, or it is time to look; how long that was."""
        began = monotonic()
        within_s = max(_LOOK_S, self._next_look - began)
        await self._gate.blocked.until_few(few, within_s)
        return min(monotonic() - began, 2 * within_s)

    def _is_crowded(self) -> bool:
        return len(self._gate.blocked) > self._few()

    def _few(self) -> int:
        """So many may be blocked: half of those that have not stalled, and all that have."""
        return (self._gate.alive + self._stalled) // 2

    def _look_if_due(self) -> None:
        now = monotonic()
        if now < self._next_look:
            return
        passed_s = min(now - self._looked, 2 * (self._next_look - self._looked))
        self._bytes = self._stalled = 0
        for connection, stand in self._gate.blocked.items():
            held, queued = connection.waiting_bytes
            if connection.open:
                self._bytes += held + queued  # else it goes down with what it has
            stand.still_s = stand.still_s + passed_s if held == stand.held else 0.0
            stand.held = held
            self._stalled += stand.still_s >= self._stalled_s
        self._looked = now
        self._next_look = now + max(_LOOK_S, _LOOKING_SHARE * (monotonic() - now))

    def _cut_stalled(self) -> None:
        """Those with the largest outboxes first, until half of the bound is left."""
        stands = self._gate.blocked.items()
        stalled = [each for each, stand in stands if each.open and stand.still_s >= self._stalled_s]
        stalled.sort(key=lambda connection: sum(connection.waiting_bytes), reverse=True)
        for connection in stalled:
            if self._bytes <= self._most_bytes // 2:
                break
            self._bytes -= sum(connection.waiting_bytes)
            connection.cut_slow_consumer()
