"""
An echo server on the real connection: `python -m tests.conformance.echo_server` prints `ready port=N`, runs until
its standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import uvloop

from gateway_node.websocket.connection import Connection
from gateway_node.websocket.frames import binary_frame, text_frame
from gateway_node.websocket.gate import Gate, Limits
from gateway_node.websocket.handshake import Request
from gateway_node.websocket.listener import listening_socket, serve

TICK_S = 0.1

# Autobahn sends messages of 16 MiB, some in fragments of 64 bytes.
LIMITS = Limits(max_message=32 << 20, max_fragments=1 << 20, max_outbox_bytes=64 << 20)


class Echo:
    """Accepts every good handshake and sends every message back."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time()

    def request_received(self, connection: Connection, request: Request) -> None:
        connection.accept()

    def message_received(self, connection: Connection, data: bytes) -> None:
        connection.send(text_frame(data))

    def binary_received(self, connection: Connection, data: bytes) -> None:
        connection.send(binary_frame(data))

    def limit_exceeded(self, connection: Connection, limit: str) -> None:
        return

    def connection_closed(self, connection: Connection, code: int, reason: str, clean: bool) -> None:
        return

    def drained(self, connection: Connection) -> None:
        return


async def run() -> None:
    loop = asyncio.get_running_loop()
    echo = Echo()
    gate = Gate(echo, loop, LIMITS, on_binary=echo.binary_received)
    sock = listening_socket("127.0.0.1", 0)
    server = await serve(gate, sock)
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)

    def tick() -> None:
        echo.now = loop.time()
        gate.tick(echo.now)
        loop.call_later(TICK_S, tick)

    tick()
    print(f"ready port={sock.getsockname()[1]}", flush=True)  # noqa: T201 - the harness waits for this line
    await over.wait()
    server.close()


def main() -> None:
    gc.freeze()
    uvloop.run(run())


if __name__ == "__main__":
    main()
