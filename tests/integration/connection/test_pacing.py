"""Pacing on real sockets: when the next part waits, for whom it does not, and what all outboxes may hold together."""

from __future__ import annotations

import asyncio

from gateway_node.pacing import Pacing
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.frames import text_frame
from tests.harness.connection import CLOSE, LIMITS, TEXT, Node, Peer, soon

FRAME = text_frame(b"x" * 1000)
PLENTY = 1 << 30
_ENOUGH = 100  # frames that no kernel takes with a small receive buffer and a client that does not read


async def open_peers(node: Node, count: int) -> list[tuple[Peer, Connection]]:
    """Peers with small receive buffers and their server ends."""
    opened = []
    for _ in range(count):
        peer = await node.opened(receive_buffer=8192)
        opened.append((peer, node.layer.connection))
    return opened


async def block(node: Node, connections: list[Connection], frames: int = _ENOUGH) -> None:
    for connection in connections:
        for _ in range(frames):
            connection.send(FRAME)
    await node.turn()
    assert all(connection.blocked for connection in connections)


async def test_nobody_waits_while_the_kernels_take_everything(node: Node) -> None:
    """What a client reads never holds up the next part."""
    opened = await open_peers(node, 2)
    pacing = Pacing(node.gate, PLENTY)
    for _, connection in opened:
        connection.send(FRAME)
    await node.turn()
    pacing.handed_out = PLENTY
    assert not pacing.is_due()


async def test_one_of_many_that_does_not_read_holds_up_nobody(node: Node) -> None:
    """Half may be blocked."""
    opened = await open_peers(node, 4)
    pacing = Pacing(node.gate, PLENTY)
    await block(node, [connection for _, connection in opened[:2]])
    assert not pacing.is_due()
    await block(node, [opened[2][1]])
    assert pacing.is_due()


async def test_it_waits_until_half_of_them_have_read(node: Node) -> None:
    """As soon as the median has been taken from, and not before."""
    opened = await open_peers(node, 4)
    pacing = Pacing(node.gate, PLENTY, stalled_s=3600)
    await block(node, [connection for _, connection in opened])
    waiting = asyncio.create_task(pacing.until_room())
    await opened[0][0].take(_ENOUGH * len(FRAME))
    await node.turn()
    assert not waiting.done()
    await opened[1][0].take(_ENOUGH * len(FRAME))
    await soon(waiting)
    assert (False, False) == (opened[0][1].blocked, opened[1][1].blocked)
    assert (True, True) == (opened[2][1].blocked, opened[3][1].blocked)


async def test_a_node_full_of_frozen_clients_goes_on(node: Node) -> None:
    """Those from which the kernel takes nothing for a while do not count; nor do they cost the wait a second time."""
    opened = await open_peers(node, 4)
    pacing = Pacing(node.gate, PLENTY, stalled_s=0.2)
    await block(node, [connection for _, connection in opened[:3]])
    await soon(pacing.until_room())
    assert not pacing.is_due()
    assert all(connection.open for _, connection in opened)


async def test_who_reads_slowly_is_not_frozen(node: Node) -> None:
    """As long as something is taken now and then, it goes on waiting."""
    opened = await open_peers(node, 1)
    peer, connection = opened[0]
    pacing = Pacing(node.gate, PLENTY, stalled_s=0.5)
    await block(node, [connection], 150)
    waiting = asyncio.create_task(pacing.until_room())
    for _ in range(15):
        await peer.take(9 * len(FRAME))
        await asyncio.wait((waiting,), timeout=0.05)
        assert not waiting.done() or not connection.blocked
    await peer.take(15 * len(FRAME))
    await soon(waiting)
    assert not connection.blocked


async def test_a_quarter_of_an_outbox_costs_a_moment(node: Node) -> None:
    """Kernels buffer unequally: the one of three that is blocked gets the time to read, too, once for each quarter."""
    opened = await open_peers(node, 3)
    pacing = Pacing(node.gate, PLENTY)
    await block(node, [opened[0][1]])
    pacing.handed_out = LIMITS.max_outbox_bytes // 4 - 1
    assert not pacing.is_due()
    pacing.handed_out += 1
    assert pacing.is_due()
    waiting = asyncio.create_task(pacing.until_room())
    await node.turn()
    assert not waiting.done()
    await opened[0][0].take(_ENOUGH * len(FRAME))
    await soon(waiting)
    assert not opened[0][1].blocked


async def test_all_outboxes_together_are_bounded(node: Node) -> None:
    """Over the bound the next part waits, and those that stalled are cut with 4008, the largest first, until half."""
    opened = await open_peers(node, 6)
    pacing = Pacing(node.gate, 120_000, stalled_s=0.2)
    await block(node, [opened[0][1]], 150)
    await block(node, [opened[1][1]], 80)
    assert pacing.is_due()
    await soon(pacing.until_room())
    assert [False, True, True] == [connection.open for _, connection in opened[:3]]
    while (frame := await opened[0][0].frame())[0] != CLOSE:
        assert (TEXT, b"x" * 1000) == frame
    assert b"\x0f\xa8slow consumer" == frame[1]


async def test_the_end_of_a_blocked_connection_ends_the_wait(node: Node) -> None:
    """Who is gone is not waited for."""
    (_, connection), *_ = await open_peers(node, 1)
    pacing = Pacing(node.gate, PLENTY, stalled_s=3600)
    await block(node, [connection])
    waiting = asyncio.create_task(pacing.until_room())
    await node.turn()
    connection.abort()
    await soon(waiting)
    assert 0 == len(node.gate.blocked)
