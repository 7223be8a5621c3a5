"""
/v1/clients: whether clients are online and where, ending their sessions, and revoking their tokens.

A client is online while it has a session whose node lives (sessions.py).

To revoke: the record is made and the route is read in one step (shared/revocations.py); then the sessions are told to
close, then they are taken out of the route. Whatever fails in between, the same call again does the rest. A node that
never hears of it finds its session without a route, registers it again, and is told that its token was revoked.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dispatcher.sessions import Sessions
from dispatcher.sessions_api import KICKED, Kicked, SessionAnswer, session_answer
from dispatcher.v1 import Call, Operation, Reply
from shared.errors import BadRequest, CloseCode
from shared.ids import client_id_fault
from shared.logs import get_log
from shared.registry import Registry
from shared.revocations import Revocations

_MOST_IN_CALL = 1_000
_CLIENT = "/v1/clients/{clientId}"
_REVOKED = "the token was revoked"
_log = get_log("dispatcher")


class ClientAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A client, known or not."""

    client_id: str
    online: bool
    sessions: list[SessionAnswer]


class Revoked(msgspec.Struct, frozen=True):
    """From when on tokens are good, and how many sessions were ended."""

    before: int
    closed: int


class OnlineBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Clients that are asked for."""

    client_ids: list[str]


class OnlineAnswer(msgspec.Struct, frozen=True):
    """By clientId."""

    online: dict[str, bool]


FIELDS = {
    "ClientAnswer": {"online": "whether it has a session", "sessions": "oldest first"},
    "Revoked": {
        "before": "epoch ms, a whole second: tokens whose `iat` is earlier, or that have none, are refused from now on",
        "closed": "sessions whose node was told to close them, with 4001; each does so within moments",
    },
    "OnlineBody": {"clientIds": f"at most {_MOST_IN_CALL}"},
    "OnlineAnswer": {"online": "for each clientId whether it has a session"},
}


class ClientsApi:
    """The operations on clients."""

    __slots__ = ("_keep_s", "_registry", "_revocations", "_sessions")

    def __init__(self, sessions: Sessions, registry: Registry, revocations: Revocations, *, keep_s: float) -> None:
        self._sessions = sessions
        self._registry = registry
        self._revocations = revocations
        self._keep_s = keep_s

    def operations(self) -> tuple[Operation[Any], ...]:
        read = ("read", "admin")
        return (
            Operation("GET", _CLIENT, read, "getClient", "Where a client is", self._get, ClientAnswer),
            Operation(
                "POST",
                "/v1/clients/online",
                read,
                "getOnline",
                "Which of these clients are online",
                self._online,
                OnlineAnswer,
                OnlineBody,
            ),
            Operation(
                "DELETE",
                f"{_CLIENT}/sessions",
                ("admin",),
                "kickClient",
                "End all sessions of a client with close code 4002: it is not to come back by itself",
                self._kick,
                Kicked,
            ),
            Operation(
                "POST",
                f"{_CLIENT}/revoke",
                ("admin",),
                "revokeClient",
                "Refuse the tokens of a client that were issued before now, and end its sessions with close code 4001",
                self._revoke,
                Revoked,
            ),
        )

    async def _get(self, call: Call[None]) -> Reply:
        client_id = _client_id(call)
        (sessions,) = await self._sessions.of([client_id])
        return Reply(ClientAnswer(client_id, bool(sessions), [session_answer(session) for session in sessions]))

    async def _online(self, call: Call[OnlineBody]) -> Reply:
        client_ids = call.body.client_ids
        if len(client_ids) > _MOST_IN_CALL:
            raise BadRequest(f"{len(client_ids)}, at most {_MOST_IN_CALL} in one call", field="clientIds")
        for place, client_id in enumerate(client_ids):
            _check(client_id, f"clientIds[{place}]")
        wanted = list(dict.fromkeys(client_ids))
        found = await self._sessions.of(wanted)
        return Reply(OnlineAnswer({client_id: bool(some) for client_id, some in zip(wanted, found, strict=True)}))

    async def _kick(self, call: Call[None]) -> Reply:
        client_id = _client_id(call)
        (sessions,) = await self._sessions.of([client_id])
        kicked = await self._sessions.end(sessions, KICKED)
        _log.info("client_kicked", client_id=client_id, sessions=kicked, caller=call.caller.name)
        return Reply(Kicked(kicked))

    async def _revoke(self, call: Call[None]) -> Reply:
        client_id = _client_id(call)
        revocation = await self._revocations.revoke(client_id, keep_s=self._keep_s)
        sessions = await self._sessions.living(client_id, revocation.sessions)
        closed = await self._sessions.end(sessions, _REVOKED, CloseCode.TOKEN_EXPIRED)
        await self._registry.unregister([(client_id, *session) for session in revocation.sessions])
        _log.info("client_revoked", client_id=client_id, sessions=closed, caller=call.caller.name)
        return Reply(Revoked(revocation.before_s * 1000, closed))


def _client_id(call: Call[None]) -> str:
    client_id = call.params["clientId"]
    _check(client_id, "clientId")
    return client_id


def _check(client_id: str, field: str) -> None:
    """Raises BadRequest."""
    fault = client_id_fault(client_id)
    if fault:
        raise BadRequest(fault, field=field)
