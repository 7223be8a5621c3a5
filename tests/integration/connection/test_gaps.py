"""Records of an audience that are missing, step by step: a real connection, a real timeline on Valkey, no sweep."""

from __future__ import annotations

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
from tests.harness.connection import Node, Peer, until
from tests.harness.node_parts import Parts, node_parts

CLIENT = "alice"
SESSION = b"127.0.0.1:9000_alice_20261124000000000"
_mint = MessageIdMint().mint


@asynccontextmanager
async def parts_of(store: Store) -> AsyncIterator[Parts]:
    """Of a node that is in the audience of everyone."""
    parts = node_parts(store, load(GatewaySettings, {"PUSH_AUTH": "off"}))
    parts.audiences.enter_all()
    await until(lambda: parts.audiences.everyone.entered)
    try:
        yield parts
    finally:
        await parts.close()


async def add(timelines: Timelines, number: int) -> AudienceLine:
    """A message to everyone; the line that goes to each node."""
    message_id, expires_ms = _mint(), time.time_ns() // 1_000_000 + 60_000
    template = business_template(
        active_time_ms=1,
        sender="s",
        message_id=message_id,
        msg=b"%d" % number,
        request_id="r",
        trigger=Trigger.HTTP,
    )
    (added,) = await timelines.add([AudienceMessage(EVERYONE, message_id, expires_ms, template)])
    return AudienceLine(expires_ms, added.order, added.after, EVERYONE, b"", template)


async def next_number(peer: Peer) -> int:
    _, payload = await peer.frame()
    number: int = orjson.loads(payload)["msg"]
    return number


@pytest.mark.parametrize("ack", [True, False], ids=["ack", "no ack"])
async def test_a_record_that_was_lost_while_nobody_was_here_holds_up_nobody_who_comes(
    node: Node, valkey: LocalValkey, namespace: str, ack: bool
) -> None:
    """A client comes that has its message from elsewhere: the next one reaches it at once, not with a sweep."""
    store = Store(valkey.url, namespace=namespace)
    timelines = Timelines(store)
    try:
        async with parts_of(store) as parts:
            lost = await add(timelines, 1)
            peer = await node.opened()
            session = Session(SESSION, CLIENT, node.layer.connection, ack=ack, expires_s=0.0, device="")
            parts.hub.add(session)
            parts.audiences.attach(session, Memberships(0, {EVERYONE: lost.order}))
            line = await add(timelines, 2)
            await parts.fanout.receive([line], parts.audiences.turn)
            assert 2 == await next_number(peer)
            line = await add(timelines, 3)
            await parts.fanout.receive([line], parts.audiences.turn)
            assert 3 == await next_number(peer)
    finally:
        await store.close()
