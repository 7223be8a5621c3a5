"""
Memory of idle sessions: resident size of one gateway process before and after clients connect with a token each,
are registered in the store and stay silent. A few sessions come and stay before the base is read, so that what the
process loads for its first session does not count.
"""

from __future__ import annotations

import asyncio

from bench.cluster import Bench, cluster
from bench.processes import resident_bytes
from bench.results import Figure, Result
from bench.tools import wsload

_FIRST = 50
_STEPS = (1_000, 10_000)
_SETTLE_S = 2.0


async def run(bench: Bench) -> Result:
    """KiB a session at each step."""
    runs: dict[int, list[float]] = {step: [] for step in _STEPS}
    base: list[float] = []
    for _ in range(bench.repetitions):
        base.append(await _measure(bench, runs))
    figures = [
        Figure(
            f"memory of an idle session, {step:,} on the node",
            "KiB",
            tuple(runs[step]),
            "<= 5" if step == _STEPS[-1] else "",
        )
        for step in _STEPS
    ]
    figures.append(Figure("the gateway process without sessions", "MiB", tuple(base)))
    return Result("idle_memory", "Memory of idle sessions", tuple(figures))


async def _measure(bench: Bench, runs: dict[int, list[float]]) -> float:
    """Adds to `runs`; returns the base in MiB."""
    async with cluster(bench, auth="jwt") as parts:
        gateway = await parts.gateway()
        options = parts.client_options(tokens=_STEPS[-1] + _FIRST)
        async with wsload(parts.folder, gateway.port, *options) as clients:
            await clients.connect(_FIRST)
            await asyncio.sleep(_SETTLE_S)
            base = resident_bytes(gateway.child.pid)
            connected = 0
            for step in _STEPS:
                await clients.connect(step - connected)
                connected = step
                await asyncio.sleep(_SETTLE_S)
                runs[step].append((resident_bytes(gateway.child.pid) - base) / step / 1024)
    return base / 2**20
