"""The scripts by which a drain is asked for and taken back, on a real server and a real cluster."""

from __future__ import annotations

import msgspec
import pytest

from shared.registry import DrainRequest, DrainState, Lease, Registry
from shared.store import Store

NODE = "10.0.0.1:9000"
BY_SIGNAL = DrainState("signal", 10.0, 5, 5)
BY_REQUEST = DrainState("request", 10.0, 5, 5)


async def take(store: Store, epoch: str = "e1", drain: DrainState | None = None) -> bytes:
    """The lease, and what request its holder is told of."""
    lease = Lease(epoch, "ws://x", draining=drain is not None, drain=drain)
    return (await Registry(store).take(NODE, lease, life_s=60)).drain


async def ask(store: Store, name: str, seconds: float | None = None) -> bool:
    answer = await Registry(store).ask_drain(NODE, DrainRequest(name, seconds=seconds))
    assert answer is not None
    return answer.changed


async def withdraw(store: Store) -> bool:
    answer = await Registry(store).withdraw_drain(NODE)
    assert answer is not None
    return answer.changed


async def test_a_node_is_told_with_its_next_renewal(store: Store) -> None:
    """The request names the epoch it is for; it is kept for a day."""
    assert b"" == await take(store)
    assert await ask(store, "first", 2.5)
    told = msgspec.json.decode(await take(store), type=DrainRequest)
    assert DrainRequest("first", "e1", 2.5) == told
    assert 86_000 < await store.redis.ttl(store.keys.drain(NODE)) <= 86_400


async def test_asked_again_nothing_changes(store: Store) -> None:
    """Neither before nor after the node took notice, nor after its lease was lost and taken again in between."""
    await take(store)
    assert await ask(store, "first")
    told = await take(store)
    assert not await ask(store, "second")
    await take(store, drain=BY_REQUEST)
    assert not await ask(store, "third")
    await take(store, "e2", drain=BY_REQUEST)
    assert not await ask(store, "fourth")
    assert told == await take(store, "e2", drain=BY_REQUEST)


async def test_taken_back_it_is_gone(store: Store) -> None:
    """And may be asked for anew, before the node has noticed either."""
    await take(store)
    assert not await withdraw(store)
    await ask(store, "first")
    await take(store, drain=BY_REQUEST)
    assert await withdraw(store)
    assert not await withdraw(store)
    assert await ask(store, "second")
    assert "second" == msgspec.json.decode(await take(store), type=DrainRequest).id


async def test_the_next_start_is_not_meant(store: Store) -> None:
    """What stands there is for another epoch, and gives way to a request for the one that holds the lease."""
    await take(store)
    await ask(store, "old")
    assert "e1" == msgspec.json.decode(await take(store, "e2"), type=DrainRequest).epoch
    assert await ask(store, "new")
    assert DrainRequest("new", "e2") == msgspec.json.decode(await take(store, "e2"), type=DrainRequest)


async def test_a_signal_holds_whatever_is_asked(store: Store) -> None:
    """Nothing is written, and nothing taken away."""
    await take(store, drain=BY_SIGNAL)
    assert not await ask(store, "first")
    assert b"" == await take(store)
    await ask(store, "second")
    await take(store, drain=BY_SIGNAL)
    assert not await withdraw(store)
    assert b"" != await take(store, drain=BY_SIGNAL)


@pytest.mark.parametrize("clean", [False, True])
async def test_who_leaves_takes_the_request_along(store: Store, clean: bool) -> None:
    """With the lease; without a lease nobody can be asked."""
    await take(store)
    await ask(store, "first")
    await Registry(store).release(NODE, "e1", clean=clean)
    assert None is await Registry(store).ask_drain(NODE, DrainRequest("second"))
    assert None is await Registry(store).withdraw_drain(NODE)
    assert 0 == await store.redis.exists(store.keys.drain(NODE))
