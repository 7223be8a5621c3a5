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
from gateway_node.websocket.connection import Connection
from gateway_node.window import Window, Written
from shared.envelope import address_of


class Session:
    """
    `ack`: the client acknowledges; else a message counts as delivered once the kernel took its bytes.

    `address` is what differs between the envelopes of one message (see shared.envelope).

    `cursors` are its places in audiences, by their names; `behind` are those that read on once the window has room;
    `version` says how often its client's memberships had changed when they were read.

    `early` holds frames that came before the session was registered; None from then on. `expires_s` (epoch s, 0:
    never) is the token's end, `issued_s` its `iat` (0: not said; None: there is no token). `due` is the ticker's.
    """

    __slots__ = (
        "ack",
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
        "expires_s",
        "issued_s",
        "missed",
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
        self.bad_frames = 0
        self.bad_since = 0.0

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
