"""
Renewal: a live session goes on with a newer token.

    token -> admission (signature, whose it is) -> [was it revoked?] -> the session ends when this token does

Redis is asked about many at once. While it does not answer a renewal is refused, and the session stays what it was
until the end of the token it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway_node.admission import Admission
from gateway_node.session import Session
from shared.batching import Batcher
from shared.revocations import Revocations
from shared.tokens import Claims

_MOST_WAITING = 10_000


class Renewal:
    """Owned by app.py. `ends_otherwise` is told of a session whose end has changed."""

    __slots__ = ("_admission", "_batcher", "_ends_otherwise", "_revocations")

    def __init__(
        self, admission: Admission, revocations: Revocations, ends_otherwise: Callable[[Session], None]
    ) -> None:
        self._admission = admission
        self._revocations = revocations
        self._ends_otherwise = ends_otherwise
        self._batcher: Batcher[tuple[Session, Claims], float | None] = Batcher(
            "renew", self._renew, most=128, most_waiting=_MOST_WAITING
        )

    def renew(self, session: Session, token: str) -> asyncio.Future[list[float | None]]:
        """
        A future of when the session will end (epoch s, 0: never), None: the token was revoked.

        Raises Unauthorized, Forbidden, BadRequest, Unavailable; the future carries StoreUnavailable.
        """
        return self._batcher.submit(((session, self._admission.renew(session.client_id, token)),))

    async def close(self) -> None:
        await self._batcher.close()

    async def _renew(self, asked: list[tuple[Session, Claims]]) -> list[float | None]:
        revoked = await self._revocations.are_revoked([(claims.client_id, claims.issued_s) for _, claims in asked])
        ends: list[float | None] = []
        for (session, claims), is_revoked in zip(asked, revoked, strict=True):
            ends.append(None if is_revoked else claims.expires_s)
            if not is_revoked:
                session.expires_s, session.issued_s = claims.expires_s, claims.issued_s
                self._ends_otherwise(session)
        return ends
