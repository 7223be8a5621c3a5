"""
The Lua scripts of leases and routes, on a real server and a real cluster.

`test_the_registry_agrees_with_a_model` holds them against a model in Python, with Hypothesis choosing what happens:
sessions come, replace each other, end late; nodes lose their lease, restart, come back.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pushfleet.local_valkey import LocalValkey
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


# -- against a model -----------------------------------------------------------------------------------------------

clients = st.sampled_from(["a", "b"])
node_ids = st.sampled_from([NODE, OTHER])
devices = st.sampled_from(["", "phone"])


@dataclass
class NodeModel:
    """What a node believes: its epoch, whether it was told that it holds the lease, its open sessions."""

    epoch: str = ""
    open: dict[str, tuple[str, str]] = field(default_factory=dict)  # sessionId -> (clientId, device)


class Routes(RuleBasedStateMachine):
    """Two nodes and two clients beside a model: the lease's holder, and each client's route."""

    url = ""
    policy = "multi"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = Store(self.url, namespace=f"m{time.monotonic_ns()}")
        self.registry = Registry(self.store, policy=self.policy)
        self.epochs = (f"e{number}" for number in itertools.count(1))
        self.holder: dict[str, str] = {}
        self.nodes = {NODE: NodeModel(), OTHER: NodeModel()}
        self.routes: dict[str, dict[str, str]] = {"a": {}, "b": {}}
        self.device_of: dict[str, str] = {}
        self.ended: list[tuple[str, str]] = []

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    @rule(node_id=node_ids)
    def start_or_restart(self, node_id: str) -> None:
        """A process starts on the address: its predecessor's sessions are dead, their routes stay for a while."""
        node = self.nodes[node_id]
        node.epoch, node.open = next(self.epochs), {}
        assert Held.YES is self.run(self.registry.take(node_id, lease(node.epoch), life_s=60)).held
        self.holder[node_id] = node.epoch

    @rule(node_id=node_ids)
    def lose_the_lease(self, node_id: str) -> None:
        self.run(self.delete(self.store.keys.lease(node_id)))
        self.holder.pop(node_id, None)

    @rule(node_id=node_ids)
    def renew(self, node_id: str) -> None:
        """One that lost its lease takes it under a new epoch and registers its sessions again, oldest last."""
        node = self.nodes[node_id]
        if not node.epoch:
            return
        renewal = self.run(self.registry.renew(node_id, lease(node.epoch), life_s=60))
        assert (self.holder.get(node_id) == node.epoch) is (renewal.held is Held.YES)
        if renewal.held is Held.YES:
            return
        node.epoch = next(self.epochs)
        self.run(self.registry.take(node_id, lease(node.epoch), life_s=60))
        self.holder[node_id] = node.epoch
        for session, (client_id, device) in reversed(list(node.open.items())):
            self.join(node_id, client_id, session, device, again=True)

    @rule(node_id=node_ids, client_id=clients, device=devices)
    def connect(self, node_id: str, client_id: str, device: str) -> None:
        if self.nodes[node_id].epoch:
            self.join(node_id, client_id, session_id(client_id, node_id), device, again=False)

    def join(self, node_id: str, client_id: str, session: str, device: str, *, again: bool) -> None:
        node = self.nodes[node_id]
        joining = [Joining(client_id, session, device)]
        call = self.registry.register(node_id, node.epoch, joining, most=1, most_bytes=1, again=again)
        (joined,) = self.run(call)
        rivals = self.rivals(client_id, session, device)
        if again and any(rival[-17:] > session[-17:] for rival in rivals):
            assert joined.outdated
            self.routes[client_id].pop(session, None)
            self.end(node_id, session)
            return
        assert not joined.outdated
        assert {(rival, self.routes[client_id][rival]) for rival in rivals} == set(joined.replaced)
        for rival in rivals:
            del self.routes[client_id][rival]
            self.end(node_of_session(rival), rival)
        self.routes[client_id][session] = node.epoch
        self.device_of[session] = device
        node.open[session] = (client_id, device)

    def rivals(self, client_id: str, session: str, device: str) -> set[str]:
        if self.policy == "multi":
            return set()
        others = {other for other in self.routes[client_id] if other != session}
        if self.policy == "client":
            return others
        return {other for other in others if self.device_of[other] == device}

    def end(self, node_id: str, session: str) -> None:
        """Its node closes the socket, now; the removal comes late."""
        gone = self.nodes[node_id].open.pop(session, None)
        if gone is not None:
            self.ended.append((gone[0], session))

    @rule(node_id=node_ids, which=st.integers(0, 5))
    def disconnect(self, node_id: str, which: int) -> None:
        sessions = list(self.nodes[node_id].open)
        if sessions:
            self.end(node_id, sessions[which % len(sessions)])

    @rule()
    def remove_what_ended(self) -> None:
        """However late, no session but these goes."""
        self.run(self.registry.unregister([(client_id, session, "") for client_id, session in self.ended]))
        for client_id, session in self.ended:
            self.routes[client_id].pop(session, None)
        self.ended.clear()

    @rule(node_id=node_ids)
    def clean_up_behind_the_dead(self, node_id: str) -> None:
        """As dispatchers do: by sessionId and epoch, for epochs that hold no lease."""
        living = self.holder.get(node_id)
        dead = [
            (client_id, session, epoch)
            for client_id, sessions in self.routes.items()
            for session, epoch in sessions.items()
            if node_of_session(session) == node_id and epoch != living
        ]
        if dead:
            self.run(self.registry.unregister(dead))
        for client_id, session, _ in dead:
            del self.routes[client_id][session]

    @invariant()
    def routes_and_index_agree(self) -> None:
        for client_id, expected in self.routes.items():
            assert expected == self.run(route(self.store, client_id))
            for node_id in (NODE, OTHER):
                here = {session for session in expected if node_of_session(session) == node_id}
                assert here <= self.run(index(self.store, client_id, node_id))

    async def delete(self, key: str) -> None:
        await self.store.redis.delete(key)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()


@pytest.mark.parametrize("policy", ["multi", "device", "client"])
def test_the_registry_agrees_with_a_model(valkey: LocalValkey, policy: str) -> None:
    """Registered, replaced, ended late, lease lost, node restarted: each route holds what it must, and no more."""
    machine = type("RoutesHere", (Routes,), {"url": valkey.url, "policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
