"""Large reads: taken a slice at a time, so that nobody waits for all that another has sent."""

from __future__ import annotations

import socket

import pytest

from gateway_node.websocket import receiving
from gateway_node.websocket.connection import Connection
from tests.harness.connection import TEXT, Node, until
from tests.unit.gateway.test_frames import client_frame

COUNT = 6_000


def numbered(count: int = COUNT) -> tuple[list[bytes], bytes]:
    """Messages of different lengths, and their frames: several slices, no border of which is a frame's."""
    messages = [b"%d%s" % (number, b"x" * (number % 5)) for number in range(count)]
    return messages, b"".join(client_frame(TEXT, message) for message in messages)


async def heard(node: Node, count: int) -> list[bytes]:
    """The next messages."""
    messages = []
    for _ in range(count):
        kind, data = await node.layer.hears()
        assert "message" == kind
        assert isinstance(data, bytes)
        messages.append(data)
    return messages


def interject(sock: socket.socket, data: bytes) -> None:
    """Send at once, whatever the loop is at."""
    assert len(data) == sock.send(data)


async def test_a_large_read_arrives_whole_and_in_order(node: Node) -> None:
    """However it was cut."""
    peer = await node.opened()
    messages, frames = numbered()
    await peer.send(frames)
    assert messages == await heard(node, COUNT)
    await peer.send(client_frame(TEXT, b"more"))
    assert [b"more"] == await heard(node, 1)


async def test_another_is_served_in_between(node: Node) -> None:
    """What one sends while a large read of another is taken does not wait for its end."""
    other = await node.opened()
    flooder = await node.opened()
    wire = other.sealed(client_frame(TEXT, b"other"))
    node.layer.on_message = lambda connection, data: interject(other.sock, wire) if data == b"0" else None
    await flooder.send(numbered()[1])
    came = await heard(node, COUNT + 1)
    assert came.index(b"other") < COUNT - 1_000


async def test_a_held_connection_goes_on_where_it_stopped(node: Node) -> None:
    """Held in the middle of a slice: nothing comes, and after its release all the rest."""
    peer = await node.opened()
    messages, frames = numbered()
    connection = node.layer.connection
    node.layer.on_message = lambda connection, data: connection.hold() if data == messages[10] else None
    await peer.send(frames)
    assert messages[:11] == await heard(node, 11)
    for _ in range(20):
        await node.turn()
    assert node.layer.told.empty()
    connection.release()
    assert messages[11:] == await heard(node, COUNT - 11)


async def test_nothing_of_a_read_comes_when_the_connection_is_gone(node: Node) -> None:
    """It was cut in the middle of its read: what waits is not handed up, and takes no memory."""
    peer = await node.opened()

    def abort_at_once(connection: Connection, data: bytes) -> None:
        if data == b"0":
            connection.abort()

    node.layer.on_message = abort_at_once
    await peer.send(numbered()[1])
    await until(lambda: not node.gate.alive)
    came = []
    while not node.layer.told.empty():
        came.append(node.layer.told.get_nowait())
    assert "closed" == came[-1][0]
    assert len(came) < COUNT / 2
    assert not node.gate.unread.full
    assert node.layer.connection not in node.gate.unread


async def test_reads_are_taken_whole_while_too_much_waits(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices of all connections together are bounded; beyond it nothing is put off."""
    monkeypatch.setattr(receiving, "_MOST_UNREAD", -1)
    peer = await node.opened()
    messages, frames = numbered()
    seen = []
    node.layer.on_message = lambda connection, data: seen.append(connection in node.gate.unread)
    await peer.send(frames)
    assert messages == await heard(node, COUNT)
    assert {False} == set(seen)
