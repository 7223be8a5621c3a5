"""
Revocations: from which second on the tokens of a client are good.

    revoke.lua -> the record, and who is connected -> their sessions end
    register.lua, revoked.lua, last.lua -> a token that was issued before is refused

The record lies in the client's partition, and the script that registers a session reads it, so a session with an old
token is either there when the record is made, and in the route that is answered, or is refused: no connection slips
through between, and connecting costs no call more.

A token's `iat` is in whole seconds as a rule, so it cannot be told whether one of the very second of the revocation was
issued before or after. It is good: a client that was signed out can sign in again at once. Tokens without `iat` count
as older than any revocation. A record is kept for as long as the caller says; then tokens of that age are good again,
unless they have expired, as they should have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_REVOKE = Script(_LUA / "revoke.lua")
_REVOKED = Script(_LUA / "revoked.lua")


@dataclass(frozen=True, slots=True)
class Revocation:
    """`before_s` (epoch s): tokens issued earlier are refused. `sessions`, (sessionId, epoch), were connected then."""

    before_s: int
    sessions: tuple[tuple[str, str], ...]


class Revocations:
    """See the module. All raise StoreUnavailable."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def revoke(self, client_id: str, *, keep_s: float) -> Revocation:
        """The client's tokens that were issued before now. The same again is done again."""
        keys = self._store.keys
        names = (keys.route(client_id), keys.revoked(client_id))
        before_s, flat = await self._store.run(_REVOKE, names, (max(1, int(keep_s)),))
        sessions = tuple((flat[at].decode(), flat[at + 1].decode()) for at in range(0, len(flat), 2))
        return Revocation(before_s, sessions)

    async def are_revoked(self, tokens: Sequence[tuple[str, float]]) -> list[bool]:
        """For each token, by its clientId and `iat` (epoch s, 0: not said)."""

        async def ask(some: Sequence[tuple[str, float]]) -> list[bool]:
            names = [self._store.keys.revoked(client_id) for client_id, _ in some]
            answers = await self._store.run(_REVOKED, names, [issued_s for _, issued_s in some])
            return [bool(answer) for answer in answers]

        return await self._store.split(tokens, lambda token: token[0], ask)
