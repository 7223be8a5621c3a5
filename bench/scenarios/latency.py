"""
From the HTTP send to the client: 1,000 single-target durable sends a second to 1,000 clients that acknowledge,
everything on two cores. The publisher puts the monotonic clock into `msg`, the load client compares it with its own
when it has read the frame, so the figure holds the whole way: HTTP, store, bus, gateway, both loopback hops.
"""

from __future__ import annotations

from bench.cluster import Bench, cluster, cpu_each, measure
from bench.processes import BOTH_CORES
from bench.results import Figure, Result, medians
from bench.tools import Numbers, finish, httppub, wsload

_CLIENTS = 1_000
_RATE = 1_000
_ITEM = '{"to":["c%d"],"msg":{"t":%t,"n":%n,"text":"%p"}}'
_TARGETS = {"p50": "<= 3 (RocketMQ)", "p90": "", "p99": "<= 10 (RocketMQ)"}


async def run(bench: Bench) -> Result:
    """p50, p90 and p99 in ms on each bus."""
    figures: list[Figure] = []
    for bus in bench.buses:
        figures += await _measure_bus(bench, bus)
    return Result("latency", f"HTTP send to client receive at {_RATE:,}/s", tuple(figures))


async def _measure_bus(bench: Bench, bus: str) -> list[Figure]:
    runs: list[Numbers] = []
    beside: list[dict[str, float]] = []
    async with cluster(bench, bus=bus, store_cores=BOTH_CORES) as parts:
        gateway, dispatcher = await parts.gateway(BOTH_CORES), await parts.dispatcher(BOTH_CORES)
        publisher = ["-P", "/message/send", "-b", _ITEM, "-n", str(_CLIENTS), "-r", str(_RATE)]
        publisher += ["-d", str(bench.load_s(parts.bus))]
        publisher += ["-l", str(parts.padding('{"t":123456789012345,"n":10,"text":""}')), "-c", "64"]
        options = [*parts.client_options(acks=True), "-L", '"t":', "-q", '"n":']
        async with wsload(parts.folder, gateway.port, *options, cores=BOTH_CORES) as clients:
            await clients.connect(_CLIENTS)
            async with httppub(parts.folder, dispatcher.port, *publisher, cores=BOTH_CORES) as sender:
                await clients.ask(f"run {bench.warm_s(parts.bus)}")
                for _ in range(bench.repetitions):
                    numbers, spent = await measure(parts, clients, bench.measured_s, httppub=sender)
                    runs.append(numbers)
                    beside.append({"received /s": numbers["rate"]} | cpu_each(spent, numbers["messages"]))
                sent = await finish(sender)
            gaps = (await clients.ask("run 0.5"))["gaps"]
    more = medians(beside) | {
        "HTTP answer p50 ms": sent["answer_p50_us"] / 1e3,
        "HTTP answer p99 ms": sent["answer_p99_us"] / 1e3,
        "sends late by ms (mean)": sent["late_mean_us"] / 1e3,
        "missed by clients": gaps,
    }
    return [
        Figure(
            f"{name}, {bus}",
            "ms",
            tuple(run[f"{name}_us"] / 1e3 for run in runs),
            target,
            more if name == "p50" else {},
        )
        for name, target in _TARGETS.items()
    ]
