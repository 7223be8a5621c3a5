"""
The faults. Each function makes one happen and returns when it is over; what follows must heal by itself.

A fault takes its parameters from the `chance` it is given, so that a seed replays it. It tells the site which clients
it concerns, unless these are all. Any two faults with different `TOUCHES` may happen at once (`two_at_once`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos.full_disk import BROKER_LOOKS_EACH_S
from tests.chaos.site import HEARTBEAT_TIMEOUT_S, LEASE_S, Part, Site
from tests.harness.proxy import Proxy, Way

Fault = Callable[[Site, random.Random], Awaitable[None]]


# -- processes --------------------------------------------------------------------------------------------------


async def node_killed(site: Site, chance: random.Random) -> None:
    """kill -9 of a node; it starts again on its address after a while, sooner or later than its lease ends."""
    node = chance.choice(site.nodes)
    site.concerns_clients_of(node)
    await _killed(node, chance.uniform(0.2, 2 * LEASE_S))


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
    """SIGSTOP of a node for longer than its lease, then SIGCONT: a zombie."""
    node = chance.choice(site.nodes)
    site.concerns_clients_of(node)
    await _stopped(node, LEASE_S * chance.uniform(1.5, 4.5))
    site.ledger.resumed(asyncio.get_running_loop().time())


async def dispatcher_stopped(site: Site, chance: random.Random) -> None:
    """SIGSTOP of a dispatcher, then SIGCONT."""
    await _stopped(chance.choice(site.dispatchers), chance.uniform(2.0, 8.0))


async def broker_stopped(site: Site, chance: random.Random) -> None:
    """SIGSTOP of the broker: it keeps its connections and answers nothing."""
    site.broker.pause()
    try:
        await asyncio.sleep(chance.uniform(2.0, 6.0))
    finally:
        site.broker.resume()


async def node_drained(site: Site, chance: random.Random) -> None:
    """SIGTERM, and a new process on the same address."""
    node = chance.choice(site.nodes)
    site.concerns_clients_of(node)
    await _drained(node)


async def dispatcher_drained(site: Site, chance: random.Random) -> None:
    """SIGTERM, and a new process on the same address."""
    await _drained(chance.choice(site.dispatchers))


async def nodes_rolled(site: Site, chance: random.Random) -> None:
    """Every node drained and started again, one after the other."""
    for node in chance.sample(site.nodes, len(site.nodes)):
        await _drained(node)
        await node.role.until_healthy(site.http)


# -- the broker's disk ------------------------------------------------------------------------------------------


async def broker_disk_full(site: Site, chance: random.Random) -> None:
    """The broker finds its disk full and refuses writes (code 14), then finds room again."""
    assert site.disk_full is not None
    site.disk_full.touch()
    try:
        await asyncio.sleep(BROKER_LOOKS_EACH_S + chance.uniform(1.0, 4.0))
    finally:
        site.disk_full.unlink()
    await asyncio.sleep(BROKER_LOOKS_EACH_S)


async def broker_refuses_writes(site: Site, chance: random.Random) -> None:
    """The broker started again read-only: no route has a queue to write to."""
    options = dict(site.broker.broker_options)
    site.broker.kill()
    site.broker.broker_options = options | {"brokerPermission": "4"}
    try:
        await site.broker.restart()
        await asyncio.sleep(chance.uniform(1.0, 4.0))
        site.broker.kill()
    finally:
        site.broker.broker_options = options
    await site.broker.restart()


# -- clients ----------------------------------------------------------------------------------------------------


async def clients_frozen(site: Site, chance: random.Random) -> None:
    """A tenth of the clients neither reads nor answers, for shorter or longer than the heartbeat time-out."""
    frozen = chance.sample(site.clients, len(site.clients) // 10)
    site.concerned |= {client.client_id for client in frozen}
    for client in frozen:
        client.frozen = True
    await asyncio.sleep(chance.uniform(2.0, 1.5 * HEARTBEAT_TIMEOUT_S))
    for client in frozen:
        client.frozen = False


async def clients_read_slowly(site: Site, chance: random.Random) -> None:
    """A few clients read more slowly than their messages of 60 kB come."""
    slow = chance.sample(site.clients, 5)
    site.concerned |= {client.client_id for client in slow}
    for client in slow:
        client.slow = True
    site.sender.bulk = frozenset(client.client_id for client in slow)
    await asyncio.sleep(chance.uniform(4.0, 8.0))
    site.sender.bulk = frozenset()
    for client in slow:
        client.slow = False


# -- links ------------------------------------------------------------------------------------------------------

Ends = Callable[[Site, random.Random], list[Proxy]]


def _clients(site: Site, chance: random.Random) -> list[Proxy]:
    """Between one node and its clients."""
    node = chance.choice(site.nodes)
    site.concerns_clients_of(node)
    return [node.front]


def _redis(site: Site, chance: random.Random) -> list[Proxy]:
    """Between one role and Redis."""
    part = chance.choice(site.parts)
    site.concerns_clients_of(part)
    return [part.redis]


def _broker(site: Site, chance: random.Random) -> list[Proxy]:
    """Between the broker and one role, or all."""
    part = chance.choice(site.parts)
    if chance.random() < 0.5:
        return [part.broker for part in site.parts]
    site.concerns_clients_of(part)
    return [part.broker]


async def _slow(proxies: Sequence[Proxy], chance: random.Random) -> None:
    """late by 25 to 300 ms"""
    about_s = chance.uniform(0.05, 0.2)
    for proxy in proxies:
        proxy.delay(about_s)
    await _healed(proxies, chance)


async def _cut(proxies: Sequence[Proxy], chance: random.Random) -> None:
    """every connection reset, five times"""
    for _ in range(5):
        for proxy in proxies:
            proxy.reset()
        await asyncio.sleep(chance.uniform(0.05, 0.5))


async def _half_open(proxies: Sequence[Proxy], chance: random.Random) -> None:
    """what goes one way is swallowed and nobody is told"""
    way = chance.choice(list(Way))
    for proxy in proxies:
        proxy.half_open(way)
    await _healed(proxies, chance)


async def _black_hole(proxies: Sequence[Proxy], chance: random.Random) -> None:
    """everything is swallowed, new connections hear nothing"""
    for proxy in proxies:
        proxy.black_hole()
    await _healed(proxies, chance)


async def _refused(proxies: Sequence[Proxy], chance: random.Random) -> None:
    """connections are cut and refused"""
    for proxy in proxies:
        proxy.refuse()
    try:
        await asyncio.sleep(chance.uniform(1.0, 3 * LEASE_S))
    finally:
        for proxy in proxies:
            await proxy.start()


async def _healed(proxies: Sequence[Proxy], chance: random.Random) -> None:
    try:
        await asyncio.sleep(chance.uniform(1.0, 4 * LEASE_S))
    finally:
        for proxy in proxies:
            proxy.heal()


def _on_link(ends: Ends, how: Callable[[Sequence[Proxy], random.Random], Awaitable[None]]) -> Fault:
    async def fault(site: Site, chance: random.Random) -> None:
        await how(ends(site, chance), chance)

    fault.__name__ = ends.__name__[1:] + how.__name__
    fault.__doc__ = f"{(ends.__doc__ or '').rstrip('.')}: {how.__doc__}."
    return fault


# -- several at once --------------------------------------------------------------------------------------------


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


async def two_at_once(site: Site, chance: random.Random, names: Sequence[str]) -> None:
    """These two, the second up to 2 s behind the first."""

    async def later(name: str) -> None:
        await asyncio.sleep(pause_s)
        await FAULTS[name](site, second)

    pause_s = chance.uniform(0.0, 2.0)
    # A stream of chances each: what one draws must not hang on when the other does.
    first, second = random.Random(chance.random()), random.Random(chance.random())
    await asyncio.gather(FAULTS[names[0]](site, first), later(names[1]))
    site.concerned.clear()


_PROCESSES = (
    *(node_killed, dispatcher_killed, broker_killed, valkey_killed, node_stopped, dispatcher_stopped, broker_stopped),
    *(node_drained, dispatcher_drained, nodes_rolled),
)
_LINKS = tuple(
    _on_link(ends, how)
    for ends in (_clients, _redis, _broker)
    for how in (_slow, _cut, _half_open, _black_hole, _refused)
)
_PAIRS = (
    *(node_and_dispatcher_killed, node_and_broker_killed, node_and_valkey_killed, broker_and_dispatcher_killed),
    broker_and_valkey_killed,
)
_ALL = (*(*_PROCESSES, broker_disk_full, broker_refuses_writes, clients_frozen, clients_read_slowly, *_LINKS, *_PAIRS),)
FAULTS: dict[str, Fault] = {fault.__name__: fault for fault in _ALL}
assert len(FAULTS) == len(_ALL), "two faults of one name: one of them would never happen"


def touches(name: str) -> str:
    """What a fault is done to: `node`, `dispatcher`, `broker`, `valkey`, `clients`, `redis`; `` if several."""
    return "" if "_and_" in name else name.partition("_")[0].replace("nodes", "node")


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of the names that may happen at once."""
    return [
        (one, other)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        if "" not in (touches(one), touches(other)) and touches(one) != touches(other)
    ]


async def _killed(part: Part, down_s: float) -> None:
    await part.role.kill()
    await asyncio.sleep(down_s)
    await part.restart()


async def _stopped(part: Part, for_s: float) -> None:
    role = part.role
    role.pause()
    try:
        await asyncio.sleep(for_s)
    finally:
        role.resume()


async def _drained(part: Part) -> None:
    code = await part.role.stop()
    assert code == 0, f"exit code {code}:\n{part.role.log_text()}"
    await part.restart()
