"""The envelope dialect's answers: msgType 2, 4, 5 and -1. Pure."""

from __future__ import annotations

import time

from gateway_node.commands import Asker, Command, Done, Heartbeat, Refused, Renew
from shared.envelope import MsgType, Trigger, server_envelope


class EnvelopeDialect:
    """See commands.Dialect."""

    __slots__ = ()

    def answer(self, asker: Asker, command: Command, done: Done) -> bytes:
        if isinstance(command, Heartbeat):
            return _envelope(asker, MsgType.HEARTBEAT_ACK, command.message_id)
        if isinstance(command, Renew):
            expires_ms = int(done.expires_s * 1000) or None
            return _envelope(asker, MsgType.RENEWED, command.message_id, msg={"expires": expires_ms})
        return _envelope(asker, MsgType.ACK, done.message_id, done.request_id)

    def refusal(self, asker: Asker, refused: Refused) -> bytes:
        return _envelope(
            asker, MsgType.ERROR, refused.message_id, refused.request_id, text=str(refused), code=refused.code
        )


def _envelope(
    asker: Asker,
    msg_type: MsgType,
    message_id: str | None,
    request_id: str | None = None,
    *,
    text: str | None = None,
    code: str | None = None,
    msg: object = None,
) -> bytes:
    return server_envelope(
        msg_type,
        active_time_ms=time.time_ns() // 1_000_000,
        session_id=asker.session_id.decode(),
        client_id=asker.client_id,
        message_id=message_id,
        request_id=request_id,
        trigger=Trigger.WEBSOCKET,
        result_msg=text,
        code=code,
        msg=msg,
    )
