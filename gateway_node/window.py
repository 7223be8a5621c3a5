"""
The window of a session: messages sent and not yet acknowledged. Pure.

It is bounded in messages and bytes. Beyond it messages wait in the client's inbox, and the next slice is pulled when
the window has drained to half. A message whose acknowledgement does not come is due again after a time-out that
doubles with each try, a bounded number of tries; then it stays in the window, silent, and the next session gets it.

A message is *known* while it is in the window and for a while after it left: a record that the bus brings twice is seen
by that. (That the same message comes by replay and by record is seen by its order: see session.py.) Known ids are kept
in two generations, each bounded.

A message of an audience has the cursor that its acknowledgement moves; what is kept of it is the template, which all
sessions share. One that goes to several groups of the client, or to it and its group, is *shared*: it is sent once, and
holds back all these cursors, as the membership by which it came first may end before it is acknowledged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_node.audience import Cursor

_MOST_TRIES = 5
_GENERATION = 64
_NEVER = float("inf")


class Unacked:
    """
    A message on its way. `due` is on the clock of the caller's `now`.

    With a `cursor` it is an audience's, `order` its place there, and `envelope` a template. `in_inbox`: it lies in the
    client's inbox. `shared`: the cursors of other audiences that it went to, and its order in each.
    """

    __slots__ = ("cursor", "due", "envelope", "expires_ms", "in_inbox", "order", "shared", "tries")

    def __init__(self, envelope: bytes, expires_ms: int, due: float, cursor: Cursor | None, order: int) -> None:
        self.envelope = envelope
        self.expires_ms = expires_ms
        self.due = due
        self.cursor = cursor
        self.order = order
        self.in_inbox = cursor is None
        self.shared: tuple[tuple[Cursor, int], ...] = ()
        self.tries = 1

    def order_by(self, cursor: Cursor) -> int:
        """Its order in the cursor's audience; 0: it did not go there."""
        if self.cursor is cursor:
            return self.order
        return next((order for other, order in self.shared if other is cursor), 0)

    def tries_again(self, now: float, timeout_s: float) -> bool:
        """Whether it is to be sent now: not when it was tried often enough."""
        if self.tries >= _MOST_TRIES:
            self.due = _NEVER
            return False
        self.due = now + timeout_s * 2**self.tries
        self.tries += 1
        return True


class Recent:
    """Remembers at least the last 64 of what was added, in two generations."""

    __slots__ = ("_new", "_old")

    def __init__(self) -> None:
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, item: bytes) -> bool:
        return item in self._new or item in self._old

    def add(self, item: bytes) -> None:
        if len(self._new) >= _GENERATION:
            self._old = self._new
            self._new = set()
        self._new.add(item)

    def age(self) -> bool:
        """Forget the older generation; whether nothing is left."""
        self._old = self._new
        self._new = set()
        return not self._old


class Written:
    """
    The window of a session that does not acknowledge: what the kernel may not have taken yet.

    `has_room` bounds what is replayed at once; what comes live is bounded by the connection's outbox. Nothing in it is
    ever due.
    """

    __slots__ = ("_ids", "_most_bytes", "_recent", "bytes")

    next_due = _NEVER

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._ids: list[bytes] = []
        self._recent = Recent()
        self.bytes = 0

    def __len__(self) -> int:
        """Those that lie in the inbox."""
        return len(self._ids)

    def knows(self, message_id: bytes) -> bool:
        return message_id in self._recent

    def has_room(self, size: int) -> bool:
        """An empty one takes any message."""
        return not self.bytes or self.bytes + size <= self._most_bytes

    def is_half_empty(self) -> bool:
        """The next slice is pulled when the kernel took all of the last one."""
        return not self.bytes

    def add(
        self,
        message_id: bytes,
        envelope: bytes,
        expires_ms: int,
        due: float,
        cursor: Cursor | None = None,
        order: int = 0,
    ) -> None:
        if cursor is None:
            self._ids.append(message_id)
        self._recent.add(message_id)
        self.bytes += len(envelope)

    def remember(self, message_id: bytes) -> None:
        self._recent.add(message_id)

    def ack(self, message_id: bytes) -> Unacked | None:
        """An acknowledgement that was not asked for."""
        return None

    def is_in_inbox(self, message_id: bytes) -> bool:
        """A message that is known here came out of the inbox, too; whether that is still to be seen to."""
        return message_id in self._ids

    def share(self, message_id: bytes, cursor: Cursor, order: int) -> None:
        """The kernel has it, or will have it before what comes next."""

    def first_order(self, cursor: Cursor) -> int:
        return 0

    def take_all(self) -> list[bytes]:
        """The kernel took all of it: the ids."""
        ids, self._ids = self._ids, []
        self.bytes = 0
        return ids

    def keep_only(self, message_ids: set[bytes]) -> None:
        """Nothing of it is ever sent again."""

    def let_go(self, cursor: Cursor, order: int) -> None:
        """Nothing of it is ever sent again."""

    def due(self, now: float, now_ms: int, timeout_s: float) -> list[Unacked]:
        return []

    def age(self) -> None:
        self._recent.age()


class Window:
    """See the module. Ids are 32 hex digits as bytes."""

    __slots__ = ("_most_bytes", "_most_messages", "_recent", "_shared", "_unacked", "bytes", "next_due")

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._unacked: dict[bytes, Unacked] = {}
        self._recent: Recent | None = None
        self._shared = 0
        self.bytes = 0
        self.next_due = _NEVER  # nothing is due before it

    def __len__(self) -> int:
        return len(self._unacked)

    def knows(self, message_id: bytes) -> bool:
        if message_id in self._unacked:
            return True
        return self._recent is not None and message_id in self._recent

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes may be sent now; an empty window takes any."""
        if not self._unacked:
            return True
        return len(self._unacked) < self._most_messages and self.bytes + size <= self._most_bytes

    def is_half_empty(self) -> bool:
        """Whether it is time to pull the next slice."""
        return 2 * len(self._unacked) <= self._most_messages and 2 * self.bytes <= self._most_bytes

    def add(
        self,
        message_id: bytes,
        envelope: bytes,
        expires_ms: int,
        due: float,
        cursor: Cursor | None = None,
        order: int = 0,
    ) -> None:
        self._unacked[message_id] = Unacked(envelope, expires_ms, due, cursor, order)
        self.bytes += len(envelope)
        if due < self.next_due:
            self.next_due = due

    def remember(self, message_id: bytes) -> None:
        """A message that needs no acknowledgement was sent."""
        if self._recent is None:
            self._recent = Recent()
        self._recent.add(message_id)

    def ack(self, message_id: bytes) -> Unacked | None:
        """It was acknowledged; None: it was not in the window."""
        unacked = self._unacked.pop(message_id, None)
        if unacked is not None:
            self.bytes -= len(unacked.envelope)
            self._shared -= bool(unacked.shared)
            self.remember(message_id)
        return unacked

    def is_in_inbox(self, message_id: bytes) -> bool:
        """A message that is known here came out of the inbox, too; whether its acknowledgement is still to come."""
        unacked = self._unacked.get(message_id)
        if unacked is None:
            return False
        unacked.in_inbox = True
        return True

    def share(self, message_id: bytes, cursor: Cursor, order: int) -> None:
        """A message that is known here went to this cursor's audience, too."""
        unacked = self._unacked.get(message_id)
        if unacked is not None and not unacked.order_by(cursor):
            self._shared += not unacked.shared
            unacked.shared = (*unacked.shared, (cursor, order))

    def first_order(self, cursor: Cursor) -> int:
        """That of the cursor's oldest message in the window, 0 without one."""
        if self._shared:  # then they lie in no order
            orders = (unacked.order_by(cursor) for unacked in self._unacked.values())
            return min((order for order in orders if order), default=0)
        return next((unacked.order for unacked in self._unacked.values() if unacked.cursor is cursor), 0)

    def keep_only(self, message_ids: set[bytes]) -> None:
        """Of what came out of the inbox, let go of all others: they were acknowledged elsewhere."""
        for message_id, unacked in list(self._unacked.items()):
            if unacked.cursor is None and message_id not in message_ids:
                self.ack(message_id)

    def let_go(self, cursor: Cursor, order: int) -> None:
        """Of an audience's messages, let go of those up to an order: they were acknowledged elsewhere."""
        for message_id, unacked in list(self._unacked.items()):
            if 0 < unacked.order_by(cursor) <= order:
                self.ack(message_id)

    def due(self, now: float, now_ms: int, timeout_s: float) -> list[Unacked]:
        """What to send again now; each gets its next time-out. Expired ones leave the window."""
        again: list[Unacked] = []
        self.next_due = _NEVER
        for message_id, unacked in list(self._unacked.items()):
            if unacked.due <= now:
                if unacked.expires_ms <= now_ms:
                    self.ack(message_id)
                    continue
                if unacked.tries_again(now, timeout_s):
                    again.append(unacked)
            self.next_due = min(self.next_due, unacked.due)
        return again

    def age(self) -> None:
        """Called now and then: forget ids that left long ago."""
        if self._recent is not None and self._recent.age():
            self._recent = None
