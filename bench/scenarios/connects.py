"""
Connects a second on one core: a client counts when its first frame has come, which the node sends once the token is
checked and the session is registered in the store. The C server, which checks and registers nothing, is the limit.
"""

from __future__ import annotations

from bench.cluster import Bench, cluster
from bench.results import Figure, Result, medians
from bench.tools import cserver, wsload

_WARM = 2_000
_CLIENTS = 14_000
_HANDSHAKES = "128"


async def run(bench: Bench) -> Result:
    """Connects a second by the clock, and what the gateway spends on one."""
    rates: list[float] = []
    per_core: list[float] = []
    beside: list[dict[str, float]] = []
    for _ in range(bench.repetitions):
        rate, core, more = await _measure(bench)
        rates.append(rate)
        per_core.append(core)
        beside.append(more)
    figures = (
        Figure("connects, token checked and registered", "/s", tuple(rates), ">= 10,000", medians(beside)),
        Figure("the same for a second of gateway CPU", "/s", tuple(per_core)),
    )
    return Result("connects", "WebSocket connects a second", figures)


async def _measure(bench: Bench) -> tuple[float, float, dict[str, float]]:
    count = _CLIENTS // 4 if bench.quick else _CLIENTS
    async with cluster(bench, auth="jwt") as parts:
        gateway = await parts.gateway(PUSH_CONNECT_RATE="0")
        options = parts.client_options(tokens=_WARM + count)
        async with wsload(parts.folder, gateway.port, "-c", _HANDSHAKES, *options) as clients:
            await clients.connect(_WARM)
            meter = parts.meter(wsload=clients.child)
            numbers = await clients.connect(count)
            spent = meter.spent()
    async with cserver(bench.folder) as server, wsload(bench.folder, server.port, "-c", _HANDSHAKES) as clients:
        limit = await clients.connect(count)
    beside = {f"{name} CPU us each": seconds / count * 1e6 for name, seconds in spent.items()}
    beside["C server /s"] = limit["rate"]
    return numbers["rate"], count / spent["gateway"], beside
