"""
A session: one registered connection of a client. Pure state; what happens to it is in delivery.py and gateway.py.

    registering --registered--> replaying --inbox read to its end--> live
                                    ^                                  |
                                    └────── behind (window full) ──────┘

While a session is not live, records for it are passed over: their messages lie in the inbox, and `missed` says that the
inbox has to be read once more before the session is live. So a client gets its messages in the inbox's order. `read_to`
is the place up to which the inbox was read for this session: a record at or before it brings nothing new.

A session is *suspended* when its node's lease was lost, until it is registered again and its inbox was read: nothing is
sent to it, not even again, since its client may be elsewhere and may have acknowledged there what the window holds.
"""

from __future__ import annotations

from gateway_node.audience import Cursor
from gateway_node.commands import Ack, Business, Command, Read
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.pace import share_s
from gateway_node.window import Window, Written
from shared.envelope import address_of

_MOST_ACKS_AHEAD = 1_024
"""Acknowledgements of what came to earlier sessions of the client."""
_TARGETS_A_MESSAGE = 10
"""A message to a thousand clients costs the cluster more than one to ten."""


class Session:
    """
    `ack`: the client acknowledges; else a message counts as delivered once the kernel took its bytes.

    `address` is what differs between the envelopes of one message (see shared.envelope).

    `cursors` are its places in audiences, by their names; `behind` are those that read on once the window has room;
    `version` says how often its client's memberships had changed when they were read.

    `early` holds frames that came before the session was registered; None from then on. `expires_s` (epoch s, 0:
    never) is the token's end, `issued_s` its `iat` (0: not said; None: there is no token). `due` is the ticker's.

    `paid_until` and `groups_paid_until` are those of websocket/pace.py: for messages, and for groups that it makes.
    `acked` counts acknowledgements that cost nothing; `errands` are commands under way (clerk.py).
    """

    __slots__ = (
        "ack",
        "acked",
        "address",
        "bad_frames",
        "bad_since",
        "behind",
        "client_id",
        "connection",
        "cursors",
        "delivered",
        "device",
        "due",
        "early",
        "errands",
        "expires_s",
        "groups_paid_until",
        "issued_s",
        "missed",
        "paid_until",
        "read_to",
        "replaying",
        "session_id",
        "suspended",
        "version",
        "want_pull",
        "window",
    )

    def __init__(
        self,
        session_id: bytes,
        client_id: str,
        connection: Connection,
        *,
        ack: bool,
        expires_s: float,
        device: str,
        issued_s: float | None = None,
    ) -> None:
        self.session_id = session_id
        self.client_id = client_id
        self.address = address_of(session_id, client_id.encode())
        self.connection = connection
        self.ack = ack
        self.expires_s = expires_s
        self.issued_s = issued_s
        self.due = 0
        self.device = device
        self.replaying = True
        self.missed = False
        self.want_pull = False
        self.suspended = False
        self.read_to = 0
        self.early: list[bytes] | None = None
        self.window: Window | Written | None = None
        self.cursors: dict[str, Cursor] = {}
        self.behind: list[Cursor] | None = None
        self.version = 0
        self.delivered = 0
        self.acked = 0
        self.errands = 0
        self.paid_until = 0.0
        self.groups_paid_until = 0.0
        self.bad_frames = 0
        self.bad_since = 0.0

    def charge(self, command: Command, message_s: float, now: float) -> float:
        """
        How far (s) the session is ahead of the rate at which a message costs `message_s`, this one counted.

        Acknowledgements are free as long as there are no more of them than messages came; one to many counts for more.
        """
        kind = type(command)
        weight = 1
        if kind is Ack or kind is Read:
            self.acked += len(command.message_ids) if isinstance(command, Ack) else 1
            weight = self.acked - self.delivered - _MOST_ACKS_AHEAD
            if weight <= 0:
                return 0.0
            self.acked -= weight
        elif isinstance(command, Business):
            weight += (len(command.to) + len(command.groups)) // _TARGETS_A_MESSAGE
        until = self.paid_until
        self.paid_until = until = (until if until > now else now) + weight * message_s
        return until - now

    def may_make_group(self, most: int, now: float) -> bool:
        """Count a group that it makes, at most so many a minute and as many at once; 0: any."""
        until = max(self.groups_paid_until, now) + 60.0 * share_s(most)
        if until - now > 60.0:
            return False
        self.groups_paid_until = until
        return True

    def is_in_by_token(self, group: str) -> bool:
        """Whether its token has it in this group, for as long as the session lasts."""
        cursor = self.cursors.get(group)
        return cursor is not None and not cursor.lasting

    def is_flooding_bad_frames(self, now: float, most: int) -> bool:
        """Count a bad frame; whether there were more than `most` within a minute."""
        if now - self.bad_since > 60.0:
            self.bad_since = now
            self.bad_frames = 0
        self.bad_frames += 1
        return self.bad_frames > most
