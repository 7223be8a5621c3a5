"""The Lua scripts of leases and routes, on a real server and a real cluster; test_registry_model.py has more."""

from __future__ import annotations

import itertools
import time

import pytest

from shared.ids import node_of_session
from shared.inbox import Inbox, StoredMessage
from shared.keys import partition_of
from shared.registry import Checked, Held, Joined, Joining, Lease, Registry
from shared.store import Store

NODE, OTHER = "10.0.0.1:9000", "10.0.0.2:9000"
_stamps = itertools.count(20260101000000000)


def session_id(client_id: str, node_id: str = NODE) -> str:
    """Each later than the one before."""
    return f"{node_id}_{client_id}_{next(_stamps)}"


async def register(
    store: Store,
    client_id: str,
    session: str,
    epoch: str = "e1",
    *,
    policy: str = "multi",
    device: str = "",
    again: bool = False,
) -> Joined:
    registry = Registry(store, policy=policy)
    joining = [Joining(client_id, session, device)]
    (joined,) = await registry.register(
        node_of_session(session), epoch, joining, most=10, most_bytes=1 << 20, again=again
    )
    return joined


async def route(store: Store, client_id: str) -> dict[str, str]:
    """sessionId -> epoch, as a send sees it."""
    (target,) = await Inbox(store).store([(client_id, StoredMessage("0" * 32, 0, b""))])
    return dict(target.sessions)


async def index(store: Store, client_id: str, node_id: str) -> set[str]:
    """The sessions of a node, in the client's partition."""
    members: set[bytes] = await store.redis.smembers(store.keys.at(partition_of(client_id), node_id))  # type: ignore[assignment]
    return {member.decode() for member in members}


def lease(epoch: str) -> Lease:
    return Lease(epoch=epoch, url="ws://n/websocket")


# -- leases --------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_by_its_epoch_alone(store: Store) -> None:
    """Nothing is renewed that was not taken; a successor takes it; the predecessor then holds nothing."""
    registry = Registry(store)
    assert Held.LOST is (await registry.renew(NODE, lease("e1"), life_s=60)).held
    assert 0 == await store.redis.exists(store.keys.lease(NODE))
    assert Held.YES is (await registry.take(NODE, lease("e1"), life_s=60)).held
    assert Held.YES is (await registry.renew(NODE, lease("e1"), life_s=60)).held
    assert Held.YES is (await registry.take(NODE, lease("e2"), life_s=60)).held
    assert Held.LOST is (await registry.renew(NODE, lease("e1"), life_s=60)).held
    assert Held.YES is (await registry.renew(NODE, lease("e2"), life_s=60)).held


async def test_a_lease_is_given_back_by_its_epoch_alone(store: Store) -> None:
    """What a predecessor gives back late takes nothing from its successor."""
    registry = Registry(store)
    await registry.take(NODE, lease("e2"), life_s=60)
    await registry.release(NODE, "e1", clean=True)
    assert Held.YES is (await registry.renew(NODE, lease("e2"), life_s=60)).held
    await registry.release(NODE, "e2", clean=True)
    assert Held.LOST is (await registry.renew(NODE, lease("e2"), life_s=60)).held


async def test_a_lease_ends_unless_it_is_renewed(store: Store) -> None:
    """Its life is what was asked for, anew with each renewal."""
    registry = Registry(store)
    await registry.take(NODE, lease("e1"), life_s=10)
    for life_s in (10, 60):
        await registry.renew(NODE, lease("e1"), life_s=life_s)
        left_ms = await store.redis.pttl(store.keys.lease(NODE))
        assert (life_s - 5) * 1000 < left_ms <= life_s * 1000


async def test_a_start_is_remembered_until_it_left_nothing_behind(store: Store) -> None:
    """For the janitor: when its lease ends; gone only when the node says that all is clean."""
    registry = Registry(store)
    await registry.take(NODE, lease("e1"), life_s=60)
    ends = await store.redis.zscore(store.keys.starts, f"{NODE} e1")
    assert ends is not None
    assert abs(ends / 1000 - time.time() - 60) < 10
    await registry.release(NODE, "e1", clean=False)
    assert 1 == await store.redis.zcard(store.keys.starts)
    await registry.release(NODE, "e1", clean=True)
    assert 0 == await store.redis.zcard(store.keys.starts)


async def test_a_lease_cannot_be_taken_during_a_burial(store: Store) -> None:
    """Nothing changes; who holds the lease already is not disturbed."""
    registry = Registry(store)
    await store.redis.set(store.keys.burial(NODE), "1", px=60_000)
    assert Held.BURIAL is (await registry.take(NODE, lease("e2"), life_s=60)).held
    assert 0 == await store.redis.exists(store.keys.lease(NODE))
    await store.redis.delete(store.keys.burial(NODE))
    await registry.take(NODE, lease("e2"), life_s=60)
    await store.redis.set(store.keys.burial(NODE), "1", px=60_000)
    assert Held.YES is (await registry.renew(NODE, lease("e2"), life_s=60)).held


async def test_the_word_of_a_store_that_kept_its_data_stays(store: Store) -> None:
    """The same for every node and renewal; another one when Redis came back empty."""
    registry = Registry(store)
    first = (await registry.take(NODE, lease("e1"), life_s=60)).store_id
    assert first == (await registry.take(OTHER, lease("e2"), life_s=60)).store_id
    assert first == (await registry.renew(NODE, lease("e1"), life_s=60)).store_id
    await store.redis.delete(store.keys.store_id, store.keys.lease(NODE))
    assert first != (await registry.take(NODE, lease("e3"), life_s=60)).store_id


# -- routes --------------------------------------------------------------------------------------------------------


async def test_many_sessions_coexist_by_default(store: Store) -> None:
    """With policy multi nothing is replaced."""
    first, second = session_id("a"), session_id("a", OTHER)
    assert () == (await register(store, "a", first)).replaced
    assert () == (await register(store, "a", second, "e2")).replaced
    assert {first: "e1", second: "e2"} == await route(store, "a")


async def test_one_session_a_client(store: Store) -> None:
    """With policy client a new session replaces every older one and tells which."""
    first, second = session_id("a"), session_id("a", OTHER)
    await register(store, "a", first, policy="client")
    joined = await register(store, "a", second, "e2", policy="client")
    assert ((first, "e1"),) == joined.replaced
    assert {second: "e2"} == await route(store, "a")
    assert set() == await index(store, "a", NODE)
    assert {second} == await index(store, "a", OTHER)


async def test_one_session_a_device(store: Store) -> None:
    """With policy device only the older session of that device is replaced; no name is a device, too."""
    phone, tablet, unnamed, phone_again, unnamed_again = (session_id("a") for _ in range(5))
    for session, device in ((phone, "phone"), (tablet, "tablet"), (unnamed, "")):
        assert () == (await register(store, "a", session, policy="device", device=device)).replaced
    assert ((phone, "e1"),) == (await register(store, "a", phone_again, policy="device", device="phone")).replaced
    assert ((unnamed, "e1"),) == (await register(store, "a", unnamed_again, policy="device")).replaced
    assert {tablet, phone_again, unnamed_again} == set(await route(store, "a"))


async def test_a_session_that_ended_is_not_replaced(store: Store) -> None:
    """Its device is free again, and a late end does not free the device of its successor."""
    first, second, third = (session_id("a") for _ in range(3))
    await register(store, "a", first, policy="device", device="phone")
    await Registry(store).unregister([("a", first, "")])
    assert 0 == await store.redis.exists(store.keys.session("a")[3])
    assert () == (await register(store, "a", second, policy="device", device="phone")).replaced
    await Registry(store).unregister([("a", first, "")])
    assert ((second, "e1"),) == (await register(store, "a", third, policy="device", device="phone")).replaced


async def test_a_new_session_wins_whatever_the_clocks_say(store: Store) -> None:
    """Its node's clock may be behind that of the older session's node."""
    slow, fast = session_id("a"), session_id("a", OTHER)
    await register(store, "a", fast, "e2", policy="client")
    joined = await register(store, "a", slow, policy="client")
    assert not joined.outdated
    assert {slow: "e1"} == await route(store, "a")


@pytest.mark.parametrize("policy", ["client", "device"])
async def test_a_session_registered_again_yields_to_a_newer_one(store: Store, policy: str) -> None:
    """Its node was cut off while the client went elsewhere."""
    old, new = session_id("a"), session_id("a", OTHER)
    await register(store, "a", old, policy=policy)
    await register(store, "a", new, "e2", policy=policy)
    joined = await register(store, "a", old, "e3", policy=policy, again=True)
    assert joined.outdated
    assert {new: "e2"} == await route(store, "a")


async def test_a_session_registered_again_replaces_an_older_one(store: Store) -> None:
    """A Redis that came back empty hears of the older one first."""
    old, new = session_id("a"), session_id("a", OTHER)
    await register(store, "a", old, policy="client", again=True)
    joined = await register(store, "a", new, "e2", policy="client", again=True)
    assert not joined.outdated
    assert ((old, "e1"),) == joined.replaced


async def test_unregistering_removes_that_session_alone(store: Store) -> None:
    """A client's other session stays in the route; the index follows."""
    first, second = session_id("a"), session_id("a")
    await register(store, "a", first)
    await register(store, "a", second)
    removed = await Registry(store).unregister([("a", first, ""), ("a", session_id("a"), ""), ("b", second, "")])
    assert 1 == removed
    assert {second: "e1"} == await route(store, "a")
    assert {second} == await index(store, "a", NODE)


async def test_who_removes_another_nodes_session_names_its_epoch(store: Store) -> None:
    """The node came back meanwhile and registered it anew: it stays."""
    session = session_id("a")
    await register(store, "a", session, "e1")
    await register(store, "a", session, "e2", again=True)
    assert 0 == await Registry(store).unregister([("a", session, "e1")])
    assert {session: "e2"} == await route(store, "a")
    assert {session} == await index(store, "a", NODE)
    assert 1 == await Registry(store).unregister([("a", session, "e2")])
    assert {} == await route(store, "a")


async def test_registering_remembers_the_last_node(store: Store) -> None:
    """For placement."""
    await register(store, "a", session_id("a"))
    assert NODE.encode() == await store.redis.get(store.keys.last("a"))


async def test_a_check_tells_what_lies_in_the_inbox(store: Store) -> None:
    """Of a session in the route the messages older than the grace; None of one that is not, or not with this epoch."""
    inbox, registry = Inbox(store), Registry(store)
    session, gone = session_id("a"), session_id("b")
    await register(store, "a", session)
    far = int(time.time() * 1000) + 60_000
    await inbox.store([("a", StoredMessage("1" * 32, far, b"{}")), ("b", StoredMessage("2" * 32, far, b"{}"))])
    assert [Checked(0, [b"1" * 32]), None] == await registry.check("e1", [("a", session), ("b", gone)], grace_s=0.0)
    assert [Checked(0, [])] == await registry.check("e1", [("a", session)], grace_s=60.0)
    assert [None] == await registry.check("e2", [("a", session)], grace_s=0.0)


async def test_a_check_finds_messages_from_before_the_clock_stepped_back(store: Store) -> None:
    """A place in the future is no young message."""
    session = session_id("a")
    await register(store, "a", session)
    now_ms = int(time.time() * 1000)
    value = b"%016d%013d{}" % ((now_ms + 3_600_000) * 1000, now_ms + 7_200_000)
    inbox = store.keys.inbox("a")
    await store.redis.hset(inbox, mapping={"3" * 32: value, "#": str(len(value))})
    assert [Checked(0, [b"3" * 32])] == await Registry(store).check("e1", [("a", session)], grace_s=60.0)
