"""
Single-target HTTP sends a second on one dispatcher core: a closed loop of 64 connections, durable sends to 1,000
clients that are online and acknowledge. The dispatcher has the server's core for itself; the gateway, the store and
the load share the other one, and their CPU is reported so that a reader sees whether that core was the limit.
"""

from __future__ import annotations

from bench.cluster import Bench, cluster, cpu_each
from bench.processes import LOAD_CORE, SERVER_CORE
from bench.results import Figure, Result, medians
from bench.tools import finish, httppub, wsload

_CLIENTS = 1_000
_ITEM = '{"to":["c%d"],"msg":{"n":%n,"text":"%p"}}'


async def run(bench: Bench) -> Result:
    """Sends a second by the clock and for a second of dispatcher CPU."""
    rates: list[float] = []
    per_core: list[float] = []
    beside: list[dict[str, float]] = []
    async with cluster(bench) as parts:
        gateway, dispatcher = await parts.gateway(LOAD_CORE), await parts.dispatcher(SERVER_CORE)
        publisher = ["-P", "/message/send", "-b", _ITEM, "-n", str(_CLIENTS), "-c", "64"]
        publisher += ["-l", str(parts.padding('{"n":1000,"text":""}')), "-E", '"success":false']
        async with wsload(parts.folder, gateway.port, *parts.client_options(acks=True), "-z", "2000") as clients:
            await clients.connect(_CLIENTS)
            for seconds in (bench.warm_s(parts.bus), *[bench.measured_s] * bench.repetitions):
                meter = parts.meter(wsload=clients.child)
                async with httppub(parts.folder, dispatcher.port, *publisher, "-d", str(seconds)) as sender:
                    numbers = await finish(sender)
                spent = meter.spent()
                rates.append(numbers["items_per_s"])
                per_core.append(numbers["items"] / spent["dispatcher"])
                beside.append(
                    cpu_each(spent, numbers["items"])
                    | {"httppub CPU us each": numbers["cpu_s"] / numbers["items"] * 1e6}
                    | {"HTTP answer p50 ms": numbers["answer_p50_us"] / 1e3, "answers with an error": numbers["errors"]}
                )
    warm = 1  # the first run only warms up
    figures = (
        Figure("single-target sends", "/s", tuple(rates[warm:]), ">= 12,000", medians(beside[warm:])),
        Figure("the same for a second of dispatcher CPU", "/s", tuple(per_core[warm:]), ">= 12,000"),
    )
    return Result("http_sends", "Single-target HTTP sends on one dispatcher core", figures)
