"""
Fan-out: a message for everyone, to each session of the node.

What differs between sessions, sessionId and `to`, is one run of bytes in the envelope: the session's address. So the
frames of a session are its address joined between parts that are the same for all sessions whose addresses are of the
same length. Messages that wait together go to a session in one write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from gateway_node.hub import Hub
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.frames import TEXT, frame_header
from gateway_node.window import Recent
from shared.envelope import cut_template, message_id_of

_MOST_BYTES_A_WRITE = 32 << 10
_LEAST_BYTES_A_WRITE = 1 << 10
_BYTES_A_TURN = 4 << 20
_SESSIONS_A_TURN = 1000


class Fanout:
    """
    `broadcasts` remembers the ids of what was fanned out; `handed_out` is the number of bytes that went to each session
    so far; the other numbers are for the consumer to count.
    """

    __slots__ = (
        "_hub",
        "_settings",
        "_since_turn",
        "_turn_at",
        "broadcasts",
        "delivered",
        "duplicates",
        "handed_out",
        "set_aside",
    )

    def __init__(self, hub: Hub, settings: GatewaySettings) -> None:
        self._hub = hub
        self._settings = settings
        self._since_turn = 0
        self._turn_at = 0
        self.handed_out = 0
        self.broadcasts = Recent()
        self.delivered = 0
        self.duplicates = 0
        self.set_aside = 0

    async def everyone(self, templates: Sequence[bytes], turn: Callable[[], Awaitable[None]]) -> None:
        """
        Send these to each registered session, in order. What is not a template is set aside.

        `turn` is awaited between slices of sessions: whatever else there is to do is not held up by a large node, and
        nothing is sent on while the sockets cannot keep up.
        """
        cuts: list[tuple[bytes, bytes]] = []
        size = 0
        most = self._most_bytes_a_write()
        for template in templates:
            cut = self._cut(template)
            if cut is None:
                continue
            cuts.append(cut)
            size += len(template)
            if size > most:
                await self._send(cuts, size, turn)
                cuts, size = [], 0
        if cuts:
            await self._send(cuts, size, turn)

    def _most_bytes_a_write(self) -> int:
        """A small part of an outbox; with many sessions also of what may wait for all of them together."""
        settings = self._settings
        share = settings.max_outbox_total // max(1, 2 * len(self._hub))
        return max(_LEAST_BYTES_A_WRITE, min(_MOST_BYTES_A_WRITE, settings.max_outbox // 8, share))

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

    async def _send(self, cuts: Sequence[tuple[bytes, bytes]], size: int, turn: Callable[[], Awaitable[None]]) -> None:
        sessions = list(self._hub.by_id.values())
        a_turn = max(1, min(_SESSIONS_A_TURN, _BYTES_A_TURN // size))
        if self.handed_out + size > self._turn_at:
            await turn()
            self._since_turn = 0
            self._turn_at = self.handed_out + self._settings.max_outbox // 8
        self.handed_out += size
        parts_of_length: dict[int, tuple[bytes, ...]] = {}
        for start in range(0, len(sessions), a_turn):
            some = sessions[start : start + a_turn]
            if self._since_turn + len(some) > a_turn:
                await turn()
                self._since_turn = 0
            self._since_turn += len(some)
            for session in some:
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
