"""
Send-to-all to 1,000 sockets on one node.

One at a time: the next send leaves when the last client has received the one before, so no two messages ever wait for
one connection, and each frame is a write of its own, as in the C server's `fan`. The gateway is idle while a send is
on its way to it; what counts is deliveries for a second of its CPU. With sixteen waiting: lists of 16 sends, two lists
in flight, against the C server's `burst`, which sends 16 frames a connection in a row, one write each.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from bench.cluster import Bench, Cluster, Role, cluster, cpu_each, measure
from bench.limit import c_limit
from bench.processes import LOAD_CORE
from bench.results import Figure, Result, medians
from bench.tools import Counter, Wsload, finish, httppub, wsload

_CLIENTS = 1_000
_ITEM = '{"sendToAll":true,"msg":{"n":%q,"text":"%p"}}'


@dataclass(frozen=True, slots=True)
class _Load:
    what: str
    target: str
    publisher: tuple[str, ...]
    window: int
    c_command: str


_ONE = _Load("send-to-all, one message at a time", ">= 0.75", ("-P", "/message/send"), 0, "fan")
_SIXTEEN = _Load(
    "send-to-all, 16 waiting a connection",
    ">= 2.0",
    ("-P", "/message/sendList", "-x", "[", "-y", "]", "-B", "16"),
    16 * _CLIENTS,
    "burst",
)


async def run(bench: Bench) -> Result:
    """Share of the C server's deliveries for a second of CPU, in both loads."""
    figures: list[Figure] = []
    async with cluster(bench) as parts:
        gateway, dispatcher = await parts.gateway(), await parts.dispatcher(LOAD_CORE)
        counter = Counter(parts.folder / "count")
        options = [*parts.client_options(), "-s", str(counter.path), "-z", "1000"]
        async with wsload(parts.folder, gateway.port, *options) as clients:
            await clients.connect(_CLIENTS)
            for load in (_ONE, _SIXTEEN):
                figures += await _measure(bench, parts, dispatcher, clients, counter, load)
    return Result("send_to_all", "Send-to-all to 1,000 sockets", tuple(figures))


async def _measure(
    bench: Bench, parts: Cluster, dispatcher: Role, clients: Wsload, counter: Counter, load: _Load
) -> list[Figure]:
    frames = 300_000 if bench.quick else 1_000_000
    command = f"fan {frames // _CLIENTS}" if load.c_command == "fan" else f"burst {frames} 16"
    limit = await c_limit(bench, command, clients=_CLIENTS)
    publisher = [*load.publisher, "-b", _ITEM, "-l", str(parts.padding('{"n":1000,"text":""}'))]
    publisher += ["-d", str(bench.load_s(parts.bus))]
    publisher += ["-c", "2", "-s", str(counter.path), "-F", str(_CLIENTS), "-W", str(load.window)]
    rates: list[float] = []
    per_core: list[float] = []
    beside: list[dict[str, float]] = []
    async with httppub(parts.folder, dispatcher.port, *publisher) as sender:
        await clients.ask(f"run {bench.warm_s(parts.bus)}")
        for _ in range(bench.repetitions):
            numbers, spent = await measure(parts, clients, bench.measured_s, httppub=sender)
            rates.append(numbers["rate"])
            per_core.append(numbers["messages"] / spent["gateway"])
            beside.append(cpu_each(spent, numbers["messages"]))
        await finish(sender)
    beside_all = medians(beside) | limit.beside() | {"deliveries/s by the clock": median(rates)}
    return [
        Figure(
            f"{load.what}: share of C by CPU",
            "",
            tuple(rate / limit.per_core for rate in per_core),
            load.target,
            beside_all,
        ),
        Figure(f"{load.what}: deliveries for a second of gateway CPU", "/s", tuple(per_core)),
    ]
