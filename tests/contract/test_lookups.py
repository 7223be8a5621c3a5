"""What has to be known before a client's message goes on: many questions in one batch, each with its own answer."""

from __future__ import annotations

import asyncio

import pytest

from gateway_node.lookups import Found, Lookups, Question
from shared.errors import StoreUnavailable
from shared.groups import Groups, Standing
from shared.ids import MessageIdMint
from shared.people import People, sender_of
from shared.person import Person
from shared.store import Store

DEADLINE_S = 20.0


async def ask_all(lookups: Lookups, questions: list[Question]) -> list[Found]:
    """In one breath: the first goes alone, those behind it together."""
    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(lookups.ask(question) for question in questions))
    return [found for (found,) in answers]


async def test_each_question_gets_its_own_answer(store: Store) -> None:
    """Though some are refused by a group, some give a name and some ask for a sender; on one server and a cluster."""
    people, groups, mint = People(store), Groups(store), MessageIdMint().mint
    lookups = Lookups(people, groups)
    await groups.create("g1", name="", owner="c0", members=[f"c{n}" for n in range(0, 90, 2)])
    ids = [mint() for _ in range(90)]
    asked = [
        Question(f"c{n}", groups=("g1",) if n % 3 else (), people=(f"c{n}", "x"), message_id=ids[n], name=f"N{n}")
        for n in range(90)
    ]
    try:
        found = await ask_all(lookups, asked)
        senders = await ask_all(lookups, [Question("x", people=("x",), sender_of=message_id) for message_id in ids])
        kept = await people.carry_out([sender_of(message_id) for message_id in ids])
    finally:
        await lookups.close(DEADLINE_S)

    allowed = [not n % 3 or not n % 2 for n in range(90)]
    names = [Person(f"c{n}", f"N{n}", online=False) for n in range(90)]
    nobody = Person("x", "", online=False)
    assert allowed == [each.may_go_on for each in found]
    assert [[names[n], nobody] if allowed[n] else [] for n in range(90)] == [each.people for each in found]
    assert [names[n] if allowed[n] else None for n in range(90)] == [each.sender for each in senders]
    assert [f"c{n}" if allowed[n] else "" for n in range(90)] == kept


async def test_a_group_that_is_not_there(store: Store) -> None:
    """Every group asked for has a standing, in order."""
    groups = Groups(store)
    lookups = Lookups(People(store), groups)
    await groups.create("g1", name="", owner="a", members=["a"])
    await groups.create("g2", name="", owner="b", members=["b"])
    (found,) = await ask_all(lookups, [Question("a", groups=("g1", "g2", "g3"))])
    await lookups.close(DEADLINE_S)

    assert [Standing.MEMBER, Standing.NOT_MEMBER, Standing.NO_GROUP] == list(found.standings)


async def test_without_redis_nothing_is_known(namespace: str) -> None:
    """The asker is told so."""
    store = Store("redis://127.0.0.1:1/0", namespace=namespace)
    lookups = Lookups(People(store), Groups(store))
    with pytest.raises(StoreUnavailable):
        await ask_all(lookups, [Question("a", people=("b",))])
    await lookups.close(0.0)
    await store.close()
