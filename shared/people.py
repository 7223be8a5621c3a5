"""
People: what clients tell of themselves to other clients, in Redis.

A client's *profile* is the name it gave last, for 30 days. The *sender* of a user's message is remembered for 7 days,
as long as the message itself may wait for its receiver, so that it can be told when somebody has read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shared.person import Person
from shared.store import Script, Store

_PEOPLE = Script(Path(__file__).parent / "lua" / "people.lua")
_PROFILE_S = 30 * 86_400
_SENDER_S = 7 * 86_400


class PeopleRequest(NamedTuple):
    """One thing to be read or written; made by the functions below. `subject` is a clientId or a messageId."""

    kind: str
    subject: str
    value: str


def profile(client_id: str) -> PeopleRequest:
    """Answered by a Person."""
    return PeopleRequest("profile", client_id, "")


def name(client_id: str, name: str) -> PeopleRequest:
    """Keep the name. Answered by ""."""
    return PeopleRequest("name", client_id, name)


def sender(message_id: str, client_id: str) -> PeopleRequest:
    """Keep who sent a message. Answered by ""."""
    return PeopleRequest("sender", message_id, client_id)


def sender_of(message_id: str) -> PeopleRequest:
    """Answered by the clientId, "" when it is not known."""
    return PeopleRequest("sender of", message_id, "")


class People:
    """Profiles and senders in Redis. Requests come in batches and may be made again."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def carry_out(self, requests: Sequence[PeopleRequest]) -> list[Person | str]:
        """The answer to each; those about one subject are carried out in their order. Raises StoreUnavailable."""
        return await self._store.split(requests, lambda request: request.subject, self._some)

    async def _some(self, requests: Sequence[PeopleRequest]) -> list[Person | str]:
        keys = self._store.keys
        names: list[str] = []
        args: list[str | int] = [_PROFILE_S, _SENDER_S]
        for kind, subject, value in requests:
            if kind in ("profile", "name"):
                names += keys.profile_and_route(subject)
            else:
                names += (keys.sender(subject),) * 2
            args += (kind, value)
        answers = await self._store.run(_PEOPLE, names, args)
        return [_answer(request, answer) for request, answer in zip(requests, answers, strict=True)]


def _answer(request: PeopleRequest, answer: list[bytes | int] | bytes | int) -> Person | str:
    if isinstance(answer, list):
        given, sessions = answer
        return Person(request.subject, given.decode() if isinstance(given, bytes) else "", bool(sessions))
    return answer.decode() if isinstance(answer, bytes) else ""
