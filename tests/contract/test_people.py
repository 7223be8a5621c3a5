"""Names, who is online, and who sent a message: on one server and on a cluster."""

from __future__ import annotations

from shared.ids import MessageIdMint
from shared.people import People, PeopleRequest, name, profile, sender, sender_of
from shared.person import Person
from shared.registry import Joining, Registry
from shared.store import Store

NODE = "10.0.0.1:9000"


async def ask(store: Store, *requests: PeopleRequest) -> list[Person | str]:
    return await People(store).carry_out(requests)


async def test_a_name_that_was_given_is_known(store: Store) -> None:
    """The last one, whatever it is written in; requests of one call see what those before them wrote."""
    first, second = await ask(store, profile("alice"), name("alice", "Alicé 阿丽"))
    later = await ask(store, name("alice", "A2"), profile("alice"), profile("bob"))

    assert [Person("alice", "", online=False), ""] == [first, second]
    assert ["", Person("alice", "A2", online=False), Person("bob", "", online=False)] == later


async def test_who_has_a_session_is_online(store: Store) -> None:
    """As long as the route holds one."""
    registry = Registry(store)
    session_id = f"{NODE}_alice_20260101000000000"
    await registry.register(NODE, "e1", [Joining("alice", session_id)], most=1, most_bytes=1)
    (here,) = await ask(store, profile("alice"))
    await registry.unregister([("alice", session_id, "")])
    (gone,) = await ask(store, profile("alice"))

    assert [Person("alice", "", online=True), Person("alice", "", online=False)] == [here, gone]


async def test_the_sender_of_a_message_is_remembered(store: Store) -> None:
    """Each message's own; of another message nobody is known."""
    mint = MessageIdMint().mint
    ids = [mint() for _ in range(100)]
    wrote = await ask(store, *(sender(message_id, f"c{n}") for n, message_id in enumerate(ids)))
    known = await ask(store, *(sender_of(message_id) for message_id in (*ids, mint())))

    assert [""] * 100 == wrote
    assert [*(f"c{n}" for n in range(100)), ""] == known


async def test_what_is_kept_expires(store: Store) -> None:
    """A name after 30 days, a sender after 7."""
    message_id = MessageIdMint().mint()
    await ask(store, name("alice", "Alice"), sender(message_id, "alice"))
    keys = store.keys
    lives = [await store.redis.ttl(key) for key in (keys.profile_and_route("alice")[0], keys.sender(message_id))]

    assert 30 * 86_400 - 60 < lives[0] <= 30 * 86_400
    assert 7 * 86_400 - 60 < lives[1] <= 7 * 86_400
