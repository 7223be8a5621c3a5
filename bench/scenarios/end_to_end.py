"""
Durable pushes from the HTTP call to the client's acknowledgement, everything on two cores: dispatcher, gateway,
store, broker and load. Each item of a list of 100 is a push of its own to one of 1,000 clients that acknowledge.
What is in flight is bounded by the count that the clients keep. At the end every message has to have come, none
skipped, and every inbox has to be empty.
"""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from bench.cluster import Bench, Cluster, Role, cluster, cpu_each, measure
from bench.processes import BOTH_CORES
from bench.results import Figure, Result, medians
from bench.tools import Counter, Numbers, Wsload, finish, httppub, wsload

_CLIENTS = 1_000
_BATCH = 100
_WINDOW = 20_000
_ITEM = '{"to":["c%d"],"msg":{"n":%n,"text":"%p"}}'
_SETTLE_S = 15.0


async def run(bench: Bench) -> Result:
    """Pushes acknowledged a second on each bus."""
    figures: list[Figure] = []
    for bus in bench.buses:
        figures.append(await _measure_bus(bench, bus))
    return Result("end_to_end", "Durable pushes from HTTP to acknowledgement, on two cores", tuple(figures))


async def _measure_bus(bench: Bench, bus: str) -> Figure:
    async with cluster(bench, bus=bus, store_cores=BOTH_CORES) as parts:
        gateway, dispatcher = await parts.gateway(BOTH_CORES), await parts.dispatcher(BOTH_CORES)
        counter = Counter(parts.folder / "count")
        options = [*parts.client_options(acks=True), "-q", '"n":', "-s", str(counter.path), "-z", "1000"]
        async with wsload(parts.folder, gateway.port, *options, cores=BOTH_CORES) as clients:
            await clients.connect(_CLIENTS)
            return await _push(bench, parts, dispatcher, clients, counter)


async def _push(bench: Bench, parts: Cluster, dispatcher: Role, clients: Wsload, counter: Counter) -> Figure:
    publisher = ["-P", "/message/sendList", "-x", "[", "-y", "]", "-B", str(_BATCH), "-b", _ITEM, "-n", str(_CLIENTS)]
    publisher += ["-l", str(parts.padding('{"n":1000,"text":""}')), "-c", "8", "-q", "2"]
    publisher += ["-d", str(bench.load_s(parts.bus))]
    publisher += ["-s", str(counter.path), "-F", "1", "-W", str(_WINDOW), "-E", '"success":false']
    rates: list[float] = []
    beside: list[dict[str, float]] = []
    async with httppub(parts.folder, dispatcher.port, *publisher, cores=BOTH_CORES) as sender:
        await clients.ask(f"run {bench.warm_s(parts.bus)}")
        for _ in range(bench.repetitions):
            numbers, spent = await measure(parts, clients, bench.measured_s, httppub=sender)
            rates.append(numbers["rate"])
            beside.append(cpu_each(spent, numbers["messages"]))
        sent = await finish(sender)
    truth = await _settle(parts, clients, counter, sent)
    what = f"durable pushes, acknowledged, {parts.bus}"
    return Figure(what, "/s", tuple(rates), ">= 40,000", medians(beside) | truth)


async def _settle(parts: Cluster, clients: Wsload, counter: Counter, sent: Numbers) -> dict[str, float]:
    """Wait for what is still on its way; what must be 0 at the end."""
    end_s = time.monotonic() + _SETTLE_S
    left = await _left_in_inboxes(parts)
    while (counter.count < sent["items"] or left) and time.monotonic() < end_s:
        await clients.ask("run 0.2")
        left = await _left_in_inboxes(parts)
    stat = await clients.ask("stat")
    return {
        "answers with an error": sent["errors"],
        "missed by clients": stat["gaps"],
        "repeated to clients": stat["repeats"],
        "never received": max(0, sent["items"] - counter.count),
        "inboxes left": left,
    }


async def _left_in_inboxes(parts: Cluster) -> int:
    async with Redis.from_url(parts.redis_url) as store:
        count = 0
        async with asyncio.timeout(10):
            async for _ in store.scan_iter(match=f"{parts.namespace}:*inbox:*", count=1000):
                count += 1
        return count
