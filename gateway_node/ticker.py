"""
The ticker: the one timer of a node, for heartbeats, resends, deadlines and the ends of tokens.

Sessions stand in a wheel of ticks. When a session's tick comes it is looked at once - silent for a third of the
heartbeat time-out: it is pinged (RFC 6455 section 5.5.2); silent for all of it: closed with 4009 - and put where it is
due next. So a tick costs what is due, not what is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway_node.delivery import Delivery
from gateway_node.hub import Hub
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.frames import ping_frame
from shared.errors import CloseCode
from shared.logs import get_log

_PING = ping_frame(b"")
_log = get_log("ticker")


class Ticker:
    """
    Owned by app.py, which runs `run` as a task.

    `on_tick` is called with the loop's time at each tick; what it gives is whether the node may send again what was not
    acknowledged.
    """

    __slots__ = ("_delivery", "_hub", "_on_tick", "_quiet_s", "_tick", "_tick_s", "_timeout_s", "_wheel")

    def __init__(
        self, hub: Hub, delivery: Delivery, settings: GatewaySettings, on_tick: Callable[[float], bool]
    ) -> None:
        self._hub = hub
        self._delivery = delivery
        self._on_tick = on_tick
        self._timeout_s = settings.heartbeat_timeout_s
        self._quiet_s = settings.heartbeat_timeout_s / 3
        self._tick_s = max(
            0.02, min(1.0, self._quiet_s / 4, settings.ack_timeout_s / 4, settings.handshake_timeout_s / 4)
        )
        self._tick = 0
        self._wheel: dict[int, dict[Session, None]] = {}

    def __len__(self) -> int:
        """How many sessions are in the wheel."""
        return sum(map(len, self._wheel.values()))

    def watch(self, session: Session) -> None:
        """From its registration until `forget`."""
        self._put(session, self._quiet_s)

    def forget(self, session: Session) -> None:
        """It has ended. Who comes and goes fast must not fill the wheel with what is gone."""
        self._wheel.get(session.due, {}).pop(session, None)

    def ends_otherwise(self, session: Session) -> None:
        """Its token's end has changed: look at it in time."""
        tick = self._tick_of(session, self._timeout_s)
        if tick < session.due:
            self.forget(session)
            self._at(session, tick)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            self._tick += 1
            await asyncio.sleep(max(0.0, start + self._tick * self._tick_s - loop.time()))
            try:
                if self._on_tick(loop.time()):
                    self._delivery.resend_due()
                self._look_at_due(loop.time())
            except Exception:
                _log.exception("tick_failed")

    def _look_at_due(self, now: float) -> None:
        for session in self._wheel.pop(self._tick, ()):
            if session.session_id in self._hub.by_id:
                self._look_at(session, now)

    def _look_at(self, session: Session, now: float) -> None:
        left_s = session.expires_s - time.time() if session.expires_s else self._timeout_s
        silent_s = now - session.connection.seen
        if left_s <= 0:
            session.connection.close(CloseCode.TOKEN_EXPIRED, "the token has expired")
            return
        if silent_s >= self._timeout_s:
            session.connection.close(CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")
            return
        if silent_s >= self._quiet_s * 0.9:
            session.connection.send(_PING)
        if session.window is not None:
            session.window.age()
        self._put(session, min(self._quiet_s, self._timeout_s - silent_s, left_s))

    def _put(self, session: Session, in_s: float) -> None:
        """The first tick at or after `in_s`, or after its token's end."""
        self._at(session, self._tick_of(session, in_s))

    def _tick_of(self, session: Session, in_s: float) -> int:
        if session.expires_s:
            in_s = min(in_s, max(0.0, session.expires_s - time.time()))
        return self._tick + 1 + int(in_s / self._tick_s)

    def _at(self, session: Session, tick: int) -> None:
        session.due = tick
        self._wheel.setdefault(tick, {})[session] = None
