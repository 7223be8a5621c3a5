"""
Unicast while everyone is sent to: 200 messages a second to single clients of a node on which 20,000 others have
sessions, first alone, then beside one send-to-all a second, then beside send-to-alls without a pause: the next leaves
as the last but one has arrived, so the node is never done with them. (More than it can deliver: see `overload`.)

The node has core 0. Half of the 20,000 acknowledge. Their load client gives way to the rest of core 1 (nice), so that
what the latency shows is the node's work rather than theirs. The node answers `/healthz` in its event loop: the slowest
answer, asked for all the while, is no less than the longest time for which that loop did nothing else.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from bench.cluster import Bench, Cluster, Role, cluster, measure
from bench.processes import LOAD_CORE, Child, http_status
from bench.results import Figure, Result
from bench.tools import Counter, Numbers, Wsload, finish, httppub, wsload

_SESSIONS = 20_000
_SINGLE = 50
_RATE = 200
_SPARE_FILES = 250
_NICE = 10
_LOOK_S = 0.005
_ARRIVAL_S = 60.0
_QUIET_S = 2.0
_UNICAST = '{"to":"s%d","msg":{"n":%n,"t":%t,"text":"%p"}}'
_EVERYONE = '{"sendToAll":true,"msg":{"a":%q,"text":"%p"}}'


@dataclass(frozen=True, slots=True)
class _Load:
    """`rate`: send-to-alls a second; 0: as fast as they are delivered, None: not one."""

    what: str
    rate: int | None


_LOADS = (
    _Load("without send-to-all", None),
    _Load("one send-to-all a second", 1),
    _Load("send-to-alls without a pause", 0),
)


async def run(bench: Bench) -> Result:
    """Latencies of unicast and the slowest answer of the node for each load and bus."""
    sessions = min(_SESSIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE_FILES - _SINGLE)
    figures: list[Figure] = []
    for bus in bench.buses:
        figures += await _measure_bus(bench, bus, sessions - sessions % 2)
    notes = (f"{sessions - sessions % 2:,} sessions besides the {_SINGLE} that get unicast",)
    title = f"Unicast at {_RATE}/s while everyone is sent to"
    return Result("everyone_and_unicast", title, tuple(figures), notes)


async def _measure_bus(bench: Bench, bus: str, sessions: int) -> list[Figure]:
    figures: list[Figure] = []
    async with cluster(bench, bus=bus) as parts, AsyncExitStack() as stack:
        gateway = await parts.gateway(PUSH_CONNECT_RATE="0", PUSH_LEASE="10")
        dispatcher = await parts.dispatcher(LOAD_CORE, PUSH_LEASE="10")
        herd: list[Wsload] = []
        counter = Counter(parts.folder / "count")
        for acks in (False, True):
            options = ["-R", "-S", "4", *(["-a"] if acks else ["-m", '"msgType":1}']), "-z", "1000"]
            options += ["-s", str(counter.path)] if acks else []
            path = f"/websocket?clientId={'a' if acks else 'p'}%d&ack={acks:d}"
            herd.append(await stack.enter_async_context(wsload(parts.folder, gateway.port, *options, "-P", path)))
            await herd[-1].connect(sessions // 2)
            os.setpriority(os.PRIO_PROCESS, herd[-1].child.pid, _NICE)
        options = ["-R", "-a", "-P", "/websocket?clientId=s%d&ack=1", "-L", '"t":', "-q", '"n":']
        single = await stack.enter_async_context(wsload(parts.folder, gateway.port, *options))
        await single.connect(_SINGLE)
        for load in _LOADS:
            figures += await _measure(_Site(bench, parts, gateway, dispatcher, herd, single, counter, sessions), load)
    return figures


@dataclass(frozen=True, slots=True)
class _Site:
    bench: Bench
    parts: Cluster
    gateway: Role
    dispatcher: Role
    herd: list[Wsload]
    single: Wsload
    counter: Counter
    sessions: int


@dataclass(slots=True)
class _Runs:
    """What each repetition found."""

    latencies: list[Numbers] = field(default_factory=list)
    slowest_ms: list[float] = field(default_factory=list)
    gateway_s: list[float] = field(default_factory=list)


async def _measure(site: _Site, load: _Load) -> list[Figure]:
    parts, bench = site.parts, site.bench
    seconds = bench.load_s(parts.bus)
    unicast = ["-P", "/message/send", "-b", _UNICAST, "-n", str(_SINGLE), "-r", str(_RATE), "-c", "32"]
    unicast += ["-l", str(parts.padding('{"n":1000,"t":123456789012345,"text":""}')), "-d", str(seconds), "-w", "10"]
    runs = _Runs()
    await _all(site.herd, "reset")
    async with (
        httppub(parts.folder, site.dispatcher.port, *unicast, cores=LOAD_CORE) as sender,
        _sending_to_everyone(site, load, seconds) as everyone,
    ):
        await site.single.ask(f"run {bench.warm_s(parts.bus)}")
        for _ in range(bench.repetitions):
            async with _watch(site.gateway) as watch:
                numbers, spent = await measure(parts, site.single, bench.measured_s)
            runs.latencies.append(numbers)
            runs.slowest_ms.append(watch.slowest_s * 1e3)
            runs.gateway_s.append(spent["gateway"] / numbers["secs"])
        sent = await finish(sender, refusals=True)
        to_all = await finish(everyone, refusals=True) if everyone else None
    arrived = await _arrived(site, to_all)
    sent["gaps"] = (await site.single.ask("stat"))["gaps"]
    return _figures(site, load, runs, sent, to_all, arrived)


@asynccontextmanager
async def _sending_to_everyone(site: _Site, load: _Load, seconds: float) -> AsyncIterator[Child | None]:
    if load.rate is None:
        yield None
        return
    parts = site.parts
    options = ["-P", "/message/send", "-b", _EVERYONE, "-c", "1", "-d", str(seconds), "-r", str(load.rate), "-w", "10"]
    options += ["-l", str(parts.padding('{"a":1000,"text":""}'))]
    if not load.rate:
        share = site.sessions // len(site.herd)
        options += ["-s", str(site.counter.path), "-F", str(share), "-W", str(share)]
    async with httppub(parts.folder, site.dispatcher.port, *options, cores=LOAD_CORE) as sender:
        yield sender


async def _arrived(site: _Site, to_all: Numbers | None) -> Numbers:
    """What the herd got of it, as sums; waits until all came or nothing comes any more."""
    wanted = int(to_all["ok"]) * (site.sessions // 2) if to_all else 0
    end_s = time.monotonic() + _ARRIVAL_S
    before = -1.0
    while True:
        got = _sums(await _all(site.herd, f"wait {wanted} {_QUIET_S}"))
        if got["messages"] >= 2 * wanted or got["messages"] == before or time.monotonic() > end_s:
            return got
        before = got["messages"]


async def _all(several: list[Wsload], command: str) -> list[Numbers]:
    return await asyncio.gather(*(clients.ask(command) for clients in several))


def _sums(several: list[Numbers]) -> Numbers:
    sums = {name: sum(numbers[name] for numbers in several) for name in several[0]}
    first_s = min(numbers["first_s"] for numbers in several)
    return sums | {
        "took_s": max(numbers["last_s"] for numbers in several) - first_s,
        "least_per_client": min(numbers["least_per_client"] for numbers in several),
        "most_per_client": max(numbers["most_per_client"] for numbers in several),
    }


@dataclass(slots=True)
class _Watch:
    slowest_s: float = 0.0


@asynccontextmanager
async def _watch(node: Role) -> AsyncIterator[_Watch]:
    """Ask for `/healthz` all the while."""
    watch = _Watch()

    async def look() -> None:
        while True:
            began = time.monotonic()
            await http_status(node.port, "/healthz")
            watch.slowest_s = max(watch.slowest_s, time.monotonic() - began)
            await asyncio.sleep(_LOOK_S)

    task = asyncio.create_task(look(), name="watch")
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _figures(
    site: _Site, load: _Load, runs: _Runs, sent: Numbers, to_all: Numbers | None, arrived: Numbers
) -> list[Figure]:
    name = f"{load.what}, {site.parts.bus}"
    more = {
        "longest ms": max(run["max_us"] for run in runs.latencies) / 1e3,
        "HTTP answer p50 ms": sent["answer_p50_us"] / 1e3,
        "HTTP answer p99 ms": sent["answer_p99_us"] / 1e3,
        "unicast refused": sent["non200"],
        "unicast missed": sent["gaps"],
        "gateway share of a core": sum(runs.gateway_s) / len(runs.gateway_s),
    }
    if to_all:
        more |= {
            "send-to-alls answered 200": to_all["ok"],
            "refused": to_all["non200"],
            "deliveries/s of them": arrived["messages"] / max(to_all["secs"], arrived["took_s"]),
            "lost to the worst client": to_all["ok"] - arrived["least_per_client"],
            "too many for the worst client": arrived["most_per_client"] - to_all["ok"],
            "clients cut": arrived["ends"],
        }
    target = "" if load.rate == 0 else "<= 10"
    return [
        Figure(f"unicast p50, {name}", "ms", tuple(run["p50_us"] / 1e3 for run in runs.latencies), "", more),
        Figure(f"unicast p99, {name}", "ms", tuple(run["p99_us"] / 1e3 for run in runs.latencies), target),
        Figure(f"slowest /healthz of the node, {name}", "ms", tuple(runs.slowest_ms), "a few"),
    ]
