"""
A node with 5,000 sessions is killed, and its clients come to the two others: all at once, or each after a pause of up
to five seconds as a client library would. Meanwhile 50 other clients on one of those nodes get 200 messages a second.

A client that is refused (503) comes again when the Retry-After says, so `all back` has the refusals in it. Everything
shares both cores, the clients too, so this is what one small machine does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.cluster import Bench, cluster
from bench.processes import BOTH_CORES, peak_bytes
from bench.results import Figure, Result
from bench.tools import Numbers, Wsload, httppub, wsload

_HERD = 5_000
_STEADY = 50
_BACK_S = 60.0
_CALM_S = 3.0
_RATE = "200"


@dataclass(frozen=True, slots=True)
class _Storm:
    """`pause_s`: clients wait up to that before they come back."""

    what: str
    pause_s: float
    connect_rate: str


_STORMS = (
    _Storm("all at once", 0.0, "5000"),
    _Storm("all at once, 500 connections/s a node let in", 0.0, "500"),
    _Storm("each after a pause of up to 5 s", 5.0, "5000"),
)


async def run(bench: Bench) -> Result:
    """Seconds until all have a session again, and what others saw of it."""
    bus = bench.buses[-1]
    figures = [await _measure(bench, bus, storm) for storm in _STORMS]
    return Result("storm", f"Reconnect storm of {_HERD:,} on {bus}", tuple(figures))


async def _measure(bench: Bench, bus: str, storm: _Storm) -> Figure:
    async with cluster(bench, bus=bus, store_cores=BOTH_CORES) as parts:
        doomed, *others = [
            await parts.gateway(BOTH_CORES, PUSH_CONNECT_RATE=rate, PUSH_LEASE="10")
            for rate in ("0", storm.connect_rate, storm.connect_rate)
        ]
        dispatcher = await parts.dispatcher(BOTH_CORES, PUSH_LEASE="10")
        elsewhere = [option for node in others for option in ("-O", str(node.port))]
        herd_options = [
            "-R",
            "-S",
            "4",
            "-P",
            "/websocket?clientId=h%d&ack=1",
            "-a",
            "-c",
            "128",
            "-J",
            str(storm.pause_s),
        ]
        steady_options = ["-R", "-P", "/websocket?clientId=s%d&ack=1", "-a", "-q", '"n":', "-L", '"t":']
        send = ["-P", "/message/send", "-c", "32", "-n", str(_STEADY), "-r", _RATE, "-d", "600", "-l", "100"]
        send += ["-b", '{"to":"s%d","msg":{"n":%n,"t":%t,"text":"%p"}}']
        async with (
            wsload(parts.folder, doomed.port, *herd_options, *elsewhere, cores=BOTH_CORES) as herd,
            wsload(parts.folder, others[0].port, *steady_options, cores=BOTH_CORES) as steady,
        ):
            await steady.connect(_STEADY)
            async with httppub(parts.folder, dispatcher.port, *send, cores=BOTH_CORES):
                await herd.connect(_HERD)
                calm = await steady.ask(f"run {_CALM_S}")
                await herd.ask("reset")
                watched = asyncio.create_task(_until_back(herd))
                doomed.child.process.kill()
                meanwhile = await _latency_until(steady, watched)
                back = await watched
        peak = max(peak_bytes(node.child.pid) for node in others)
    return _figure(storm, calm, meanwhile, back, peak)


async def _until_back(herd: Wsload) -> Numbers:
    return await herd.ask(f"back {_HERD} {_BACK_S}", _BACK_S + 10)


async def _latency_until(steady: Wsload, done: asyncio.Task[Numbers]) -> Numbers:
    """Latencies of messages while the clients come back; at least a second of them."""
    await steady.ask("reset")
    await asyncio.wait((done,))
    return await steady.ask("wait 18446744073709551615 0.5")


def _figure(storm: _Storm, calm: Numbers, meanwhile: Numbers, back: Numbers, peak: int) -> Figure:
    return Figure(
        f"{storm.what}: until all are back",
        "s",
        (back["all_s"],),
        "all of them",
        {
            "lost their node": back["lost"],
            "still away": back["away"],
            "half back after s": back["half_s"],
            "9 in 10 after s": back["most_s"],
            "refused with 503": back["refused"],
            "of them without Retry-After": back["refused_untold"],
            "messages meanwhile": meanwhile["messages"],
            "gaps": meanwhile["gaps"],
            "p50 before ms": calm["p50_us"] / 1e3,
            "p99 before ms": calm["p99_us"] / 1e3,
            "p50 meanwhile ms": meanwhile["p50_us"] / 1e3,
            "p99 meanwhile ms": meanwhile["p99_us"] / 1e3,
            "longest meanwhile ms": meanwhile["max_us"] / 1e3,
            "longest silence of a client s": meanwhile["silence_s"],
            "node peak MiB": peak / (1 << 20),
        },
    )
