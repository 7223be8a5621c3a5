"""
The gateway: what happens to a connection, from its request to its end. The upper layer of websocket/connection.py.

    request -> admission -> registration -> 101 and the connection frame -> replay -> live -> closed

What clients send is read here (client_frames.py) and carried out by the clerk.

The upgrade is answered when the session is registered, so a client that sees the 101 can be reached. Each connection's
`session` is its Session, or a Guest while its first frame has yet to name the client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import orjson

from gateway_node.admission import Admission, Admitted
from gateway_node.arrivals import Arrivals, Floods, come_again_s
from gateway_node.audiences import Audiences
from gateway_node.clerk import Clerk
from gateway_node.client_frames import Bounds, parse_frame
from gateway_node.commands import BadFrame, Command, Register
from gateway_node.delivery import Delivery
from gateway_node.hub import Hub
from gateway_node.metrics import CLIENT_FRAMES, CONNECTIONS, REFUSED, SESSIONS, SESSIONS_ENDED
from gateway_node.registration import Registration
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.ticker import Ticker
from gateway_node.websocket.addresses import FLOOD_WEIGHT, Addresses
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.frames import text_frame
from gateway_node.websocket.handshake import Refused, Request, check_upgrade
from gateway_node.websocket.pace import TOO_FAR_S, share_s, too_fast
from shared.envelope import MsgType, server_envelope
from shared.errors import CloseCode, Overloaded, PushfleetError, Unauthorized, Unavailable
from shared.ids import MessageIdMint, SessionIdMint
from shared.logs import get_log
from shared.registry import Joined

_PATHS = ("/websocket", "/ws")
_JSON = "application/json"
_REGISTERED = CONNECTIONS.labels("registered")
_LIMITS = {"too_many_targets": "targets", "too_deep": "json_depth"}
_FLOODS = ("messages", "bytes", "pings")
_FULL = REFUSED.labels("node_connections")
_log = get_log("gateway")


@dataclass(slots=True)
class Guest:
    """A connection that is open and not yet a session."""

    admitted: Admitted
    deadline: float


class Gateway:
    """See the module. `health` gives None or what is amiss, `refusal` None or why the node takes no sessions now."""

    def __init__(
        self,
        node_id: str,
        settings: GatewaySettings,
        hub: Hub,
        delivery: Delivery,
        clerk: Clerk,
        health: Callable[[], str | None],
        refusal: Callable[[], str | None],
        admission: Admission,
    ) -> None:
        self.now = 0.0
        self._node_id = node_id
        self._settings = settings
        self._hub = hub
        self._delivery = delivery
        self._clerk = clerk
        self._health = health
        self._refusal = refusal
        self._admission = admission
        self._arrivals = Arrivals(settings.connect_rate)
        self._floods = Floods()
        self._message_s = share_s(settings.message_rate)
        self._bounds = Bounds(settings.frame_targets, settings.json_depth)
        self.addresses = Addresses(
            settings.address_connections,
            settings.address_connect_rate,
            settings.address_auth_failures,
            settings.trusted_proxies,
        )
        SESSIONS.set_function(lambda: hub.registered)
        self._session_ids = SessionIdMint(node_id)
        self._message_ids = MessageIdMint()
        self._guests: dict[Connection, Guest] = {}
        self.registration: Registration
        self.audiences: Audiences
        self.ticker: Ticker

    # -- from the connection ---------------------------------------------------------------------------------

    def request_received(self, connection: Connection, request: Request) -> None:
        if request.path == "/healthz":
            self._answer_health(connection)
            return
        if request.path not in _PATHS:
            self._refuse(connection, 404, "not_found", "connect to /websocket")
            return
        try:
            check_upgrade(request)
            self.addresses.check(connection, request.headers, self.now)
            self._arrivals.take(self.now)
            admitted = self._admission.admit(request)
            self._floods.check(admitted.client_id, self.now)
            self._check_room()
        except Refused as refusal:
            self._refuse(connection, refusal.status, "no_upgrade", str(refusal), headers=refusal.headers)
            return
        except PushfleetError as error:
            if isinstance(error, Unauthorized):
                self.addresses.offended(connection, self.now)
            self._refuse(connection, error.status, error.code, str(error), retry_after_s=error.retry_after_s)
            return
        if admitted.client_id:
            self._open_session(connection, admitted, admitted.client_id)
            return
        guest = Guest(admitted, self.now + self._settings.handshake_timeout_s)
        connection.session = self._guests[connection] = guest
        connection.accept(admitted.subprotocol)

    def message_received(self, connection: Connection, data: bytes) -> None:
        context = connection.session
        try:
            asked = parse_frame(data, self._bounds)
            if isinstance(context, Session):
                ahead_s = context.charge(asked.command, self._message_s, self.now)
                if ahead_s > TOO_FAR_S:
                    self.limit_exceeded(connection, "messages")
                    connection.cut(CloseCode.FLOODING, too_fast("messages", ahead_s))
                else:
                    self._clerk.obey(context, asked)
            elif isinstance(context, Guest):
                self._on_first_frame(connection, context, asked.command)
        except BadFrame as fault:
            CLIENT_FRAMES.labels("bad").inc()
            if limit := _LIMITS.get(fault.code):
                REFUSED.labels(limit).inc()
            self._on_bad_frame(connection, fault)

    def drained(self, connection: Connection) -> None:
        if isinstance(connection.session, Session):
            self._delivery.kernel_took_all(connection.session)

    def connection_closed(self, connection: Connection, code: int, reason: str, clean: bool) -> None:
        context = connection.session
        connection.session = None
        if isinstance(context, Guest):
            self._guests.pop(connection, None)
        elif isinstance(context, Session) and self._hub.remove(context):
            self._end_session(context, code, clean)

    def limit_exceeded(self, connection: Connection, limit: str) -> None:
        REFUSED.labels(limit).inc()
        if limit in _FLOODS and isinstance(connection.session, Session):
            self._floods.add(connection.session.client_id, self.now)
            self.addresses.offended(connection, self.now, FLOOD_WEIGHT)

    def close_guests(self, code: int, reason: str) -> None:
        """Those who have not said who they are would become sessions whatever the node takes."""
        for connection in list(self._guests):
            connection.close(code, reason)

    # -- from the ticker -------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self.now = now
        self._delivery.now = now
        self._floods.forget(now)
        late = [connection for connection, guest in self._guests.items() if guest.deadline <= now]
        for connection in late:
            del self._guests[connection]
            connection.session = None
            connection.close(CloseCode.POLICY_VIOLATION, "no first frame named the client")

    # -- sessions --------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        if (reason := self._refusal()) is not None:
            raise Unavailable(reason)
        if len(self._hub) + len(self._guests) >= self._settings.max_sessions:
            _FULL.inc()
            raise Unavailable("this node is full", retry_after_s=5)

    def _open_session(
        self, connection: Connection, admitted: Admitted, client_id: str, register: Register | None = None
    ) -> None:
        session_id = self._session_ids.mint(client_id, time.time_ns() // 1_000_000)
        session = Session(
            session_id.encode(),
            client_id,
            connection,
            ack=admitted.ack,
            expires_s=admitted.expires_s,
            device=admitted.device,
            issued_s=admitted.issued_s,
        )
        session.early = []
        connection.session = session
        self._hub.add(session)
        try:
            joined = self.registration.join(session)
        except Overloaded as error:
            self._turn_away(session, error)
            return
        joined.add_done_callback(partial(self._on_joined, session, admitted, register))

    def _on_joined(
        self,
        session: Session,
        admitted: Admitted,
        register: Register | None,
        joined: asyncio.Future[list[Joined]],
    ) -> None:
        if session.session_id not in self._hub.by_id or joined.cancelled():
            self.registration.leave(session)  # the client went away while it was being registered
            return
        error = joined.exception()
        if error is not None:
            self.registration.leave(session)
            self._turn_away(session, error)
            return
        (answer,) = joined.result()
        if answer.revoked:
            self.addresses.offended(session.connection, self.now)
            self._turn_away(session, Unauthorized("the token was revoked; get a new one"))
            return
        connection = session.connection
        if not connection.open and not connection.accept(admitted.subprotocol):
            self._hub.remove(session)  # it was refused or went away meanwhile
            self.registration.leave(session)
            return
        self._welcome(session, answer, register)
        self.audiences.attach_for_session(session, admitted.groups)
        self.registration.replaced(answer)

    def _welcome(self, session: Session, joined: Joined, register: Register | None) -> None:
        self._hub.registered += 1
        _REGISTERED.inc()
        session.connection.send(text_frame(self._connection_frame(session, joined.inbox.held)))
        if register is not None:
            self._clerk.welcome(session, register)
        early, session.early = session.early, None
        for frame in early or ():
            session.connection.send(frame)
        self.ticker.watch(session)
        self._delivery.replay(session, joined.inbox)
        self.audiences.attach(session, joined.audiences)

    def _turn_away(self, session: Session, error: BaseException) -> None:
        self._hub.remove(session)
        connection = session.connection
        connection.session = None
        known = isinstance(error, PushfleetError)
        if not known:
            _log.error("registration_failed", error=type(error).__name__)
        text = str(error) if known else "registration failed"
        if connection.open:
            connection.close(CloseCode.TRY_AGAIN_LATER, "not registered; try again")
        elif isinstance(error, Unauthorized):
            self._refuse(connection, error.status, error.code, text)
        else:
            self._refuse(connection, 503, "unavailable", text, retry_after_s=come_again_s())

    def _end_session(self, session: Session, code: int, clean: bool) -> None:
        self.audiences.detach(session)
        self._delivery.forget(session)
        if session.early is not None:
            return  # still being registered: _on_joined removes it
        self.ticker.forget(session)
        self._hub.registered -= 1
        SESSIONS_ENDED.labels(str(code)).inc()
        self.registration.leave(session)
        _log.info(
            "session_ended",
            session_id=session.session_id.decode(),
            code=code,
            clean=clean,
            sent=session.delivered,
            bad_frames=session.bad_frames,
        )

    def _connection_frame(self, session: Session, pending: int) -> bytes:
        settings = self._settings
        now_ms = time.time_ns() // 1_000_000
        return server_envelope(
            MsgType.CONNECTION,
            active_time_ms=now_ms,
            session_id=session.session_id.decode(),
            client_id=session.client_id,
            message_id=self._message_ids.mint(),
            msg={
                "heartbeatInterval": round(settings.heartbeat_timeout_s / 3, 3),
                "ack": session.ack,
                "ackTimeout": settings.ack_timeout_s,
                "maxFrame": settings.max_frame,
                "serverTime": now_ms,
                "pending": pending,
            },
            result_msg="connected",
        )

    def tell(self, session: Session, code: str, text: str, group: str | None) -> None:
        """An error that no frame of its own has caused."""
        envelope = server_envelope(
            MsgType.ERROR,
            active_time_ms=time.time_ns() // 1_000_000,
            session_id=session.session_id.decode(),
            client_id=session.client_id,
            result_msg=text,
            code=code,
            group=group,
        )
        session.connection.send(text_frame(envelope))

    # -- frames ----------------------------------------------------------------------------------------------

    def _on_first_frame(self, connection: Connection, guest: Guest, command: Command) -> None:
        if not isinstance(command, Register) or not command.present:
            raise BadFrame("not_registered", "the first frame has to name the client: type 7 with params.openid")
        del self._guests[connection]
        self._clerk.introduce(command)
        self._open_session(connection, guest.admitted, command.client_id, command)

    def log_out(self, session: Session) -> None:
        """Its client leaves: out of the registry, then closed."""
        session.connection.flush()  # what the client has is settled before the session ends
        if session.connection.outbox_bytes == 0:
            self._delivery.kernel_took_all(session)
        if self._hub.remove(session):
            self._end_session(session, CloseCode.NORMAL, clean=True)
        session.connection.session = None
        session.connection.close(CloseCode.NORMAL, "logged out")

    def _on_bad_frame(self, connection: Connection, fault: BadFrame) -> None:
        """Answered in words; the connection is kept unless it keeps offending."""
        context = connection.session
        if isinstance(context, Session):
            self._clerk.refuse_frame(context, fault)
            if context.is_flooding_bad_frames(self.now, self._settings.bad_frames):
                REFUSED.labels("bad_frames").inc()
                connection.cut(CloseCode.POLICY_VIOLATION, "too many bad frames")
        elif isinstance(context, Guest):
            connection.close(CloseCode.POLICY_VIOLATION, str(fault)[:120])

    # -- plain answers ---------------------------------------------------------------------------------------

    def _answer_health(self, connection: Connection) -> None:
        status, body = self.health_answer()
        connection.refuse(status, body, {"Content-Type": _JSON})

    def health_answer(self) -> tuple[int, bytes]:
        """For /healthz, here and on the admin port."""
        reason = self._health()
        if reason is None:
            return 200, orjson.dumps({"status": "ok", "nodeId": self._node_id})
        return 503, orjson.dumps({"status": "unavailable", "nodeId": self._node_id, "reason": reason})

    def _refuse(
        self,
        connection: Connection,
        status: int,
        code: str,
        text: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after_s: int = 0,
    ) -> None:
        CONNECTIONS.labels(code).inc()
        fields = {"Content-Type": _JSON, **(headers or {})}
        if retry_after_s:
            fields["Retry-After"] = str(retry_after_s)
        connection.refuse(status, orjson.dumps({"code": code, "message": text}), fields)
