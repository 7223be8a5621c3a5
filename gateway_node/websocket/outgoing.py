"""
The sending half of a connection: frames that the kernel has not taken.

`connection.py` tells the theory. Frames gather in the outbox; the flusher (gate.py) has them written in one call, once
in a turn of the loop, as long as the transport takes bytes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_node.websocket.gate import Gate


class Outgoing:
    """`blocked` is False if and only if the kernel took every byte that was sent and flushed."""

    __slots__ = ("_dirty", "_gate", "_lost", "_outbox", "_paused", "_queued", "_transport", "blocked")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] | None = None
        self._queued = 0  # bytes in the outbox
        self._paused = False  # between pause_writing and resume_writing
        self._dirty = False  # marked with the flusher
        self._lost = 0  # bytes that were sent and can no longer reach the kernel
        self.blocked = False

    @property
    def outbox_bytes(self) -> int:
        """Bytes given to `send` that the kernel has not taken. Those of a frame that was dropped count for good."""
        held = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._queued + self._lost + held

    @property
    def waiting_bytes(self) -> tuple[int, int]:
        """What the transport holds for the kernel, and what is in the outbox behind that."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size(), self._queued

    def flush(self) -> None:
        """Give the outbox to the kernel, in one write, unless it refuses bytes."""
        self._dirty = False
        outbox = self._outbox
        if outbox is None or self._paused or self._transport is None:
            return
        self._write(self._transport, outbox)

    def abort(self) -> None:
        """Cut TCP at once; what the kernel has not taken is lost."""
        if self._transport is not None:
            self._transport.abort()

    def _enqueue(self, frame: bytes) -> None:
        """What is not the layer above's, so does not count against the bound: an answer, a pong, a close frame."""
        if self._outbox is None:
            self._outbox = [frame]
        else:
            self._outbox.append(frame)
        self._queued += len(frame)
        if not self._dirty and not self._paused:
            self._dirty = True
            self._gate.flusher.mark(self)

    def _write(self, transport: asyncio.Transport, outbox: list[bytes]) -> None:
        size = self._queued
        self._outbox = None
        self._queued = 0
        transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        if transport.is_closing():
            self._lose(size)  # the write found a dead socket

    def _lose(self, size: int) -> None:
        self._lost += size
        self.blocked = True
