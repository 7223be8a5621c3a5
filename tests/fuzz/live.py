"""
Garbage over real sockets, to all ports of a node and a dispatcher: nobody ends, leaks or fails inside.

    python -m tests.fuzz.live [--minutes 3] [--seed N]

starts a Valkey, a node and a dispatcher, throws everything below at both, again and again, and prints what memory they
take before, meanwhile and after. `tests/integration/test_garbage.py` is the short version.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import random
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import dialects, http_bodies
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.valkey import running_valkey

_SILENCE_S = 0.3
_AT_ONCE = 16
_UPGRADE = (
    b"GET /websocket?clientId=%b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_INSIDE = ("Traceback", "the layer above failed", "request_failed", "_failed")
_BODIES = tuple(seed[1:] for seed in http_bodies.TARGET.seeds if seed[:1] in b"\0\1")
_PATHS = (
    *(b"/message/send", b"/message/sendList", b"/server/get?clientId=a", b"/v1/groups", b"/v1/groups/g/members"),
    *(b"/v1/broadcasts?limit=1", b"/v1/clients/online", b"/v1/nodes", b"/healthz", b"/openapi.json", b"/v1/stream"),
)


@dataclass(slots=True)
class Peer:
    """A stranger's connection, with the dice that decide what it does."""

    dice: random.Random
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        """In pieces or whole."""
        size = self.dice.choice((1, 7, 100, 1400, 1 << 20))
        for at in range(0, len(data), max(size, len(data) // 64)):
            self.writer.write(data[at : at + max(size, len(data) // 64)])
            if size < 1 << 20:
                await self.writer.drain()

    async def hear(self) -> bytes:
        """What comes until it is silent for a moment."""
        heard = b""
        with contextlib.suppress(TimeoutError):
            while piece := await asyncio.wait_for(self.reader.read(1 << 16), _SILENCE_S):
                heard = (heard + piece)[-4096:]
        return heard

    def leave(self) -> None:
        """With a FIN, or with a reset."""
        if self.dice.random() < 0.4 and not self.writer.is_closing():
            sock = self.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other side was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        self.writer.close()


Attack = Callable[[Peer], Awaitable[None]]


# -- on both ---------------------------------------------------------------------------------------------------


async def garbage(peer: Peer) -> None:
    await peer.say(peer.dice.randbytes(peer.dice.choice((1, 10, 500, 9000, 100_000))))
    await peer.hear()


async def silence(peer: Peer) -> None:
    await asyncio.sleep(peer.dice.random() * _SILENCE_S)


def changed(dice: random.Random, data: bytes) -> bytes:
    """Some octets replaced, taken out or doubled, sometimes the end cut off."""
    octets = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 5, 20))):
        at = dice.randrange(len(octets) + 1)
        octets[at : at + dice.choice((0, 1, 1, 4))] = dice.choice(
            (b"", dice.randbytes(1), b"\r\n", b"\0", b"\xff", b'"', b"[" * 100, bytes(octets[at : at + 9]))
        )
    return bytes(octets[: dice.randrange(len(octets) + 1)] if dice.random() < 0.2 else octets)


# -- on a node -------------------------------------------------------------------------------------------------


def client_frame(dice: random.Random, first: int, payload: bytes) -> bytes:
    mask, size = dice.randbytes(4), len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = b"\xfe" + size.to_bytes(2) if size < 65536 else b"\xff" + size.to_bytes(8)
    return bytes((first,)) + length + mask + bytes(octet ^ mask[at & 3] for at, octet in enumerate(payload))


async def _open(peer: Peer) -> None:
    await peer.say(_UPGRADE % b"fuzz-%d" % peer.dice.randrange(50))
    await peer.reader.readuntil(b"\r\n\r\n")


async def bad_head(peer: Peer) -> None:
    await peer.say(changed(peer.dice, _UPGRADE % b"a") + changed(peer.dice, client_frame(peer.dice, 0x81, b"{}")))
    await peer.hear()


async def garbage_behind_a_handshake(peer: Peer) -> None:
    await _open(peer)
    await garbage(peer)


async def frames_of_all_kinds(peer: Peer) -> None:
    await _open(peer)
    dice = peer.dice
    for _ in range(dice.randrange(30)):
        first = dice.choice((0x81, 0x81, 0x01, 0x00, 0x80, 0x82, 0x89, 0x8A, 0x88, dice.randrange(256)))
        frame = client_frame(dice, first, dice.randbytes(dice.choice((0, 1, 2, 125, 126, 70_000))))
        await peer.say(changed(dice, frame) if dice.random() < 0.2 else frame)
    await peer.hear()


async def both_dialects(peer: Peer) -> None:
    await _open(peer)
    for _ in range(peer.dice.randrange(1, 40)):
        text = changed(peer.dice, peer.dice.choice(dialects.TARGET.seeds))
        await peer.say(client_frame(peer.dice, 0x81, text.decode(errors="replace").encode()))
    await peer.hear()


async def endless_message(peer: Peer) -> None:
    await _open(peer)
    await peer.say(client_frame(peer.dice, 0x01, b""))
    for _ in range(2000):
        await peer.say(client_frame(peer.dice, 0x00, peer.dice.choice((b"", b"a"))))
    await peer.hear()


async def a_length_that_never_comes(peer: Peer) -> None:
    await _open(peer)
    await peer.say(b"\x81\xff" + peer.dice.choice((200_000, 1 << 30, (1 << 63) - 1, 1 << 63)).to_bytes(8) + b"abcd" * 9)
    await peer.hear()


async def never_reads(peer: Peer) -> None:
    await _open(peer)
    await peer.say(client_frame(peer.dice, 0x81, b'{"msgType":3,"messageId":"%b"}' % (b"m" * 900)) * 400)
    await asyncio.sleep(_SILENCE_S)


async def deep_and_escaped(peer: Peer) -> None:
    await _open(peer)
    text = b"[" * 65 + b'"' + b'\\"' * 120_000
    await peer.say(client_frame(peer.dice, 0x81, peer.dice.choice((text, b"[" * 200_000, b'{"a":' * 40_000))))
    await peer.hear()


ON_A_NODE: tuple[Attack, ...] = (
    *(garbage, silence, bad_head, garbage_behind_a_handshake, frames_of_all_kinds, both_dialects, endless_message),
    *(a_length_that_never_comes, never_reads, deep_and_escaped),
)


# -- on a dispatcher, and a node's admin port -----------------------------------------------------------------


def request(dice: random.Random, method: bytes, path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: a", b"Content-Type: application/json", *headers]
    if not any(header.startswith(b"Transfer-Encoding") for header in headers):
        lines.append(b"Content-Length: %d" % (len(body) + dice.choice((0, 0, 0, 0, 1, -1, 1 << 40))))
    return b"\r\n".join((*lines, b"", body))


async def bad_bodies(peer: Peer) -> None:
    for _ in range(peer.dice.randrange(1, 8)):
        body = changed(peer.dice, peer.dice.choice(_BODIES))
        await peer.say(request(peer.dice, b"POST", peer.dice.choice(_PATHS), body))
    await peer.hear()


async def bad_requests(peer: Peer) -> None:
    dice = peer.dice
    method = dice.choice((b"GET", b"POST", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD", b"PUT", b"X"))
    extra = dice.choice((b"X: y", b"Expect: 100-continue", b"Connection: close", b"Authorization: Bearer \xff\xfe"))
    await peer.say(changed(dice, request(dice, method, dice.choice(_PATHS), dice.choice(_BODIES), extra)))
    await peer.hear()


async def bad_chunks(peer: Peer) -> None:
    dice = peer.dice
    body = dice.choice((b"5\r\nabcde\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"-1\r\n", b"5;a=b\r\nab", b"zz\r\n\r\n"))
    await peer.say(changed(dice, request(dice, b"POST", b"/message/send", body, b"Transfer-Encoding: chunked")))
    await peer.hear()


async def bad_encodings(peer: Peer) -> None:
    encoding = peer.dice.choice((b"gzip", b"deflate", b"br", b"zstd", b"x"))
    body = peer.dice.choice((_BOMB, peer.dice.randbytes(300), gzip.compress(peer.dice.choice(_BODIES))))
    head = request(peer.dice, b"POST", b"/message/send", body, b"Content-Encoding: " + encoding)
    await peer.say(changed(peer.dice, head) if len(body) < 1000 else head)
    await peer.hear()


async def long_paths(peer: Peer) -> None:
    dice = peer.dice
    path = b"/v1/" + dice.choice((b"a/" * 3000, b"%ff" * 900, b"groups/%00", b"groups/" + b"a" * 7000, b"%2f" * 500))
    await peer.say(request(dice, b"GET", path + dice.choice((b"", b"?" + b"a=b&" * 1500)), b""))
    await peer.hear()


async def pipelined(peer: Peer) -> None:
    await peer.say(request(peer.dice, b"POST", b"/message/send", _BODIES[0]) * peer.dice.randrange(1, 60))
    await peer.hear()


_BOMB = gzip.compress(bytes(64 << 20))
ON_HTTP: tuple[Attack, ...] = (
    *(garbage, silence, bad_bodies, bad_requests, bad_chunks, bad_encodings, long_paths, pipelined),
)


# -- the whole -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Storm:
    """Attacks on both; `memory` in MiB by role: the highest that was seen."""

    cluster: Cluster
    seed: int
    attacks: int = 0
    memory: dict[str, float] = field(default_factory=dict)

    async def round(self, number: int) -> None:
        """Every attack once, in some order, so many at a time."""
        dice = random.Random(f"{self.seed} {number}")
        node, dispatcher = self.cluster.nodes[0].ready, self.cluster.dispatchers[0].ready
        plan = [(int(node["port"]), attack) for attack in ON_A_NODE]
        plan += [(int(port), attack) for port in (dispatcher["http_port"], node["admin_port"]) for attack in ON_HTTP]
        dice.shuffle(plan)
        for at in range(0, len(plan), _AT_ONCE):
            some = (_attack(random.Random(dice.random()), *one) for one in plan[at : at + _AT_ONCE])
            await asyncio.gather(*some)
            self.look()
        self.attacks += len(plan)

    def look(self) -> None:
        for name, role in self.roles.items():
            self.memory[name] = max(self.memory.get(name, 0.0), resident_mib(role.pid))

    @property
    def roles(self) -> dict[str, Role]:
        return {"node": self.cluster.nodes[0], "dispatcher": self.cluster.dispatchers[0]}

    def faults_inside(self) -> list[str]:
        """Log lines that say something failed inside a role, which no input may bring about."""
        return [
            text
            for role in self.roles.values()
            for line in role.log
            for text in (repr(line),)
            if line.get("level") in ("error", "critical") or any(word in text for word in _INSIDE)
        ]


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)


async def _attack(dice: random.Random, port: int, attack: Attack) -> None:
    """The connection may break at any point; that is what a server does with such peers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Peer(dice, reader, writer)
    try:
        async with asyncio.timeout(20):
            await attack(peer)
    except (OSError, EOFError, asyncio.LimitOverrunError):
        pass
    finally:
        peer.leave()


async def _run(minutes: float, seed: int) -> int:
    with tempfile.TemporaryDirectory() as place:
        async with running_valkey(place) as valkey, running_cluster(valkey.url, valkey.url, "live") as cluster:
            storm = Storm(cluster, seed)
            await storm.round(0)
            await asyncio.sleep(2)
            calm = {name: resident_mib(role.pid) for name, role in storm.roles.items()}
            until, number = time.monotonic() + 60 * minutes, 1
            while time.monotonic() < until:
                await storm.round(number)
                number += 1
            await asyncio.sleep(2)
            for name, role in storm.roles.items():
                after = resident_mib(role.pid)
                print(f"{name}: {calm[name]:.0f} MiB calm, {storm.memory[name]:.0f} at most, {after:.0f} after")
            faults = storm.faults_inside()
            print(f"seed {seed}: {storm.attacks} attacks in {number} rounds, {len(faults)} faults inside")
            print("\n".join(faults[:20]))
            return int(bool(faults))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    options = parser.parse_args()
    return asyncio.run(_run(options.minutes, options.seed))


if __name__ == "__main__":
    sys.exit(main())
