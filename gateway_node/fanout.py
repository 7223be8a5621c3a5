"""
Fan-out: a message for everyone, to each session of the node.

What differs between sessions, sessionId and `to`, is one run of bytes in the envelope: the session's address. So the
frames of a session are its address joined between parts that are the same for all sessions whose addresses are of the
same length. Messages that wait together go to a session in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway_node.hub import Hub
from gateway_node.pacing import Pacing
from gateway_node.websocket.frames import TEXT, frame_header
from gateway_node.window import Recent
from shared.envelope import cut_template, message_id_of

_SESSIONS_A_TURN = 2000
_MOST_BYTES_A_WRITE = 128 << 10
_LEAST_BYTES_A_WRITE = 1 << 10
_MOST_BYTES_AT_ONCE = 64 << 20  # in all sessions' hands when none of their kernels takes any


class Fanout:
    """
    `broadcasts` remembers the ids of what was fanned out; the numbers are for the consumer to count. `pacing` is set
    when there is a gate.
    """

    __slots__ = ("_hub", "_max_outbox", "broadcasts", "delivered", "duplicates", "pacing", "set_aside")

    def __init__(self, hub: Hub, *, max_outbox: int) -> None:
        self.pacing: Pacing | None = None
        self._hub = hub
        self._max_outbox = max_outbox
        self.broadcasts = Recent()
        self.delivered = 0
        self.duplicates = 0
        self.set_aside = 0

    async def everyone(self, templates: Sequence[bytes]) -> None:
        """Send these to each registered session, in order. What is not a template is set aside."""
        cuts: list[tuple[bytes, bytes]] = []
        size = 0
        share = _MOST_BYTES_AT_ONCE // max(1, len(self._hub))
        most = max(_LEAST_BYTES_A_WRITE, min(_MOST_BYTES_A_WRITE, self._max_outbox // 8, share))
        for template in templates:
            cut = self._cut(template)
            if cut is None:
                continue
            cuts.append(cut)
            size += len(template)
            if size > most:
                await self._send(cuts, size)
                cuts, size = [], 0
        if cuts:
            await self._send(cuts, size)

    def _cut(self, template: bytes) -> tuple[bytes, bytes] | None:
        try:
            message_id, cut = message_id_of(template), cut_template(template)
        except ValueError:
            self.set_aside += 1
            return None
        if message_id in self.broadcasts:
            self.duplicates += 1
            return None
        self.broadcasts.add(message_id)
        return cut

    async def _send(self, cuts: Sequence[tuple[bytes, bytes]], size: int) -> None:
        if self.pacing is not None:
            if self.pacing.is_due():
                await self.pacing.until_room()
            self.pacing.handed_out(size)
        sessions = list(self._hub.by_id.values())
        parts_of_length: dict[int, tuple[bytes, ...]] = {}
        for start in range(0, len(sessions), _SESSIONS_A_TURN):
            if start:
                await asyncio.sleep(0)  # heartbeats and other messages are not held up by a large node
            for session in sessions[start : start + _SESSIONS_A_TURN]:
                if session.early is not None:
                    continue  # not registered yet
                address = session.address
                parts = parts_of_length.get(len(address))
                if parts is None:
                    parts = parts_of_length[len(address)] = _parts(cuts, len(address))
                session.connection.send_now(address.join(parts))
                session.delivered += len(cuts)
                self.delivered += len(cuts)


def _parts(cuts: Sequence[tuple[bytes, bytes]], length: int) -> tuple[bytes, ...]:
    """What stands before, between and behind the addresses of `length` bytes, frame headers included."""
    parts: list[bytes] = [b""]
    for head, tail in cuts:
        parts[-1] += frame_header(TEXT, len(head) + length + len(tail)) + head
        parts.append(tail)
    return tuple(parts)
