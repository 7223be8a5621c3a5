"""The steps of a drain that a whole node shows too rarely."""

from __future__ import annotations

import asyncio

from gateway_node.eviction import Eviction
from gateway_node.lease import LeaseKeeper
from gateway_node.neighbours import Neighbours
from gateway_node.registration import Registration
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.gate import Gate
from pushfleet.local_valkey import LocalValkey
from shared.bus import open_bus
from shared.registry import Joining, Lease, Registry
from shared.store import Store
from tests.harness.connection import Layer
from tests.harness.drain import DEADLINE_S
from tests.harness.node_parts import node_parts

NODE = "10.0.0.1:9000"


async def test_it_waits_until_every_route_is_gone(valkey: LocalValkey, namespace: str) -> None:
    """Of thousands of sessions that have ended at once."""
    store, settings = Store(valkey.url, namespace=namespace), GatewaySettings(auth="off")
    parts = node_parts(store, settings)
    hub = parts.hub
    bus = open_bus(valkey.url, namespace=namespace)
    eviction = Eviction(hub, Neighbours(bus, namespace=namespace))
    registry = Registry(store)
    registration = Registration(NODE, lambda: "e1", hub, registry, settings, parts.delivery, parts.audiences, eviction)
    sessions = [Joining(f"c{n}", f"{NODE}_c{n}_20260101000000000") for n in range(3000)]
    await registry.register(NODE, "e1", sessions, most=1, most_bytes=1)
    for joining in sessions:
        registration.leave(session_of(joining))
    await registration.finish()
    routes = [name async for name in store.redis.scan_iter(f"{namespace}:*:route:*")]
    await bus.close()
    await store.close()

    assert [] == routes


def session_of(joining: Joining) -> Session:
    connection = Connection(Gate(Layer(), asyncio.get_running_loop()))
    session_id = joining.session_id.encode()
    return Session(session_id, joining.client_id, connection, ack=True, expires_s=0, device="")


async def test_a_lease_that_was_given_back_is_not_taken_again(valkey: LocalValkey, namespace: str) -> None:
    """By renewals that were under way, or are asked for later."""
    store = Store(valkey.url, namespace=namespace)
    keeper = LeaseKeeper(Registry(store), NODE, 10.0, lambda epoch: Lease(epoch, "ws://x"), print, print)
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(DEADLINE_S):
        await keeper.until_alive()
    await asyncio.gather(keeper.renew_now(), keeper.release(clean=True), keeper.renew_now())
    await keeper.renew_now()
    async with asyncio.timeout(DEADLINE_S):
        await running
    held = await store.redis.exists(store.keys.lease(NODE), store.keys.starts)
    await store.close()

    assert 0 == held
    assert not keeper.alive()
