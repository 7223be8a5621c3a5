"""
Lookups: what has to be read from Redis before a client's message can go on, in batches and in order.

One batcher asks for everything, so what one client sends stays in its order whatever each of its messages needs. A
batch takes two steps: who is in which group and who sent which message; then names and who is online, for those
messages only that may go on. The same step writes: the names that clients give, and who sent a message, before the
message is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway_node.backlog import Backlog
from shared import people
from shared.batching import Batcher
from shared.groups import Groups, Standing
from shared.people import People, PeopleRequest
from shared.person import Person

_MOST_WAITING = 10_000
_MOST_NAMES = 100_000
_STANDINGS_A_CALL = 512


@dataclass(frozen=True, slots=True)
class Question:
    """
    What is asked on behalf of a client.

    `groups`: is the client in each of them? `people`: their profiles. `sender_of`: a messageId, whose sender's profile
    is asked for. `message_id`: the client is kept as its sender, unless a group refuses. `name`: the client's own, to
    be kept.
    """

    client_id: str
    groups: Sequence[str] = ()
    people: Sequence[str] = ()
    sender_of: str = ""
    message_id: str = ""
    name: str = ""


@dataclass(slots=True)
class Found:
    """`standings` and `people` as asked for; when a group refuses nothing else is found. `sender`: None is unknown."""

    standings: Sequence[Standing] = ()
    people: list[Person] = field(default_factory=list)
    sender: Person | None = None

    @property
    def may_go_on(self) -> bool:
        return all(standing is Standing.MEMBER for standing in self.standings)


class Lookups:
    """See the module; owned by app.py."""

    __slots__ = ("_batcher", "_groups", "_names", "_people")

    def __init__(self, people: People, groups: Groups) -> None:
        self._people = people
        self._groups = groups
        self._batcher: Batcher[Question, Found] = Batcher(
            "look_up", self._look_up, most=128, most_waiting=_MOST_WAITING
        )
        self._names: Backlog[PeopleRequest] = Backlog("names", people.carry_out, most_waiting=_MOST_NAMES)

    def ask(self, question: Question) -> asyncio.Future[list[Found]]:
        """Raises Overloaded; the future carries StoreUnavailable."""
        return self._batcher.submit((question,))

    def keep_name(self, client_id: str, name: str) -> None:
        """In the end, also when Redis is away."""
        self._names.add(people.name(client_id, name))

    async def close(self, within_s: float) -> None:
        await self._batcher.close()
        await self._names.close(within_s)

    async def _look_up(self, questions: list[Question]) -> list[Found]:
        standings, senders = await asyncio.gather(self._standings(questions), self._senders(questions))
        answers = [Found(of_question) for of_question in standings]
        requests: list[PeopleRequest] = []
        for question, found, sender in zip(questions, answers, senders, strict=True):
            if found.may_go_on:
                requests += _requests(question, sender)
        known = iter(await self._people.carry_out(requests) if requests else ())
        for question, found, sender in zip(questions, answers, senders, strict=True):
            if not found.may_go_on:
                continue
            for _ in range(bool(question.name) + bool(question.message_id)):
                next(known)
            found.people = [_person(next(known)) for _ in question.people]
            found.sender = _person(next(known)) if sender else None
        return answers

    async def _standings(self, questions: list[Question]) -> list[Sequence[Standing]]:
        asked = [(group_id, question.client_id) for question in questions for group_id in question.groups]
        standings: list[Standing] = []
        for start in range(0, len(asked), _STANDINGS_A_CALL):
            standings += await self._groups.standing(asked[start : start + _STANDINGS_A_CALL])
        given = iter(standings)
        return [[next(given) for _ in question.groups] for question in questions]

    async def _senders(self, questions: list[Question]) -> list[str]:
        """The sender of each question's `sender_of`; "" for those who ask for none, or of whom none is known."""
        requests = [people.sender_of(question.sender_of) for question in questions if question.sender_of]
        known = iter(await self._people.carry_out(requests) if requests else ())
        return [str(next(known)) if question.sender_of else "" for question in questions]


def _requests(question: Question, sender: str) -> list[PeopleRequest]:
    requests = []
    if question.name:
        requests.append(people.name(question.client_id, question.name))
    if question.message_id:
        requests.append(people.sender(question.message_id, question.client_id))
    requests += [people.profile(client_id) for client_id in question.people]
    if sender:
        requests.append(people.profile(sender))
    return requests


def _person(answer: Person | str) -> Person:
    assert isinstance(answer, Person)
    return answer
