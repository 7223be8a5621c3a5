"""A message that goes to two groups of a client: one frame, one acknowledgement, two cursors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import orjson
import pytest
import pytest_asyncio

from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from pushfleet.local_valkey import LocalValkey
from shared.cursors import Cursors
from shared.envelope import Trigger, business_template
from shared.groups import Groups
from shared.ids import MessageIdMint
from shared.record import AudienceLine
from shared.settings import load
from shared.store import Store
from shared.timeline import AudienceMessage, Timelines
from tests.harness.connection import Node, Peer, soon
from tests.harness.node_parts import Parts, node_parts

CLIENT = "alice"
GROUPS = ("one", "two")
_mint = MessageIdMint().mint


@dataclass
class Bench:
    """Two groups, a client in both, and a node."""

    node: Node
    store: Store
    parts: Parts

    async def connect(self, name: bytes, for_session: tuple[str, ...] = ()) -> tuple[Peer, Session]:
        """A session as app.py begins one; in `for_session` it is by its token."""
        peer = await self.node.opened()
        session = Session(name, CLIENT, self.node.layer.connection, ack=True, expires_s=0.0, device="")
        (memberships,) = await Cursors(self.store).read([CLIENT])
        self.parts.hub.add(session)
        await self.parts.audiences.prepare((*memberships.cursors, *for_session))
        self.parts.audiences.attach(session, memberships)
        self.parts.audiences.attach_for_session(session, for_session)
        return peer, session

    async def read_again(self, session: Session) -> None:
        """As a `member` line has the node do."""
        (memberships,) = await Cursors(self.store).read([CLIENT])
        self.parts.audiences.attach(session, memberships)

    async def send(self) -> tuple[str, list[int]]:
        """To both groups; the messageId, and its order in each."""
        message_id, expires_ms = _mint(), time.time_ns() // 1_000_000 + 60_000
        template = business_template(
            active_time_ms=1, sender="s", message_id=message_id, msg=b"1", request_id="r", trigger=Trigger.HTTP
        )
        messages = [AudienceMessage(group, message_id, expires_ms, template) for group in GROUPS]
        orders = []
        for group, added in zip(GROUPS, await Timelines(self.store).add(messages), strict=True):
            line = AudienceLine(expires_ms, added.order, added.after, group, b"", template)
            await self.parts.fanout.receive([line], self.parts.audiences.turn)
            orders.append(added.order)
        return message_id, orders

    async def end(self, session: Session) -> None:
        self.parts.hub.remove(session)
        self.parts.audiences.detach(session)
        self.parts.delivery.forget(session)
        await soon(self.parts.moves.finish())

    async def cursor(self, group: str) -> int:
        (memberships,) = await Cursors(self.store).read([CLIENT])
        return memberships.cursors[group]


@pytest_asyncio.fixture
async def bench(node: Node, valkey: LocalValkey, namespace: str) -> AsyncIterator[Bench]:
    store = Store(valkey.url, namespace=namespace)
    for group in GROUPS:
        await Groups(store).create(group, name="", owner="", members=[])
    parts = node_parts(store, load(GatewaySettings, {"PUSH_AUTH": "off"}))
    moves = asyncio.create_task(parts.moves.run())
    yield Bench(node, store, parts)
    moves.cancel()
    with suppress(asyncio.CancelledError):
        await moves
    await parts.close()
    await store.close()


async def message_id_of(peer: Peer) -> str:
    _, payload = await peer.frame()
    message_id: str = orjson.loads(payload)["messageId"]
    return message_id


@pytest.mark.parametrize("how", ["it left one", "it was in one by its token"])
async def test_it_comes_again_by_the_group_that_is_left(bench: Bench, how: str) -> None:
    """Not acknowledged on a session that then ends, together with the membership that brought the message first."""
    leaves = how == "it left one"
    for group in GROUPS if leaves else GROUPS[1:]:
        await Groups(bench.store).add(group, [CLIENT])
    peer, session = await bench.connect(b"first", () if leaves else GROUPS[:1])
    message_id, _ = await bench.send()
    assert message_id == await message_id_of(peer)
    if leaves:
        await Groups(bench.store).remove(GROUPS[0], [CLIENT])
        await bench.read_again(session)
    await bench.end(session)
    peer, _ = await bench.connect(b"second")
    assert message_id == await message_id_of(peer)


async def test_one_acknowledgement_moves_both_cursors(bench: Bench) -> None:
    """Neither before, nor one alone."""
    for group in GROUPS:
        await Groups(bench.store).add(group, [CLIENT])
    peer, session = await bench.connect(b"first")
    message_id, orders = await bench.send()
    assert message_id == await message_id_of(peer)
    await soon(bench.parts.moves.finish())
    assert [True, True] == [await bench.cursor(group) < order for group, order in zip(GROUPS, orders, strict=True)]
    bench.parts.delivery.ack(session, [message_id])
    await soon(bench.parts.moves.finish())
    assert orders == [await bench.cursor(group) for group in GROUPS]
