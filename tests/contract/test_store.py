"""
The Lua scripts of inboxes and the registry, on a real server: what the dispatcher stores, nodes read and retire.

`test_inboxes_agree_with_a_model` holds the scripts against a model in Python, with Hypothesis choosing what happens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pushfleet.local_valkey import LocalValkey
from shared.errors import StoreUnavailable
from shared.inbox import Inbox, Stored, StoredMessage, Target
from shared.registry import Joining, Registry
from shared.store import Store

HOUR_MS = 3_600_000
HEADER = 29  # what stands before a template in an inbox: order and expiry
EPOCH = "e1"
NODE = "10.0.0.1:9000"


def message(number: int, *, template: bytes = b"{}", life_ms: int = HOUR_MS) -> StoredMessage:
    return StoredMessage(f"{number:032x}", int(time.time() * 1000) + life_ms, template)


async def register(store: Store, client_id: str, session_id: str, epoch: str = EPOCH, *, most: int = 100) -> list[str]:
    """The messageIds that the session reads."""
    (part,) = await Registry(store).register(
        NODE, epoch, [Joining(client_id, session_id)], most=most, most_bytes=1 << 20
    )
    return [waiting.message_id for waiting in part.inbox.messages]


async def read(store: Store, client_id: str, *, most: int = 100, most_bytes: int = 1 << 20) -> tuple[int, list[str]]:
    """(held, messageIds)"""
    (part,) = await Inbox(store).read([client_id], most=most, most_bytes=most_bytes)
    return part.held, [waiting.message_id for waiting in part.messages]


async def held_bytes(store: Store, client_id: str) -> tuple[int, int]:
    """(the counter of an inbox, the bytes that it really holds); (0, 0) when there is no key."""
    fields = await store.redis.hgetall(store.keys.inbox(client_id))
    counted = int(fields.pop(b"#", 0))
    return counted, sum(map(len, fields.values()))


def is_available(store: Store) -> bool:
    return store.available


# -- store and route -----------------------------------------------------------------------------------------------


async def test_store_gives_the_sessions_of_each_target(store: Store) -> None:
    """One call stores for every target and says where its sessions are; a target without one is stored for, too."""
    await register(store, "a", "s1")
    await register(store, "a", "s2", "e2")
    found = await Inbox(store).store([("b", message(1)), ("a", message(1))])
    assert () == found[0].sessions
    assert {("s1", "e1"), ("s2", "e2")} == set(found[1].sessions)
    assert [Stored.YES, Stored.YES] == [target.stored for target in found]
    assert (1, [f"{1:032x}"]) == await read(store, "b")


async def test_a_message_that_is_not_durable_is_not_stored(store: Store) -> None:
    """expires_ms 0: only the route is read."""
    await register(store, "a", "s1")
    found = await Inbox(store).store([("a", StoredMessage("0" * 32, 0, b"{}"))])
    assert [Target(Stored.NOT_DURABLE, 0, (("s1", EPOCH),))] == found
    assert (0, []) == await read(store, "a")


async def test_a_send_tried_again_is_stored_once(store: Store) -> None:
    """The second time gives the first place and counts no bytes."""
    inbox = Inbox(store)
    (first,) = await inbox.store([("a", message(1))])
    (second,) = await inbox.store([("a", message(1))])
    assert first == second
    assert 1 == (await read(store, "a"))[0]
    assert (HEADER + 2, HEADER + 2) == await held_bytes(store, "a")


async def test_places_grow_in_the_order_of_storing(store: Store) -> None:
    """Also within one call."""
    inbox = Inbox(store)
    found = await inbox.store([("a", message(9)), ("a", message(3))])
    found += await inbox.store([("a", message(5))])
    places = [target.order for target in found]
    assert places == sorted(set(places))
    (part,) = await inbox.read(["a"], most=10, most_bytes=1 << 20)
    assert places == [waiting.order for waiting in part.messages]
    assert [f"{n:032x}" for n in (9, 3, 5)] == [waiting.message_id for waiting in part.messages]


async def test_a_template_comes_back_as_it_was_stored(store: Store) -> None:
    """Bytes of any kind, with its expiry."""
    template = '{"msg":"line\r\n\\" 操作"}'.encode()
    stored = message(1, template=template)
    await Inbox(store).store([("a", stored)])
    (part,) = await Inbox(store).read(["a"], most=1, most_bytes=1)
    assert template == part.messages[0].template
    assert stored.expires_ms == part.messages[0].expires_ms


async def test_storing_and_registering_never_miss_each_other(store: Store) -> None:
    """Of a store and a registration at the same time one sees the other: in the route or in the inbox."""
    inbox = Inbox(store)
    for turn in range(100):
        client_id = f"c{turn}"
        stored, read_ids = await asyncio.gather(
            inbox.store([(client_id, message(1))]), register(store, client_id, f"s{turn}")
        )
        assert stored[0].sessions or read_ids


# -- limits --------------------------------------------------------------------------------------------------------


async def test_an_inbox_holds_no_more_messages_than_allowed(store: Store) -> None:
    """One more is refused and leaves no trace; retiring makes room."""
    inbox = Inbox(store, most_messages=3)
    found = await inbox.store([("a", message(n)) for n in range(4)])
    assert [Stored.YES, Stored.YES, Stored.YES, Stored.FULL] == [target.stored for target in found]
    assert (3 * (HEADER + 2),) * 2 == await held_bytes(store, "a")
    await inbox.retire([("a", f"{0:032x}")])
    assert [Stored.YES] == [target.stored for target in await inbox.store([("a", message(4))])]


async def test_an_inbox_holds_no_more_bytes_than_allowed(store: Store) -> None:
    """The message that would overflow it is refused, a smaller one still fits."""
    inbox = Inbox(store, most_bytes=200)
    found = await inbox.store(
        [("a", message(1, template=b"x" * 100)), ("a", message(2, template=b"x" * 50)), ("a", message(3))]
    )
    assert [Stored.YES, Stored.FULL, Stored.YES] == [target.stored for target in found]
    assert (HEADER + 100 + HEADER + 2,) * 2 == await held_bytes(store, "a")


async def test_a_message_larger_than_an_inbox_leaves_nothing_behind(store: Store) -> None:
    """Not even an empty key."""
    (target,) = await Inbox(store, most_bytes=100).store([("a", message(1, template=b"x" * 100))])
    assert Stored.FULL == target.stored
    assert 0 == await store.redis.exists(store.keys.inbox("a"))


async def test_expired_messages_make_room(store: Store) -> None:
    """A full inbox is cleared of what has expired before a message is refused."""
    inbox = Inbox(store, most_messages=2)
    await inbox.store([("a", message(1)), ("a", message(2, life_ms=-1))])
    (target,) = await inbox.store([("a", message(3))])
    assert Stored.YES == target.stored
    assert (2, [f"{1:032x}", f"{3:032x}"]) == await read(store, "a")


async def test_a_full_inbox_is_searched_once(store: Store) -> None:
    """However often somebody writes to it; but for nothing that expires meanwhile, be it there or stored since."""
    inbox = Inbox(store, most_messages=3)
    searched: list[int] = []
    for life_ms in (HOUR_MS, HOUR_MS, HOUR_MS, *[HOUR_MS] * 20):
        await inbox.store([("a", message(len(searched), life_ms=life_ms))])
        searched.append((await store.redis.info("commandstats"))["cmdstat_hgetall"]["calls"])
    # Each call reads the route by HGETALL as well.
    assert [1] * 19 == [after - before for before, after in pairwise(searched[3:])]
    mark = store.keys.inbox("a") + "!"
    assert 50_000 < await store.redis.pttl(mark) <= 60_000
    await inbox.retire([("a", f"{0:032x}")])
    (soon,) = await inbox.store([("a", message(50, life_ms=-1))])
    (then,) = await inbox.store([("a", message(51))])
    assert (Stored.YES, Stored.YES) == (soon.stored, then.stored)
    await store.redis.delete(mark)
    await inbox.retire([("a", f"{1:032x}")])
    await inbox.store([("a", message(60, life_ms=30_000)), ("a", message(61))])
    assert 20_000 < await store.redis.pttl(mark) <= 30_000


# -- expiry --------------------------------------------------------------------------------------------------------


async def test_an_expired_message_is_not_read(store: Store) -> None:
    """Reading removes it and its bytes."""
    await Inbox(store).store([("a", message(1)), ("a", message(2, life_ms=-1))])
    assert [f"{1:032x}"] == await register(store, "a", "s1")
    assert (HEADER + 2, HEADER + 2) == await held_bytes(store, "a")


async def test_an_inbox_is_gone_when_its_last_message_expires(store: Store) -> None:
    """The key lives as long as the message that lives longest, whatever the order."""
    inbox = Inbox(store)
    long, short = message(1, life_ms=2 * HOUR_MS), message(2, life_ms=HOUR_MS)
    await inbox.store([("a", short), ("a", long), ("b", long), ("b", short)])
    for client_id in "ab":
        assert long.expires_ms == await store.redis.pexpiretime(store.keys.inbox(client_id))


# -- read and retire -----------------------------------------------------------------------------------------------


async def test_a_slice_is_bounded_and_says_how_much_is_left(store: Store) -> None:
    """By messages and by bytes, oldest first, at least one."""
    await Inbox(store).store([("a", message(n, template=b"x" * 100)) for n in range(5)])
    ids = [f"{n:032x}" for n in range(5)]
    assert (5, ids[:2]) == await read(store, "a", most=2)
    assert (5, ids[:1]) == await read(store, "a", most_bytes=1)
    assert (5, ids[:2]) == await read(store, "a", most_bytes=300)
    assert ids[:3] == await register(store, "a", "s1", most=3)


async def test_retiring_removes_a_message_once(store: Store) -> None:
    """A second time, or of what was never there, is nothing; the last one takes the key with it."""
    inbox = Inbox(store)
    await inbox.store([("a", message(1)), ("a", message(2)), ("b", message(1))])
    one, two = f"{1:032x}", f"{2:032x}"
    assert 2 == await inbox.retire([("a", one), ("b", one), ("a", one), ("c", one)])
    assert (1, [two]) == await read(store, "a")
    assert 1 == await inbox.retire([("a", two)])
    assert 0 == await store.redis.exists(store.keys.inbox("a"), store.keys.inbox("b"))


# -- the server -------------------------------------------------------------------------------------------------------


async def test_namespaces_do_not_meet(store_url: str, store: Store, namespace: str) -> None:
    """Several clusters may share one server."""
    other = Store(store_url, namespace=f"{namespace}-b")
    await Inbox(store).store([("a", message(1))])
    assert (0, []) == await read(other, "a")
    await other.close()


async def test_a_call_that_is_cancelled_ends(store: Store) -> None:
    """At whatever moment: a task that loops over calls ends when it is cancelled."""

    async def call_forever() -> None:
        while True:
            await store.ping()
            await Inbox(store).retire([("a", "0" * 32)])

    await store.ping()
    for turns in range(12):
        task = asyncio.create_task(call_forever())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=10)
        assert done


async def test_scripts_survive_a_server_that_forgot_them(store: Store) -> None:
    """A server that was restarted is sent the text again."""
    await Inbox(store).store([("a", message(1))])
    await store.redis.script_flush()
    await Inbox(store).store([("a", message(2))])
    assert 2 == (await read(store, "a"))[0]


async def test_a_server_that_is_away_is_unavailable(private_valkey: LocalValkey) -> None:
    """StoreUnavailable while it is down, and all is well when it is back."""
    store = Store(private_valkey.url, namespace="t")
    inbox = Inbox(store)
    await inbox.store([("a", message(1))])
    private_valkey.kill()
    with pytest.raises(StoreUnavailable):
        await inbox.store([("a", message(2))])
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert is_available(store) is False
    await private_valkey.restart()
    await inbox.store([("a", message(3))])
    assert is_available(store) is True
    assert {f"{1:032x}", f"{3:032x}"} <= set((await read(store, "a"))[1])
    await store.close()


# -- against a model -----------------------------------------------------------------------------------------------

MOST_MESSAGES, MOST_BYTES = 4, 400
clients = st.sampled_from(["a", "b"])
numbers = st.integers(0, 9)


@dataclass
class Held:
    """A message of the model. `place` is what the server said."""

    place: int
    size: int
    expired: bool


class Inboxes(RuleBasedStateMachine):
    """Two clients' inboxes on the server beside their model: dicts of what they hold."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = Store(self.url, namespace=f"m{time.monotonic_ns()}")
        self.inbox = Inbox(self.store, most_messages=MOST_MESSAGES, most_bytes=MOST_BYTES)
        self.model: dict[str, dict[str, Held]] = {}

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    @initialize()
    def begin_empty(self) -> None:
        self.model = {"a": {}, "b": {}}

    @rule(sends=st.lists(st.tuples(clients, numbers, st.sampled_from([0, 1, 150, 400]), st.booleans()), min_size=1))
    def store_some(self, sends: list[tuple[str, int, int, bool]]) -> None:
        batch = [
            (client_id, message(n, template=b"x" * size, life_ms=-1 if expired else HOUR_MS))
            for client_id, n, size, expired in sends
        ]
        found = self.run(self.inbox.store(batch))
        for (client_id, n, size, expired), target in zip(sends, found, strict=True):
            assert self.put(client_id, f"{n:032x}", HEADER + size, expired, target.order) is target.stored

    def put(self, client_id: str, message_id: str, size: int, expired: bool, place: int) -> Stored:
        held = self.model[client_id]
        if message_id in held:
            assert held[message_id].place == place
            return Stored.YES
        if self.over(held, size):
            for dead in [name for name, one in held.items() if one.expired]:
                del held[dead]
            if self.over(held, size):
                return Stored.FULL
        assert place > max((one.place for one in held.values()), default=0)
        held[message_id] = Held(place, size, expired)
        if expired and len(held) == 1:
            held.clear()  # the key's own expiry has passed
        return Stored.YES

    def over(self, held: dict[str, Held], size: int) -> bool:
        return sum(one.size for one in held.values()) + size > MOST_BYTES or len(held) >= MOST_MESSAGES

    @rule(retired=st.lists(st.tuples(clients, numbers), min_size=1, max_size=4))
    def retire_some(self, retired: list[tuple[str, int]]) -> None:
        expected = sum(self.model[client].pop(f"{n:032x}", None) is not None for client, n in retired)
        assert expected == self.run(self.inbox.retire([(client, f"{n:032x}") for client, n in retired]))

    @rule(client_id=clients, most=st.integers(1, 5))
    def read_slice(self, client_id: str, most: int) -> None:
        held = self.model[client_id]
        live = sorted((one.place, name) for name, one in held.items() if not one.expired)
        self.model[client_id] = {name: one for name, one in held.items() if not one.expired}
        (part,) = self.run(self.inbox.read([client_id], most=most, most_bytes=1 << 20))
        assert len(live) == part.held
        assert live[:most] == [(waiting.order, waiting.message_id) for waiting in part.messages]

    @invariant()
    def what_is_held_and_counted_agrees(self) -> None:
        for client_id, held in self.model.items():
            fields = self.run(self.fields_of(client_id))
            counted = int(fields.pop(b"#", 0))
            assert set(held) == {name.decode() for name in fields}
            assert sum(one.size for one in held.values()) == counted

    async def fields_of(self, client_id: str) -> dict[bytes, bytes]:
        return dict(await self.store.redis.hgetall(self.store.keys.inbox(client_id)))  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()


def test_inboxes_agree_with_a_model(store_url: str) -> None:
    """Whatever is stored, retired and read, in any order: held messages, their order and the byte counter are right."""
    machine = type("InboxesHere", (Inboxes,), {"url": store_url})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))
