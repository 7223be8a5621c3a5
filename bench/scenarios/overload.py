"""
More than the machine can deliver, for twenty seconds: 1,500 send-to-all a second to 1,000 sockets, then as many as are
answered, then unicast from 3,000 connections. What was answered 200 has to arrive, all of it, at every client that was
connected; the rest has to be refused. Everything shares both cores.

`lost` is what was answered 200 less what came; `cut` counts clients whose connection ended. The lease is looked at ten
times a second; each client is pinged every 5 s and cut after 15 s of silence, so a node that does not read pongs loses
them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from bench.cluster import Bench, Cluster, cluster
from bench.processes import BOTH_CORES, http_status, peak_bytes
from bench.results import Figure, Result
from bench.tools import Numbers, Wsload, finish, httppub, wsload

_CLIENTS = 1_000
_ARRIVAL_S = 90.0
_QUIET_S = 3.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Load:
    """`fan`: how many clients a send is for. `acks`: whether they acknowledge."""

    what: str
    publisher: tuple[str, ...]
    fan: int
    acks: bool


_EVERYONE = _Load(
    "1,500 send-to-all/s to 1,000 sockets",
    (
        "-P",
        "/message/send",
        "-r",
        "1500",
        "-c",
        "64",
        "-q",
        "64",
        "-b",
        '{"sendToAll":true,"msg":{"n":%q,"text":"%p"}}',
    ),
    _CLIENTS,
    False,
)
_MORE = _Load(
    "send-to-all as fast as it is answered, to 1,000 sockets",
    (
        *("-P", "/message/send", "-c", "64", "-q", "8"),
        *("-b", '{"sendToAll":true,"msg":{"n":%q,"text":"%p"}}'),
    ),
    _CLIENTS,
    False,
)
_UNICAST = _Load(
    "unicast as fast as it is taken",
    (
        *("-P", "/message/send", "-c", "3000", "-q", "1", "-n", str(_CLIENTS)),
        *("-b", '{"to":"c%d","msg":{"n":%n,"text":"%p"}}'),
    ),
    1,
    True,
)


async def run(bench: Bench) -> Result:
    """Lost messages, which must be 0, and what was refused, for each load and bus."""
    figures: list[Figure] = []
    for bus in bench.buses:
        for load in (_EVERYONE, _MORE, _UNICAST):
            figures.append(await _measure(bench, bus, load))
    return Result("overload", "Overload", tuple(figures))


async def _measure(bench: Bench, bus: str, load: _Load) -> Figure:
    seconds = 5.0 if bench.quick else 20.0
    async with cluster(bench, bus=bus, store_cores=BOTH_CORES) as parts:
        variables = {"PUSH_LEASE": "10", "PUSH_HEARTBEAT_TIMEOUT": "15"}
        gateway = await parts.gateway(BOTH_CORES, **variables)
        dispatcher = await parts.dispatcher(BOTH_CORES, **variables)
        options = [*parts.client_options(acks=load.acks), "-q", '"n":', "-z", "1000"]
        publisher = [*load.publisher, "-l", str(parts.padding('{"n":1000,"text":""}')), "-d", str(seconds), "-w", "30"]
        async with wsload(parts.folder, gateway.port, *options, cores=BOTH_CORES) as clients:
            await clients.connect(_CLIENTS)
            async with _lease_watch(parts, gateway.node_id) as lease:
                await clients.ask("reset")
                async with httppub(parts.folder, dispatcher.port, *publisher, cores=BOTH_CORES) as sender:
                    sent = await finish(sender, seconds + 60, refusals=True)
                got = await _all_of(clients, sent["ok"] * load.fan)
        peaks = {f"{name} peak MiB": sum(map(peak_bytes, pids)) / _MIB for name, pids in parts.pids.items()}
    lost = sent["ok"] * load.fan - got["messages"] + got["repeats"]
    return Figure(
        f"{bus}, {load.what}: lost",
        "messages",
        (lost,),
        "0",
        {
            "sent": sent["requests"],
            "answered 200": sent["ok"],
            "429": sent["refused_429"],
            "503": sent["refused_503"],
            "refused without Retry-After": sent["non200"] - sent["told_when"],
            "not answered": sent["unanswered"],
            "delivered": got["messages"],
            "repeated": got["repeats"],
            "clients cut": got["ends"],
            "longest silence of a client s": got["silence_s"],
            "answer p99 ms": sent["answer_p99_us"] / 1e3,
            "least left of a lease of 10 s": lease.least_s,
            "epochs": float(len(lease.epochs)),
            "slowest /healthz of the node s": lease.slowest_s,
            "pings answered": got["pings"],
        }
        | peaks,
    )


async def _all_of(clients: Wsload, messages: float) -> Numbers:
    """Until so many came, or nothing has come for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _ARRIVAL_S
    before = -1.0
    while True:
        got = await clients.ask(f"wait {messages:.0f} {_QUIET_S}")
        if got["messages"] >= messages or got["messages"] == before or loop.time() > deadline:
            return got
        before = got["messages"]


class _Lease:
    """What was seen of a lease, and the slowest answer of its node's /healthz."""

    def __init__(self) -> None:
        self.least_s = float("inf")
        self.epochs: set[str] = set()
        self.slowest_s = 0.0
        self.done = False


@asynccontextmanager
async def _lease_watch(parts: Cluster, node_id: str) -> AsyncIterator[_Lease]:
    seen = _Lease()
    redis = Redis.from_url(parts.redis_url)
    (key,) = [name async for name in redis.scan_iter(f"*:lease:{node_id}")]

    port = int(node_id.rpartition(":")[2])

    async def watch() -> None:
        while not seen.done:
            left_ms, value = await redis.pttl(key), await redis.get(key)
            seen.least_s = min(seen.least_s, max(0, left_ms) / 1000)
            seen.epochs.add(orjson.loads(value)["epoch"] if value else "")
            began = time.monotonic()
            await http_status(port, "/healthz")
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        seen.done = True
        await asyncio.wait((task,), timeout=5)
        await redis.aclose()
