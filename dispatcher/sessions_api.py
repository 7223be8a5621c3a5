"""
/v1/sessions and /v1/nodes/{nodeId}/sessions: single sessions, and those of a node page by page.

A page is read from the index of the node's sessions, a slice of one partition after the other, so that no page holds up
Redis, however many there are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dispatcher.sessions import LiveSession, Sessions
from dispatcher.v1 import Call, Operation, Reply, page_limit
from shared.errors import BadRequest, NotFound
from shared.ids import is_node_id, is_session_id, node_of_session, since_of_session
from shared.logs import get_log

_MOST_ON_PAGE = 1_000
_PAGE = 100
KICKED = "kicked"
_SESSION = "/v1/sessions/{sessionId}"
_log = get_log("dispatcher")


class SessionAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A session whose node lives."""

    session_id: str
    client_id: str
    node_id: str
    device: str | None
    since: int


class SessionsPage(msgspec.Struct, frozen=True):
    """Some of a node's sessions."""

    sessions: list[SessionAnswer]
    cursor: str | None


class Kicked(msgspec.Struct, frozen=True):
    """How many sessions were ended."""

    kicked: int


FIELDS = {
    "SessionAnswer": {
        "device": "what the client called its device; null: nothing",
        "since": "epoch ms, by the node's clock",
    },
    "SessionsPage": {"cursor": "names the next page; null: this is the last"},
    "Kicked": {"kicked": "sessions whose node was told to close them, with 4002; each does so within moments"},
}


def session_answer(session: LiveSession) -> SessionAnswer:
    session_id = session.session_id
    return SessionAnswer(
        session_id,
        session.client_id,
        node_of_session(session_id),
        session.device or None,
        since_of_session(session_id),
    )


class SessionsApi:
    """The operations on single sessions, and the list of a node's."""

    __slots__ = ("_sessions",)

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def operations(self) -> tuple[Operation[Any], ...]:
        read: dict[str, Any] = {"method": "GET", "scopes": ("read", "admin"), "statuses": (200, 404)}
        return (
            Operation(
                **read,
                path=_SESSION,
                name="getSession",
                summary="A session, while it is registered",
                run=self._get,
                answer=SessionAnswer,
            ),
            Operation(
                "DELETE",
                _SESSION,
                ("admin",),
                "kickSession",
                "End a session with close code 4002: its client is not to come back by itself",
                self._kick,
                Kicked,
                statuses=(200, 404),
            ),
            Operation(
                **read,
                path="/v1/nodes/{nodeId}/sessions",
                name="listSessions",
                summary="The sessions of a node, page by page, in no order; one that stays is on a page at least once",
                run=self._list,
                answer=SessionsPage,
                query=(
                    ("cursor", "that of the page before; none: the first page"),
                    ("limit", f"about how many, 1 to {_MOST_ON_PAGE}; default {_PAGE}"),
                ),
            ),
        )

    async def _get(self, call: Call[None]) -> Reply:
        return Reply(session_answer(await self._sessions.get(_session_id(call))))

    async def _kick(self, call: Call[None]) -> Reply:
        session = await self._sessions.get(_session_id(call))
        kicked = await self._sessions.end((session,), KICKED)
        if not kicked:
            raise NotFound(f"no session {session.session_id} is registered")
        _log.info("session_kicked", session_id=session.session_id, caller=call.caller.name)
        return Reply(Kicked(kicked))

    async def _list(self, call: Call[None]) -> Reply:
        node_id = call.params["nodeId"]
        if not is_node_id(node_id):
            raise BadRequest("not a nodeId, ip:port", field="nodeId")
        limit = page_limit(call.query, usual=_PAGE, most=_MOST_ON_PAGE)
        sessions, following = await self._sessions.at(node_id, call.query.get("cursor", ""), limit)
        return Reply(SessionsPage([session_answer(session) for session in sessions], following or None))


def _session_id(call: Call[None]) -> str:
    session_id = call.params["sessionId"]
    if not is_session_id(session_id):
        raise BadRequest("not a sessionId, {nodeId}_{clientId}_{yyyyMMddHHmmssSSS}", field="sessionId")
    return session_id
