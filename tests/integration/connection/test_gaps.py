"""Records of an audience that are missing, step by step: a real connection, a real timeline on Valkey, no sweep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from pushfleet.local_valkey import LocalValkey
from shared.cursors import Memberships
from shared.envelope import Trigger, business_template
from shared.ids import MessageIdMint
from shared.keys import EVERYONE
from shared.record import AudienceLine
from shared.settings import load
from shared.store import Store
from shared.timeline import AudienceMessage, Timelines
from tests.harness.connection import Node, Peer, soon, until
from tests.harness.node_parts import Parts, node_parts

CLIENT = "alice"
SESSION = b"127.0.0.1:9000_alice_20261124000000000"
_MORE_THAN_A_WRITE = 33_000
_mint = MessageIdMint().mint


@asynccontextmanager
async def parts_of(store: Store) -> AsyncIterator[Parts]:
    """Of a node that is in the audience of everyone."""
    parts = node_parts(store, load(GatewaySettings, {"PUSH_AUTH": "off"}))
    parts.audiences.enter_all()
    await until(lambda: not parts.audiences.everyone.entering)
    try:
        yield parts
    finally:
        await parts.close()


async def add(timelines: Timelines, msg: str) -> AudienceLine:
    """A message to everyone; the line that goes to each node."""
    message_id, expires_ms = _mint(), time.time_ns() // 1_000_000 + 60_000
    template = business_template(
        active_time_ms=1,
        sender="s",
        message_id=message_id,
        msg=orjson.dumps(msg),
        request_id="r",
        trigger=Trigger.HTTP,
    )
    (added,) = await timelines.add([AudienceMessage(EVERYONE, message_id, expires_ms, template)])
    return AudienceLine(expires_ms, added.order, added.after, EVERYONE, b"", template)


async def receive(peer: Peer) -> str:
    _, payload = await peer.frame()
    msg: str = orjson.loads(payload)["msg"]
    return msg


@pytest.mark.parametrize("ack", [True, False], ids=["ack", "no ack"])
async def test_a_record_that_was_lost_while_nobody_was_here_holds_up_nobody_who_comes(
    node: Node, valkey: LocalValkey, namespace: str, ack: bool
) -> None:
    """A client comes that has its message from elsewhere: the next one reaches it at once, not with a sweep."""
    store = Store(valkey.url, namespace=namespace)
    timelines = Timelines(store)
    try:
        async with parts_of(store) as parts:
            lost = await add(timelines, "1")
            peer = await node.opened()
            session = Session(SESSION, CLIENT, node.layer.connection, ack=ack, expires_s=0.0, device="")
            parts.hub.add(session)
            parts.audiences.attach(session, Memberships(0, {EVERYONE: lost.order}))
            line = await add(timelines, "2")
            await parts.fanout.receive([line], parts.audiences.turn)
            assert "2" == await receive(peer)
            line = await add(timelines, "3")
            await parts.fanout.receive([line], parts.audiences.turn)
            assert "3" == await receive(peer)
    finally:
        await store.close()


async def test_who_goes_live_between_two_writes_gets_nothing_twice(
    node: Node, valkey: LocalValkey, namespace: str
) -> None:
    """It has read from the timeline what is being written to the others, who do not acknowledge either."""
    store = Store(valkey.url, namespace=namespace)
    timelines = Timelines(store)
    large = ["a" * _MORE_THAN_A_WRITE, "b" * _MORE_THAN_A_WRITE]
    peers, sessions = [], []
    try:
        async with parts_of(store) as parts:
            for name in (b"first", b"second"):
                peers.append(await node.opened())
                sessions.append(Session(name, CLIENT, node.layer.connection, ack=False, expires_s=0.0, device=""))
                parts.hub.add(sessions[-1])
            parts.audiences.attach(sessions[0], Memberships(0, {EVERYONE: 0}))
            lines = [await add(timelines, msg) for msg in large]

            async def turn() -> None:
                """The other client has just come, and reads the timeline."""
                if not sessions[1].cursors:
                    parts.audiences.attach(sessions[1], Memberships(0, {EVERYONE: 0}))
                    await until(lambda: sessions[1].cursors[EVERYONE].live)

            await parts.fanout.receive(lines, turn)
            await parts.fanout.receive([await add(timelines, "3")], turn)
            assert 2 * [[*large, "3"]] == [[await receive(peer) for _ in range(3)] for peer in peers]
    finally:
        await store.close()


async def test_what_was_read_before_the_lease_was_lost_is_not_sent(
    node: Node, valkey: LocalValkey, namespace: str
) -> None:
    """The node was stopped between its question and the answer; meanwhile its client got the message elsewhere."""
    store = Store(valkey.url, namespace=namespace)
    timelines = Timelines(store)
    try:
        async with parts_of(store) as parts:
            old = await add(timelines, "old")
            await parts.fanout.receive([old], parts.audiences.turn)
            peer = await node.opened()
            session = Session(SESSION, CLIENT, node.layer.connection, ack=True, expires_s=0.0, device="")
            parts.hub.add(session)
            turn, was_lost = parts.audiences.turn, asyncio.Event()

            async def lose() -> None:
                if not was_lost.is_set():
                    parts.audiences.suspend_all()
                    was_lost.set()
                await turn()

            parts.audiences.turn = lose
            parts.audiences.attach(session, Memberships(0, {EVERYONE: 0}))
            await soon(was_lost.wait())
            parts.audiences.attach(session, Memberships(0, {EVERYONE: old.order}))
            await until(lambda: session.cursors[EVERYONE].live)
            await parts.fanout.receive([await add(timelines, "new")], turn)
            assert "new" == await receive(peer)
    finally:
        await store.close()
