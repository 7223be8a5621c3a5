"""Timelines and cursors on a real Valkey, also on a cluster of three."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.cursors import Cursors, Memberships
from shared.keys import EVERYONE
from shared.registry import Joining, Registry
from shared.store import Store
from shared.timeline import NO_SUCH_GROUP, Added, AudienceMessage, Part, Timelines

NODE = "10.0.0.1:9000"
FAR_MS = 9_999_999_999_999
EVERYTHING: dict[str, Any] = {"most": 1000, "most_bytes": 1 << 30}


def message(number: int, audience: str = EVERYONE, **more: Any) -> AudienceMessage:
    minted_ms = int(time.time() * 1000)
    fields = {"expires_ms": FAR_MS, "template": b'{"n":%d}' % number, **more}
    return AudienceMessage(audience, f"{minted_ms:012x}7000{number:016x}", **fields)


async def make_group(store: Store, group: str) -> None:
    await store.redis.hset(store.keys.audience(group)[0], mapping={"created": "1"})


async def everything(timelines: Timelines, audience: str = EVERYONE, after: int = 0) -> Part:
    (part,) = await timelines.read([(audience, after)], **EVERYTHING)
    return part


def templates(part: Part) -> list[bytes]:
    return [entry.template for entry in part.entries]


async def test_each_message_knows_the_one_before_it(store: Store) -> None:
    """Orders rise within a call and between calls; from anywhere on, what is behind is read in order."""
    timelines = Timelines(store)
    added = await timelines.add([message(n) for n in range(3)])
    added += await timelines.add([message(3)])
    orders = [each.order for each in added]
    assert sorted(set(orders)) == orders
    assert [0, *orders[:-1]] == [each.after for each in added]
    assert [entry.order for entry in (await everything(timelines)).entries] == orders
    assert [b'{"n":2}', b'{"n":3}'] == templates(await everything(timelines, after=orders[1]))
    assert Part(orders[-1], 0, ()) == await everything(timelines, after=orders[-1])


async def test_an_order_is_higher_though_the_clock_stepped_back(store: Store) -> None:
    """A cursor only ever moves forward."""
    timelines = Timelines(store)
    ahead = int((time.time() + 3600) * 1e6)
    await store.redis.hset(store.keys.audience(EVERYONE)[0], mapping={"last": f"{ahead:016d}"})
    (added,) = await timelines.add([message(1)])
    assert (ahead + 1, ahead) == (added.order, added.after)


async def test_a_message_is_stored_once_however_often_it_is_tried(store: Store) -> None:
    """It keeps its place, and says the same of the one before it."""
    timelines = Timelines(store)
    messages = [message(n) for n in range(200)]
    first = await timelines.add(messages)
    again = await timelines.add(
        [
            AudienceMessage(each.audience, each.message_id, each.expires_ms, each.template, again=True)
            for each in messages
        ]
    )
    assert [each.order for each in first] == [each.order for each in again]
    assert [each.after for each in first][1:] == [each.after for each in again][1:]
    assert 200 == len((await everything(timelines)).entries)


async def test_a_message_that_nobody_stores_asks_for_the_nodes_alone(store: Store) -> None:
    """`durable:false`: nothing is in the timeline."""
    timelines = Timelines(store)
    await make_group(store, "g")
    await timelines.enter(NODE, "e1", ["g"])
    (added,) = await timelines.add([message(1, "g", expires_ms=0)])
    assert Added(0, 0, ((NODE, "e1"),)) == added
    assert Part(0, 0, ()) == await everything(timelines, "g")


async def test_a_group_that_is_not_there_takes_nothing(store: Store) -> None:
    """Neither messages nor nodes; other audiences of the call are served."""
    timelines = Timelines(store)
    one, other = await timelines.add([message(1, "no"), message(2)])
    assert NO_SUCH_GROUP == one.order
    assert other.order > 0
    assert [NO_SUCH_GROUP, other.order] == await timelines.enter(NODE, "e1", ["no", EVERYONE])
    assert () == (await everything(timelines, "no")).entries


async def test_a_node_is_told_of_or_finds_the_message(store: Store) -> None:
    """Whichever comes first, entering or adding; one that has left, or left with another epoch, likewise."""
    timelines = Timelines(store)
    await make_group(store, "g")
    (before,) = await timelines.add([message(1, "g")])
    assert () == before.nodes
    assert [before.order] == await timelines.enter(NODE, "e1", ["g"])
    assert ((NODE, "e1"),) == (await timelines.add([message(2, "g")]))[0].nodes
    await timelines.enter(NODE, "e2", ["g"])
    assert 0 == await timelines.leave([("g", NODE, "e1")])
    assert ((NODE, "e2"),) == (await timelines.add([message(3, "g")]))[0].nodes
    assert 1 == await timelines.leave([("g", NODE, "e2")])
    assert () == (await timelines.add([message(4, "g")]))[0].nodes


async def test_a_reading_is_bounded(store: Store) -> None:
    """In messages and bytes, one at least; `last` tells that there is more."""
    timelines = Timelines(store)
    added = await timelines.add([message(n, template=b"x" * 1000) for n in range(10)])
    (by_count,) = await timelines.read([(EVERYONE, 0)], most=4, most_bytes=1 << 20)
    (by_bytes,) = await timelines.read([(EVERYONE, 0)], most=100, most_bytes=2500)
    (one,) = await timelines.read([(EVERYONE, 0)], most=100, most_bytes=1)
    assert [4, 2, 1] == [len(part.entries) for part in (by_count, by_bytes, one)]
    assert {added[-1].order} == {part.last for part in (by_count, by_bytes, one)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    most=st.integers(1, 8),
    most_bytes=st.integers(1, 1500),
)
async def test_what_is_kept_agrees_with_a_model(store: Store, sizes: list[int], most: int, most_bytes: int) -> None:
    """The newest that fit, the last in any case; `cut` is the order of the newest that was let go."""
    await store.redis.delete(*store.keys.audience(EVERYONE)[:1])
    await store.redis.delete(*store.keys.audience(EVERYONE)[1:2])
    timelines = Timelines(store, most_messages=most, most_bytes=most_bytes)
    kept: list[tuple[int, int]] = []
    cut = 0
    for number, size in enumerate(sizes):
        (added,) = await timelines.add([message(number, template=b"x" * size)])
        kept.append((added.order, size))
        while len(kept) > 1 and (len(kept) > most or sum(size for _, size in kept) > most_bytes):
            cut = kept.pop(0)[0]
    part = await everything(timelines)
    assert kept == [(entry.order, len(entry.template)) for entry in part.entries]
    assert cut == part.cut
    held = await store.redis.hget(store.keys.audience(EVERYONE)[0], "bytes")
    assert sum(size for _, size in kept) == int(held or 0)


async def test_what_is_too_old_is_let_go(store: Store) -> None:
    """With the next message; and a timeline that is gone altogether says so, too."""
    timelines = Timelines(store, keep_s=60)
    old = int((time.time() - 120) * 1e6)
    about, timeline, *_ = store.keys.audience(EVERYONE)
    await store.redis.xadd(timeline, {"i": "1" * 32, "e": "0", "b": "", "t": "old"}, id=f"{old}-0")
    await store.redis.hset(about, mapping={"last": f"{old:016d}", "bytes": "3"})
    (added,) = await timelines.add([message(1)])
    part = await everything(timelines)
    assert ([b'{"n":1}'], old) == (templates(part), part.cut)
    await store.redis.delete(timeline)
    assert Part(added.order, added.order, ()) == await everything(timelines, after=old)
    (later,) = await timelines.add([message(2)])
    part = await everything(timelines, after=old)
    assert ([b'{"n":2}'], added.order, later.order) == (templates(part), part.cut, part.last)


# -- cursors -------------------------------------------------------------------------------------------------------


async def test_a_client_begins_where_its_node_is(store: Store) -> None:
    """With its first session; the next one finds the cursor where it was left, though its node is further."""
    registry, cursors = Registry(store), Cursors(store)

    async def register(number: int, start: int) -> Memberships:
        joining = [Joining("a", f"{NODE}_a_2026010100000000{number}", start=start)]
        (joined,) = await registry.register(NODE, "e1", joining, most=1, most_bytes=1)
        return joined.audiences

    assert Memberships(0, {EVERYONE: 5}) == await register(1, 5)
    assert 1 == await cursors.move([("a", EVERYONE, 7)])
    assert Memberships(0, {EVERYONE: 7}) == await register(2, 9)
    assert [Memberships(0, {EVERYONE: 7}), Memberships(0, {})] == await cursors.read(["a", "b"])


async def test_a_cursor_moves_forward_alone(store: Store) -> None:
    """One that is not there, since the client has left the group, is not made again."""
    cursors = Cursors(store)
    names = store.keys.audiences("a")
    await store.redis.hset(names, mapping={"g": f"{5:016d}", "#": "3"})
    assert 1 == await cursors.move([("a", "g", 9), ("a", "g", 8), ("a", "left", 9), ("b", "g", 9)])
    assert [Memberships(3, {"g": 9}), Memberships(0, {})] == await cursors.read(["a", "b"])


async def test_who_is_in_no_group_is_forgotten_in_time(store: Store) -> None:
    """A member of a group is not."""
    registry, name = Registry(store), store.keys.audiences("a")
    await registry.register(NODE, "e1", [Joining("a", f"{NODE}_a_20260101000000001")], most=1, most_bytes=1)
    assert await store.redis.ttl(name) > 86_400 * 30
    await store.redis.hset(name, mapping={"g": f"{5:016d}", "#": "1"})
    await store.redis.persist(name)
    await registry.register(NODE, "e1", [Joining("a", f"{NODE}_a_20260101000000002")], most=1, most_bytes=1)
    assert -1 == await store.redis.ttl(name)
