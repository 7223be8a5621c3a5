"""An order: one send on its way through the dispatcher, and the bytes that are built once for all its targets."""

from __future__ import annotations

import time

from dispatcher.answers import id_list
from dispatcher.idempotency import Ask
from dispatcher.requests import Send
from shared.envelope import Trigger, business_template, cut_template, fill_cut
from shared.errors import PushfleetError
from shared.ids import MessageIdMint, mint_request_id
from shared.inbox import StoredMessage
from shared.record import Kind, encode_line, line_head

_mint = MessageIdMint().mint


class Order:
    """
    A send on its way. After `Push.send_all` either `error` says why it failed, or `content` is the JSON list of the
    targets that are not online (None: all are). `message_id` and `request_id` are those of the first try; `again`:
    there was one that may have stored something. `full`: of the targets in `content` those whose inbox is full.
    """

    __slots__ = (
        "active_time_ms",
        "again",
        "ask",
        "broken",
        "caller",
        "content",
        "error",
        "expires_ms",
        "full",
        "head",
        "kind",
        "message",
        "message_id",
        "offline",
        "out_of_order",
        "request_id",
        "send",
        "sender",
        "tail",
        "tried",
        "trigger",
    )

    def __init__(
        self, send: Send, *, caller: str, sender: str, trigger: Trigger, message_id: str = "", active_time_ms: int = 0
    ) -> None:
        self.send = send
        self.caller = caller
        self.sender = sender
        self.trigger = trigger
        self.message_id = message_id or _mint()
        self.active_time_ms = active_time_ms or time.time_ns() // 1_000_000
        self.request_id: str = send.request_id or mint_request_id()
        self.ask: Ask | None = None
        self.content: bytes | None = None
        self.error: PushfleetError | None = None
        self.again = False
        self.tried = False

    def prepare(self) -> None:
        """Build what is the same for all targets, anew for each try. `message` is what to store for each."""
        send = self.send
        self.again = self.again or self.tried
        self.tried = True
        self.offline: list[str] = []
        self.full = 0
        self.out_of_order = False
        self.error = None
        self.expires_ms = self.active_time_ms + send.ttl_ms
        template = self.template_for("")
        self.head, self.tail = cut_template(template)
        self.kind = Kind.DIRECT if send.durable else Kind.ONLINE
        self.broken = b"\n" in send.msg
        self.message = StoredMessage(self.message_id, self.expires_ms if send.durable else 0, template)

    def template_for(self, group: str) -> bytes:
        """`group`: "" for a message that does not go to one."""
        return business_template(
            active_time_ms=self.active_time_ms,
            sender=self.sender,
            message_id=self.message_id,
            msg=self.send.msg,
            request_id=self.request_id,
            trigger=self.trigger,
            group=group,
        )

    def line(self, session_id: str, client_id: str, place: int) -> bytes:
        """The line for one session; `place` is the message's in the inbox."""
        before = line_head(self.kind, self.expires_ms, place)
        if self.broken:
            return encode_line(before, fill_cut(self.head, session_id.encode(), client_id.encode(), self.tail))
        return fill_cut(before + self.head, session_id.encode(), client_id.encode(), self.tail + b"}")

    def finish(self) -> None:
        """Turn what was found offline into `content`."""
        offline = self.offline
        if self.out_of_order:
            missing = set(offline)
            offline = [target for target in self.send.targets if target in missing]
        self.content = id_list(offline) if offline else None
