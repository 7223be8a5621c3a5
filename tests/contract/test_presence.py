"""
What changes in routes, as the scripts tell it, on a real server and a real cluster; and the writer that publishes it.

`test_changes_agree_with_a_model` lets the machine of test_registry_model.py do what it does and replays what was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from pushfleet.local_valkey import LocalValkey
from shared.bus import Bus, Record, open_bus
from shared.errors import BusUnavailable, StoreUnavailable
from shared.ids import client_of_session, node_of_session
from shared.metrics import PRESENCE_DROPPED
from shared.presence import (
    PRESENCE_QUEUES,
    Change,
    PresenceEvent,
    PresenceWriter,
    decode_events,
    encode_event,
    ensure_presence_topic,
    presence_topic,
)
from shared.registry import Joining, Registry
from shared.store import Store
from tests.contract.test_registry import NODE, OTHER, session_id
from tests.contract.test_registry_model import MOST, Routes, clients
from tests.harness.bus import DEADLINE_S, reading
from tests.harness.proxy import Proxy, Way

Told = list[tuple[bool, str, str, int]]


class Witness:
    """What a registry told of."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def __call__(self, changes: Sequence[Change]) -> None:
        self.changes += changes

    def take(self) -> Told:
        """Without the stamps, each once."""
        taken = [(change.online, change.session_id, change.device, change.sessions) for change in self.changes]
        self.changes.clear()
        return taken


@pytest.fixture
def told() -> Witness:
    return Witness()


async def register(
    registry: Registry, session: str, epoch: str = "e1", device: str = "", *, again: bool = False
) -> None:
    joining = [Joining(client_of_session(session), session, device)]
    await registry.register(node_of_session(session), epoch, joining, most=1, most_bytes=1, again=again)


async def unregister(registry: Registry, session: str, epoch: str = "") -> int:
    return await registry.unregister([(client_of_session(session), session, epoch)])


async def devices(store: Store, client_id: str) -> dict[str, str]:
    kept: dict[bytes, bytes] = await store.redis.hgetall(store.keys.route_and_devices(client_id)[1])  # type: ignore[assignment]
    return {session.decode(): device.decode() for session, device in kept.items()}


# -- the scripts ---------------------------------------------------------------------------------------------------


async def test_who_comes_and_goes_is_told(store: Store, told: Witness) -> None:
    """With the device, and how many sessions the client has then."""
    registry = Registry(store, changed=told)
    first, second = session_id("a"), session_id("a", OTHER)
    await register(registry, first, device="phone")
    await register(registry, second, "e2")
    assert {first: "phone"} == await devices(store, "a")
    await unregister(registry, first)
    await unregister(registry, second)
    assert [(True, first, "phone", 1), (True, second, "", 2), (False, first, "phone", 1), (False, second, "", 0)] == (
        told.take()
    )
    assert {} == await devices(store, "a")


async def test_registered_again_is_told_only_if_it_was_gone(store: Store, told: Witness) -> None:
    """After a lost lease the route still names it, until somebody cleaned up and said that it is offline."""
    registry = Registry(store, changed=told)
    session = session_id("a")
    await register(registry, session, "e1", "phone")
    told.take()
    await register(registry, session, "e2", "phone", again=True)
    assert [] == told.take()
    assert 0 == await unregister(registry, session, "e1")
    assert [] == told.take()
    assert 1 == await unregister(registry, session, "e2")
    await register(registry, session, "e3", "phone", again=True)
    assert [(False, session, "phone", 0), (True, session, "phone", 1)] == told.take()
    assert {session: "phone"} == await devices(store, "a")


@pytest.mark.parametrize("policy", ["client", "device"])
async def test_a_replaced_session_is_told_by_who_replaced_it(store: Store, told: Witness, policy: str) -> None:
    """Before the new one, and once: its own node says nothing more when it has closed it."""
    registry = Registry(store, policy=policy, changed=told)
    old, new = session_id("a"), session_id("a", OTHER)
    await register(registry, old, device="phone")
    await register(registry, new, "e2", "phone")
    await unregister(registry, old)
    assert [(True, old, "phone", 1), (False, old, "phone", 0), (True, new, "phone", 1)] == told.take()
    assert {new: "phone"} == await devices(store, "a")


async def test_one_that_yields_is_told(store: Store, told: Witness) -> None:
    """Registered again it takes itself out of the route, if it was there."""
    registry = Registry(store, policy="client", changed=told)
    old, new = session_id("a"), session_id("a", OTHER)
    await register(Registry(store), old)
    await register(Registry(store), new, "e2")
    await register(registry, old, "e3", again=True)
    await register(registry, old, "e3", again=True)
    assert [(False, old, "", 1)] == told.take()


async def test_stamps_rise_when_the_clock_steps_back(store: Store, told: Witness) -> None:
    """One above the last; the last is kept for an hour."""
    registry = Registry(store, changed=told)
    session = session_id("a")
    await register(registry, session)
    key = store.keys.route("a").replace(":route:", ":stamp:")
    assert str(told.changes[0].stamp).encode() == await store.redis.get(key)
    assert 3_500 < await store.redis.ttl(key) <= 3_600
    ahead = told.changes[0].stamp + 3_600_000_000
    await store.redis.set(key, ahead)
    await unregister(registry, session)
    assert ahead + 1 == told.changes[1].stamp
    assert 3_500 < await store.redis.ttl(key) <= 3_600


@pytest.fixture
async def far(valkey: LocalValkey, namespace: str) -> AsyncIterator[tuple[Store, Proxy]]:
    """Redis behind a proxy."""
    place = urlsplit(valkey.url)
    proxy = Proxy(place.hostname or "", place.port or 0)
    await proxy.start()
    store = Store(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace)
    yield store, proxy
    await store.close()
    await proxy.close()


@pytest.fixture
async def near(valkey: LocalValkey, namespace: str) -> AsyncIterator[Store]:
    store = Store(valkey.url, namespace=namespace)
    yield store
    await store.close()


async def test_an_end_whose_answer_was_lost_is_told(far: tuple[Store, Proxy], near: Store, told: Witness) -> None:
    """The removal is done again, finds nothing and is told all the same; one more is not."""
    store, proxy = far
    registry = Registry(store, changed=told)
    session = session_id("a")
    await register(registry, session, device="phone")
    await unregister(registry, session_id("b"))  # the server knows the script from now on
    told.take()
    proxy.half_open(Way.FROM_SERVER)
    with pytest.raises(StoreUnavailable):
        await unregister(registry, session)
    assert 0 == await near.redis.exists(near.keys.route("a"))
    assert [] == told.take()
    proxy.heal()
    for expected in ([(False, session, "", 0)], []):
        assert 0 == await unregister(registry, session)
        assert expected == told.take()


class Presence(Routes):
    """The machine of routes, with what was told replayed beside its model."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Witness()
        self.registry = Registry(self.store, policy=self.policy, most_sessions=MOST, changed=self.told)
        self.seen: dict[str, set[str]] = {"a": set(), "b": set()}
        self.stamps = {"a": 0, "b": 0}

    @rule(client_id=clients, by_us=st.integers(1, 1 << 40))
    def the_clock_steps_back(self, client_id: str, by_us: int) -> None:
        """As seen from the last stamp."""
        if self.stamps[client_id]:
            self.stamps[client_id] += by_us
            key = self.store.keys.route(client_id).replace(":route:", ":stamp:")
            self.run(self.set(key, self.stamps[client_id]))

    @invariant()
    def changes_replay_into_the_routes(self) -> None:
        """Each is one, with a higher stamp, the device, and the count behind it; together they are the routes."""
        for change in self.told.changes:
            client_id = client_of_session(change.session_id)
            seen = self.seen[client_id]
            assert change.stamp > self.stamps[client_id]
            self.stamps[client_id] = change.stamp
            assert change.online is (change.session_id not in seen)
            seen ^= {change.session_id}
            assert self.device_of[change.session_id] == change.device
            assert len(seen) == change.sessions
        self.told.changes.clear()
        assert self.seen == {client_id: set(route) for client_id, route in self.routes.items()}

    @invariant()
    def devices_are_those_of_the_routes(self) -> None:
        for client_id, route in self.routes.items():
            named = {session: self.device_of[session] for session in route if self.device_of[session]}
            assert named == self.run(devices(self.store, client_id))

    def join(
        self, node_id: str, client_id: str, session: str, device: str, issued_s: float | None, *, again: bool
    ) -> None:
        self.device_of.setdefault(session, device)
        super().join(node_id, client_id, session, device, issued_s, again=again)

    async def set(self, key: str, value: int) -> None:
        await self.store.redis.set(key, value)


@pytest.mark.parametrize("policy", ["multi", "device", "client"])
def test_changes_agree_with_a_model(valkey: LocalValkey, policy: str) -> None:
    """Whatever happens to sessions: what was told is what happened, and stamps rise strictly for each client."""
    machine = type("PresenceHere", (Presence,), {"url": valkey.url, "policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


# -- the writer ----------------------------------------------------------------------------------------------------


def change(client_id: str, stamp: int, *, online: bool = True, device: str = "") -> Change:
    return Change(online, f"{NODE}_{client_id}_20260101000000000", device, stamp, 1)


async def read_events(bus: Bus, namespace: str, count: int) -> list[PresenceEvent]:
    """The next `count` of the topic."""
    events: list[PresenceEvent] = []
    async with asyncio.timeout(DEADLINE_S), reading(bus, presence_topic(namespace)) as reader:
        while len(events) < count:
            for record in await reader.fetch():
                events += decode_events(record.body)
    return events


async def test_events_arrive_in_the_order_of_each_client(bus: Bus, another_bus: Bus, namespace: str) -> None:
    """All of them, those of one client in one queue, in records of many."""
    await ensure_presence_topic(bus, namespace)
    writer = PresenceWriter(bus, namespace=namespace)
    for stamp in range(1, 301):
        writer.changed([change(f"c{number}", stamp, device="phone") for number in range(5)])
    await writer.close(DEADLINE_S)
    events = await read_events(another_bus, namespace, 1500)
    for number in range(5):
        assert list(range(1, 301)) == [event.stamp for event in events if event.client_id == f"c{number}"]
    first = events[0]
    assert ("online", NODE, "phone", 1) == (first.event, first.node_id, first.device, first.sessions)
    assert first.session_id == f"{NODE}_{first.client_id}_20260101000000000"


@pytest.fixture
async def breaking(private_valkey: LocalValkey, namespace: str) -> AsyncIterator[Bus]:
    """A bus whose server may be killed."""
    bus = open_bus(private_valkey.url, namespace=namespace)
    yield bus
    await bus.close()


@pytest.fixture
async def near_bus(valkey: LocalValkey, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(valkey.url, namespace=namespace)
    yield bus
    await bus.close()


def dropped() -> float:
    return float(PRESENCE_DROPPED._value.get())


async def test_events_wait_for_the_bus(private_valkey: LocalValkey, breaking: Bus, namespace: str) -> None:
    """Published when it is back; beyond the bound the oldest are let go and counted."""
    await ensure_presence_topic(breaking, namespace)
    private_valkey.kill()
    before = dropped()
    writer = PresenceWriter(breaking, namespace=namespace, most_waiting=10)
    for stamp in range(1, 16):
        writer.changed([change("a", stamp)])
    assert 5 == dropped() - before
    with pytest.raises(BusUnavailable):
        await breaking.publish(presence_topic(namespace), [Record(encode_event(change("a", 15), 0))])
    await private_valkey.restart()
    await writer.close(DEADLINE_S)
    events = await read_events(breaking, namespace, 10)
    assert list(range(6, 16)) == sorted({event.stamp for event in events})
    assert 5 == dropped() - before


async def test_what_still_waits_at_the_end_is_counted(
    private_valkey: LocalValkey, breaking: Bus, namespace: str
) -> None:
    """A process that ends does not wait for the bus for ever."""
    private_valkey.kill()
    before = dropped()
    writer = PresenceWriter(breaking, namespace=namespace)
    writer.changed([change("a", 1), change("b", 2)])
    await writer.close(0.01)
    assert 2 == dropped() - before


async def test_a_topic_that_nobody_reads_stays_bounded(near_bus: Bus, near: Store, namespace: str) -> None:
    """On streams each queue keeps about as many records as it was made for, the newest."""
    topic = presence_topic(namespace)
    await near_bus.ensure_topic(topic, queues=PRESENCE_QUEUES, most_records=20)
    writer = PresenceWriter(near_bus, namespace=namespace)
    for stamp in range(400):
        writer.changed([change("a", stamp, device="x" * 128) for _ in range(100)])
    await writer.close(DEADLINE_S)
    held = [await near.redis.xlen(f"{namespace}:bus:{{{topic}}}:{queue}") for queue in range(PRESENCE_QUEUES)]
    assert 20 <= sum(held) <= 40
    events = await read_events(near_bus, namespace, 1)
    while 399 != events[-1].stamp:
        events += await read_events(near_bus, namespace, 1)
    assert events[0].stamp > 200
    await near_bus.drop_topic(topic)
    assert [] == [name async for name in near.redis.scan_iter(f"{namespace}:bus:*")]
