"""
The faults. Each function makes one happen and returns when it is over; what follows must heal by itself.

A fault takes its parameters from the `chance` it is given, so that a seed replays it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.chaos.site import LEASE_S, Part, Site

Fault = Callable[[Site, random.Random], Awaitable[None]]


async def node_killed(site: Site, chance: random.Random) -> None:
    """kill -9 of a node; it starts again on its address after a while, sooner or later than its lease ends."""
    await _killed(chance.choice(site.nodes), chance.uniform(0.2, 2 * LEASE_S))


async def dispatcher_killed(site: Site, chance: random.Random) -> None:
    """kill -9 of a dispatcher."""
    await _killed(chance.choice(site.dispatchers), chance.uniform(0.2, 3.0))


async def broker_killed(site: Site, chance: random.Random) -> None:
    """kill -9 of the broker: sends wait in the outbox."""
    site.broker.kill()
    await asyncio.sleep(chance.uniform(0.5, 4.0))
    await site.broker.restart()


async def valkey_killed(site: Site, chance: random.Random) -> None:
    """kill -9 of Valkey, for shorter or longer than a lease."""
    site.valkey.kill()
    await asyncio.sleep(chance.uniform(0.2, 2 * LEASE_S))
    await site.valkey.restart()


async def node_stopped(site: Site, chance: random.Random) -> None:
    """SIGSTOP for longer than its lease, then SIGCONT: a zombie."""
    role = chance.choice(site.nodes).role
    role.pause()
    try:
        await asyncio.sleep(LEASE_S * chance.uniform(1.5, 4.0))
    finally:
        role.resume()


async def broker_stopped(site: Site, chance: random.Random) -> None:
    """SIGSTOP of the broker: it keeps its connections and answers nothing."""
    site.broker.pause()
    try:
        await asyncio.sleep(chance.uniform(2.0, 6.0))
    finally:
        site.broker.resume()


async def broker_refuses_writes(site: Site, chance: random.Random) -> None:
    """As one whose disk is full: it answers, serves reads, and takes nothing."""
    options = dict(site.broker.broker_options)
    site.broker.kill()
    site.broker.broker_options = options | {"brokerPermission": "4"}
    await site.broker.restart()
    await asyncio.sleep(chance.uniform(1.0, 4.0))
    site.broker.kill()
    site.broker.broker_options = options
    await site.broker.restart()


async def node_drained(site: Site, chance: random.Random) -> None:
    """SIGTERM, and a new process on the same address."""
    node = chance.choice(site.nodes)
    assert await node.role.stop() == 0, node.role.log_text()
    await node.restart()


async def clients_frozen(site: Site, chance: random.Random) -> None:
    """A tenth of the clients neither reads nor acknowledges for longer than the heartbeat time-out."""
    frozen = chance.sample(site.clients, len(site.clients) // 10)
    for client in frozen:
        client.frozen = True
    await asyncio.sleep(chance.uniform(2.0, 9.0))
    for client in frozen:
        client.frozen = False


async def clients_cut(site: Site, chance: random.Random) -> None:
    """RST to every connection of one node's clients."""
    front = chance.choice(site.nodes).front
    assert front is not None
    front.reset()
    await asyncio.sleep(0.5)


async def clients_half_open(site: Site, chance: random.Random) -> None:
    """What a node sends is lost on the way and nobody is told: both sides' heartbeats find out."""
    front = chance.choice(site.nodes).front
    assert front is not None
    front.half_open = True
    await asyncio.sleep(chance.uniform(2.0, 8.0))
    front.heal()


async def redis_slow(site: Site, chance: random.Random) -> None:
    """Everything between one role and Redis is late by up to 300 ms."""
    await _proxied(chance.choice([*site.nodes, *site.dispatchers]), "delay", chance)


async def redis_black_hole(site: Site, chance: random.Random) -> None:
    """One role's connections to Redis hear nothing any more, for longer than a lease."""
    await _proxied(chance.choice([*site.nodes, *site.dispatchers]), "black_hole", chance)


async def redis_cut(site: Site, chance: random.Random) -> None:
    """RST to all of one role's connections to Redis, several times."""
    part = chance.choice([*site.nodes, *site.dispatchers])
    for _ in range(5):
        part.redis.reset()
        await asyncio.sleep(chance.uniform(0.05, 0.5))


async def broker_cut(site: Site, chance: random.Random) -> None:
    """RST to every role's connections to the broker, several times."""
    for _ in range(5):
        site.broker_proxy.reset()
        await asyncio.sleep(chance.uniform(0.05, 0.5))


async def broker_black_hole(site: Site, chance: random.Random) -> None:
    """Nobody hears from the broker any more."""
    site.broker_proxy.black_hole = True
    await asyncio.sleep(chance.uniform(2.0, 6.0))
    site.broker_proxy.heal()


async def node_and_dispatcher_killed(site: Site, chance: random.Random) -> None:
    await asyncio.gather(node_killed(site, chance), dispatcher_killed(site, chance))


async def node_and_broker_killed(site: Site, chance: random.Random) -> None:
    await asyncio.gather(node_killed(site, chance), broker_killed(site, chance))


async def node_and_valkey_killed(site: Site, chance: random.Random) -> None:
    await asyncio.gather(valkey_killed(site, chance), node_killed(site, chance))


async def broker_and_dispatcher_killed(site: Site, chance: random.Random) -> None:
    await asyncio.gather(broker_killed(site, chance), dispatcher_killed(site, chance))


async def broker_and_valkey_killed(site: Site, chance: random.Random) -> None:
    await asyncio.gather(broker_killed(site, chance), valkey_killed(site, chance))


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(node_killed, dispatcher_killed, broker_killed, valkey_killed, node_stopped, broker_stopped),
        *(broker_refuses_writes, node_drained, clients_frozen, clients_cut, clients_half_open),
        *(redis_slow, redis_black_hole, redis_cut, broker_cut, broker_black_hole),
        *(node_and_dispatcher_killed, node_and_broker_killed, node_and_valkey_killed),
        *(broker_and_dispatcher_killed, broker_and_valkey_killed),
    )
}


async def _killed(part: Part, down_s: float) -> None:
    await part.role.kill()
    await asyncio.sleep(down_s)
    await part.restart()


async def _proxied(part: Part, how: str, chance: random.Random) -> None:
    if how == "delay":
        part.redis.delay_s = chance.uniform(0.05, 0.2)
    else:
        part.redis.black_hole = True
    await asyncio.sleep(chance.uniform(1.0, 3 * LEASE_S))
    part.redis.heal()
