"""Where cursors stand, told to a real Valkey through a link that breaks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from gateway_node.audience import Audience, Cursor
from gateway_node.cursor_moves import CursorMoves
from gateway_node.session import Session
from pushfleet.local_valkey import LocalValkey
from shared.cursors import Cursors
from shared.keys import EVERYONE
from shared.store import Store
from tests.harness.connection import Node
from tests.harness.proxy import Proxy

CLIENT = "alice"
DEADLINE_S = 10.0  # a call is tried again after 3 s


async def test_a_call_that_hung_does_not_hold_up_the_next(node: Node, valkey: LocalValkey, namespace: str) -> None:
    """It took seconds until it went through at last; what is acknowledged behind it is told within a moment."""
    proxy = Proxy("127.0.0.1", urlsplit(valkey.url).port or 0)
    await proxy.start()
    direct = Store(valkey.url, namespace=namespace)
    store = Store(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace)
    key = store.keys.audiences(CLIENT)
    await direct.redis.hset(key, EVERYONE, f"{1:016d}")
    await node.opened()
    session = Session(b"s", CLIENT, node.layer.connection, ack=True, expires_s=0.0, device="")
    audience = Audience(EVERYONE)
    cursor = session.cursors[EVERYONE] = audience.members[session] = Cursor(session, audience, 1, lasting=True)
    moves = CursorMoves(Cursors(store))
    work = asyncio.create_task(moves.run())

    def move_to(order: int) -> None:
        cursor.read_to = order
        moves.mark(cursor)

    async def until_told(order: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while int(await direct.redis.hget(key, EVERYONE) or 0) != order:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    try:
        move_to(2)
        await until_told(2)
        proxy.black_hole()
        move_to(3)
        async with asyncio.timeout(DEADLINE_S):
            while await asyncio.sleep(0.01, proxy.connections) < 2:
                pass  # the second try is under way
        proxy.heal()
        await until_told(3)
        move_to(4)
        await until_told(4)
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await store.close()
        await direct.close()
        await proxy.close()


async def test_a_session_that_lags_holds_back_no_other_of_its_client(
    node: Node, valkey: LocalValkey, namespace: str
) -> None:
    """Two sessions of a client on one node, both told in one pass: the further one counts."""
    store = Store(valkey.url, namespace=namespace)
    key = store.keys.audiences(CLIENT)
    await store.redis.hset(key, EVERYONE, f"{1:016d}")
    audience, cursors = Audience(EVERYONE), []
    for name, order in ((b"ahead", 9), (b"behind", 5)):
        await node.opened()
        session = Session(name, CLIENT, node.layer.connection, ack=True, expires_s=0.0, device="")
        cursor = session.cursors[EVERYONE] = audience.members[session] = Cursor(session, audience, 1, lasting=True)
        cursor.read_to = order
        cursors.append(cursor)
    try:
        for first, second in (cursors, cursors[::-1]):
            first.saved = second.saved = 1
            await store.redis.hset(key, EVERYONE, f"{1:016d}")
            moves = CursorMoves(Cursors(store))
            assert moves._note(first)
            assert moves._note(second)
            await moves.close(DEADLINE_S)
            assert f"{9:016d}".encode() == await store.redis.hget(key, EVERYONE)
    finally:
        await store.close()
