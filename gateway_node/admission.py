"""
Admission: may this connection become a session, and of which client? Decided before the upgrade.

403 for an origin that is not allowed, 401 without a good token, 503 while the node is full, draining or without its
registry or bus. The token is in `Authorization: Bearer`, in `?token=`, or behind `bearer` among the subprotocols, which
is how a browser can send one. With PUSH_AUTH=off `?clientId=` (or `?channelId=`) names the client, or nothing does yet:
then the first frame has to (type 7).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway_node.settings import GatewaySettings
from gateway_node.websocket.handshake import Request, offered_subprotocols
from shared.errors import BadRequest, Forbidden, Unauthorized
from shared.ids import client_id_fault
from shared.key_source import KeySource
from shared.origins import is_allowed
from shared.tokens import Claims

_SUBPROTOCOL = "bearer"


@dataclass(frozen=True, slots=True)
class Admitted:
    """
    `client_id` is empty when the first frame has to name it. `subprotocol` is to be answered.

    `issued_s` (epoch s): the token's `iat`, 0 without one; None: there is no token.
    """

    client_id: str
    expires_s: float
    device: str
    ack: bool
    subprotocol: str | None
    groups: tuple[str, ...] = ()
    issued_s: float | None = None


class Admission:
    """The rules, from settings."""

    __slots__ = ("_origins", "_verifier")

    def __init__(self, settings: GatewaySettings, keys: KeySource) -> None:
        self._verifier = keys if settings.auth == "jwt" else None
        self._origins = settings.allowed_origins

    def admit(self, request: Request) -> Admitted:
        """Raises Forbidden, Unauthorized, BadRequest, Unavailable."""
        origin = request.headers.get("origin")
        if origin and self._origins and not is_allowed(origin, self._origins):
            raise Forbidden("this origin is not allowed")
        query = request.query
        ack = query.get("ack") == "1"
        if self._verifier is None:
            client_id = query.get("clientId") or query.get("channelId") or ""
            fault = client_id_fault(client_id) if client_id else None
            if fault:
                raise BadRequest(fault, field="clientId")
            return Admitted(client_id, 0.0, query.get("device", ""), ack, None)
        token, subprotocol = token_of(request)
        if not token:
            raise Unauthorized("no token; send Authorization: Bearer, ?token= or the subprotocols bearer, <token>")
        claims = self._verifier.verify(token)
        device = claims.device or query.get("device", "")
        return Admitted(claims.client_id, claims.expires_s, device, ack, subprotocol, claims.groups, claims.issued_s)

    def renew(self, client_id: str, token: str) -> Claims:
        """
        The claims of a token that a session of the client may go on with, unless it was revoked.

        Raises Unauthorized, Forbidden, Unavailable; BadRequest where there are no tokens.
        """
        if self._verifier is None:
            raise BadRequest("authentication is off here; there is nothing to renew")
        claims = self._verifier.verify(token)
        if claims.client_id != client_id:
            raise Forbidden("the token is another client's", field="token")
        return claims


def token_of(request: Request) -> tuple[str, str | None]:
    """(token, subprotocol to answer); the token is empty when there is none."""
    authorization = request.headers.get("authorization", "")
    if authorization[:7].lower() == "bearer ":
        return authorization[7:].strip(), None
    if token := request.query.get("token"):
        return token, None
    offered = offered_subprotocols(request)
    if len(offered) == 2 and offered[0] == _SUBPROTOCOL:
        return offered[1], _SUBPROTOCOL
    return "", None
