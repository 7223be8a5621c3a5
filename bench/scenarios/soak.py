"""
Beside abuse: 2,000 clients that acknowledge get 500 messages a second, first in peace for a minute, then for ten
minutes beside everything that load/abuse.c knows, all from one address: 10,000 connects a second, made-up tokens,
slowloris, garbage, frames of a terabyte, endless fragments, floods of good frames, of pings and of bad ones. Meanwhile
a caller over its rate floods the dispatcher, and ten new clients a second connect. Then a minute of peace again.

The node has core 0; the store, the dispatcher, the clients and the abuse share core 1, where the abuse gives way to the
others at once (SCHED_IDLE), so that what the latency shows is what it does to the node.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from bench.cluster import Bench, Cluster, Role, cluster
from bench.processes import LOAD_CORE, Child, cpu_seconds, resident_bytes
from bench.results import Figure, Result
from bench.tools import Counter, Numbers, Wsload, abuse, finish, httppub, wsload
from shared.tokens import mint_token

_CLIENTS = 2_000
_RATE = 500
_ABUSERS = 500
_ITEM = '{"to":["c%d"],"msg":{"t":%t,"n":%n,"text":"%p"}}'
_FLOOD_ITEM = '{"to":["nobody"],"durable":false,"msg":"%p"}'
_ABUSE = (
    ("-c", "10000"),  # connects a second
    ("-t", "500"),  # made-up tokens a second
    ("-l", "500"),  # slowloris
    ("-g", "50"),  # garbage a second
    ("-o", "50"),  # terabyte frames a second
    ("-F", "10"),  # fragments
    ("-f", "10"),  # floods
    ("-P", "10"),  # pings
    ("-b", "10"),  # bad frames
)
_FLOOD_RATE = 2_000
_ALLOWED_RATE = 10
_NEW_EVERY_S = 0.1
_NEW_WITHIN_S = 5.0
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Site:
    parts: Cluster
    gateway: Role
    dispatcher: Role
    clients: Wsload
    counter: Counter
    keys: dict[str, str]


@dataclass(slots=True)
class _Phase:
    """What a phase showed: a window's numbers each, and what the node held at its end."""

    windows: list[Numbers] = field(default_factory=list)
    gateway_s: float = 0.0
    gateway_bytes: int = 0
    dispatcher_bytes: int = 0
    new: list[float] = field(default_factory=list)
    new_failed: int = 0


async def run(bench: Bench) -> Result:
    """p99 and memory in peace, beside abuse, and in peace again."""
    calm_windows, abuse_windows, window_s = (1, 2, 5.0) if bench.quick else (6, 60, 10.0)
    async with _site(bench) as site, _sending(site, (2 * calm_windows + abuse_windows) * (window_s + 1) + 60) as sender:
        await site.clients.ask(f"run {bench.warm_s('streams')}")
        calm = await _phase(site, calm_windows, window_s)
        seconds = abuse_windows * (window_s + 0.5)
        async with _abused(site, seconds) as (hostile, flooder):
            await asyncio.sleep(1)
            beside = await _phase(site, abuse_windows, window_s)
            attacks = await finish(hostile, seconds, refusals=True)
            flood = await finish(flooder, seconds, refusals=True)
        await asyncio.sleep(_SETTLE_S)
        after = await _phase(site, calm_windows, window_s)
        sent = await finish(sender, 120)
        numbers = await site.clients.ask(f"wait {10**9} 2")
        received = site.counter.count
    figures = _figures(calm, beside, after)
    figures.append(_loss(sent, received, numbers))
    figures.append(_abuse_figure(attacks, flood))
    return Result("soak", "Clients beside abuse", tuple(figures))


@asynccontextmanager
async def _site(bench: Bench) -> AsyncIterator[_Site]:
    keys = {name: secrets.token_urlsafe(32) for name in ("normal", "flooder")}
    async with cluster(bench, auth="jwt") as parts:
        path = parts.folder / "keys.json"
        path.write_text(json.dumps({"keys": [_entry(name, key) for name, key in keys.items()]}))
        gateway = await parts.gateway(
            PUSH_LEASE="10", PUSH_ADDRESS_CONNECTIONS="20000", PUSH_ADDRESS_CONNECT_RATE="2500"
        )
        dispatcher = await parts.dispatcher(LOAD_CORE, PUSH_LEASE="10", PUSH_API_KEYS=str(path))
        counter = Counter(parts.folder / "count")
        options = [
            *parts.client_options(tokens=_CLIENTS, acks=True),
            "-L",
            '"t":',
            "-q",
            '"n":',
            "-s",
            str(counter.path),
        ]
        async with wsload(parts.folder, gateway.port, *options) as clients:
            await clients.connect(_CLIENTS)
            yield _Site(parts, gateway, dispatcher, clients, counter, keys)


def _entry(name: str, key: str) -> dict[str, object]:
    entry: dict[str, object] = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": ["send"]}
    return entry | ({"rate": _ALLOWED_RATE} if name == "flooder" else {})


def _sending(site: _Site, seconds: float) -> AbstractAsyncContextManager[Child]:
    options = ["-P", "/message/send", "-b", _ITEM, "-n", str(_CLIENTS), "-r", str(_RATE), "-d", str(seconds)]
    options += ["-l", str(site.parts.padding('{"t":123456789012345,"n":10,"text":""}')), "-c", "32", "-w", "10"]
    options += ["-H", f"Authorization: Bearer {site.keys['normal']}"]
    return httppub(site.parts.folder, site.dispatcher.port, *options)


@asynccontextmanager
async def _abused(site: _Site, seconds: float) -> AsyncIterator[tuple[Child, Child]]:
    """Everything hostile for so many seconds: the connections, and the caller over its rate."""
    parts = site.parts
    tokens = parts.folder / "abusers"
    minted = (mint_token(parts.secret, f"abuser{k}", life_s=3600) for k in range(_ABUSERS))
    tokens.write_text("".join(f"{token}\n" for token in minted))
    kinds = [word for kind in _ABUSE for word in kind]
    flood = ["-P", "/message/send", "-b", _FLOOD_ITEM, "-r", str(_FLOOD_RATE), "-d", str(seconds), "-c", "32"]
    flood += ["-l", "100", "-H", f"Authorization: Bearer {site.keys['flooder']}"]
    async with (
        abuse(parts.folder, site.gateway.port, "-T", str(tokens), *kinds, "-d", str(seconds)) as hostile,
        httppub(parts.folder, site.dispatcher.port, *flood, cores=LOAD_CORE) as flooder,
    ):
        for child in (hostile, flooder):
            os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
        yield hostile, flooder


async def _phase(site: _Site, windows: int, seconds: float) -> _Phase:
    phase = _Phase()
    began, spent = time.monotonic(), cpu_seconds(site.gateway.child.pid)
    async with _newcomers(site, phase):
        for _ in range(windows):
            phase.windows.append(await site.clients.ask(f"run {seconds}"))
    phase.gateway_s = (cpu_seconds(site.gateway.child.pid) - spent) / (time.monotonic() - began)
    phase.gateway_bytes = resident_bytes(site.gateway.child.pid)
    phase.dispatcher_bytes = resident_bytes(site.dispatcher.child.pid)
    return phase


@asynccontextmanager
async def _newcomers(site: _Site, phase: _Phase) -> AsyncIterator[None]:
    """A new client ten times a second: is it let in, and how long does that take?"""
    task = asyncio.create_task(_come_in(site, phase), name="newcomers")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _come_in(site: _Site, phase: _Phase) -> None:
    for number in range(10**9):
        began = time.monotonic()
        token = mint_token(site.parts.secret, f"new{number}", life_s=60)
        try:
            async with asyncio.timeout(_NEW_WITHIN_S):
                await _connect_once(site.gateway.port, token)
            phase.new.append(time.monotonic() - began)
        except (OSError, TimeoutError, ValueError):
            phase.new_failed += 1
        await asyncio.sleep(_NEW_EVERY_S)


async def _connect_once(port: int, token: str) -> None:
    """Raises ValueError when it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"GET /websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        if b" 101 " not in await reader.readline():
            raise ValueError("refused")
        await reader.readuntil(b'"msgType":0')
    except asyncio.IncompleteReadError:
        raise ValueError("cut") from None
    finally:
        writer.close()


def _figures(calm: _Phase, beside: _Phase, after: _Phase) -> list[Figure]:
    figures: list[Figure] = []
    limit = 2 * max(window["p99_us"] for window in calm.windows) / 1e3
    for name, phase in (("in peace", calm), ("beside abuse", beside), ("in peace again", after)):
        target = f"<= {limit:.1f}, twice the worst in peace" if phase is beside else ""
        more = {
            "p50 ms": sum(window["p50_us"] for window in phase.windows) / len(phase.windows) / 1e3,
            "longest ms": max(window["max_us"] for window in phase.windows) / 1e3,
            "received /s": sum(window["rate"] for window in phase.windows) / len(phase.windows),
            "gateway share of a core": phase.gateway_s,
            "gateway MiB": phase.gateway_bytes / 2**20,
            "dispatcher MiB": phase.dispatcher_bytes / 2**20,
            "new clients let in": len(phase.new),
            "in ms at most": max(phase.new, default=0) * 1e3,
            "new clients not let in": phase.new_failed,
        }
        p99s = tuple(window["p99_us"] / 1e3 for window in phase.windows)
        figures.append(Figure(f"p99 {name}, windows of 10 s", "ms", p99s, target, more))
    return figures


def _loss(sent: Numbers, received: int, numbers: Numbers) -> Figure:
    more = {name: numbers[name] for name in ("gaps", "repeats", "late", "ends")}
    more |= {"answered 200": sent["ok"], "refused": sent["non200"], "received": received}
    return Figure("messages that did not arrive", "", (sent["ok"] - received,), "0", more)


def _abuse_figure(attacks: Numbers, flood: Numbers) -> Figure:
    more = {name.replace("_", " "): number for name, number in attacks.items() if name not in ("cpu_s", "secs")}
    more |= {"sends of the caller over its rate": flood["requests"], "of them 429": flood["refused_429"]}
    return Figure("connects of the abuse", "/s", (attacks["connects_tried"] / attacks["secs"],), "10,000", more)
