"""
Delivery to one session, step by step: a real connection, a real inbox on Valkey, and records in the order that hurts.

A record may come before, between and behind the slices of a replay. Whatever the order, the client gets each message
once, in the inbox's order, and none is left behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest
import pytest_asyncio

from gateway_node.delivery import Delivery
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from pushfleet.local_valkey import LocalValkey
from shared.envelope import Trigger, business_template, fill_template
from shared.ids import MessageIdMint
from shared.inbox import Inbox, Slice, StoredMessage
from shared.settings import load
from shared.store import Store
from tests.harness.connection import Node, Peer, soon, until
from tests.harness.node_parts import node_parts

CLIENT = "alice"
SESSION = b"127.0.0.1:9000_alice_20261124000000000"
_mint = MessageIdMint().mint


@dataclass
class Sent:
    """A message as the dispatcher stored it: its id, and the record's envelope, expiry and order."""

    message_id: str
    envelope: bytes
    expires_ms: int
    order: int


class Bench:
    """A session in the middle of its replay, and the means to send to it."""

    def __init__(self, peer: Peer, session: Session, delivery: Delivery, inbox: Inbox) -> None:
        self.peer = peer
        self.session = session
        self.delivery = delivery
        self.inbox = inbox

    async def store(self, number: int) -> Sent:
        message_id, expires_ms = _mint(), time.time_ns() // 1_000_000 + 60_000
        template = business_template(
            active_time_ms=1,
            sender="s",
            message_id=message_id,
            msg=b"%d" % number,
            request_id="r",
            trigger=Trigger.HTTP,
        )
        (target,) = await self.inbox.store([(CLIENT, StoredMessage(message_id, expires_ms, template))])
        return Sent(message_id, fill_template(template, SESSION, CLIENT.encode()), expires_ms, target.order)

    async def slice(self, most: int = 100) -> Slice:
        (found,) = await self.inbox.read([CLIENT], most=most, most_bytes=1 << 20)
        return found

    def record(self, sent: Sent) -> None:
        self.delivery.direct(sent.envelope, sent.expires_ms, sent.order)

    async def receive(self) -> int:
        _, payload = await self.peer.frame()
        number: int = orjson.loads(payload)["msg"]
        return number

    async def held(self) -> int:
        await soon(self.delivery.retirements.settled())
        return (await self.slice()).held


@pytest_asyncio.fixture(params=[True, False], ids=["ack", "no ack"])
async def bench(
    request: pytest.FixtureRequest, node: Node, valkey: LocalValkey, namespace: str
) -> AsyncIterator[Bench]:
    """A window of four messages."""
    settings = load(GatewaySettings, {"PUSH_AUTH": "off", "PUSH_WINDOW_MESSAGES": "4"})
    store = Store(valkey.url, namespace=namespace)
    inbox = Inbox(store)
    parts = node_parts(store, settings)
    peer = await node.opened()
    session = Session(SESSION, CLIENT, node.layer.connection, ack=request.param, expires_s=0.0, device="")
    parts.hub.add(session)
    delivery = parts.delivery
    yield Bench(peer, session, delivery, inbox)
    await delivery.close(1.0)
    await store.close()


async def test_a_record_that_comes_while_the_inbox_is_read_is_not_lost(bench: Bench) -> None:
    """Stored behind the slice, its record before the slice was replayed: the inbox is read once more."""
    await bench.store(1)
    read = await bench.slice()
    late = await bench.store(2)
    bench.record(late)
    bench.delivery.replay(bench.session, read)
    assert await bench.receive() == 1
    if bench.session.ack:
        bench.delivery.ack(bench.session, [read.messages[0].message_id])
    assert await bench.receive() == 2
    await until(lambda: not bench.session.replaying)


async def test_a_record_behind_a_replay_that_brought_its_message_is_passed_over(bench: Bench) -> None:
    """Both saw it; the client sees it once, also after it acknowledged."""
    first = await bench.store(1)
    bench.delivery.replay(bench.session, await bench.slice())
    assert await bench.receive() == 1
    bench.record(first)
    bench.delivery.ack(bench.session, [first.message_id])
    bench.record(first)
    second = await bench.store(2)
    bench.record(second)
    bench.record(second)  # the bus may bring a record twice
    assert await bench.receive() == 2
    third = await bench.store(3)
    bench.record(third)
    assert await bench.receive() == 3


async def test_what_is_acknowledged_is_retired_and_what_is_not_stays(bench: Bench) -> None:
    """By the client, or by the kernel where the client does not acknowledge."""
    bench.delivery.replay(bench.session, await bench.slice())
    sent = [await bench.store(number) for number in range(3)]
    for each in sent:
        bench.record(each)
    assert [await bench.receive() for _ in sent] == [0, 1, 2]
    if bench.session.ack:
        assert await bench.held() == 3
        bench.delivery.ack(bench.session, [sent[1].message_id])
        assert await bench.held() == 2
        left = [waiting.message_id for waiting in (await bench.slice()).messages]
        assert left == [sent[0].message_id, sent[2].message_id]
    else:
        assert await bench.held() == 0


async def test_beyond_the_window_the_inbox_is_read_as_acknowledgements_come(bench: Bench) -> None:
    """Ten messages, a window of four: never more than four unacknowledged, all ten in order."""
    bench.delivery.replay(bench.session, await bench.slice())
    sent = [await bench.store(number) for number in range(10)]
    for each in sent:
        bench.record(each)
    for number in range(10):
        assert await bench.receive() == number
        window = bench.session.window
        assert window is not None
        if bench.session.ack:
            assert len(window) <= 4
            bench.delivery.ack(bench.session, [sent[number].message_id])
    assert await bench.held() == 0


async def test_a_slice_larger_than_the_window_waits_for_acknowledgements(bench: Bench) -> None:
    """Of ten replayed at once a client that acknowledges is sent four; one that does not, all."""
    for number in range(10):
        await bench.store(number)
    bench.delivery.replay(bench.session, await bench.slice())
    window = bench.session.window

    assert window is not None
    assert len(window) == (4 if bench.session.ack else 10)
    assert bench.session.replaying == bench.session.ack


async def test_late_records_of_a_long_replay_bring_nothing_twice(bench: Bench) -> None:
    """More messages than ids are remembered: their records are known by their place in the inbox."""
    sent = [await bench.store(number) for number in range(300)]
    bench.delivery.replay(bench.session, await bench.slice(most=300))
    for number in range(300):
        assert await bench.receive() == number
        bench.delivery.ack(bench.session, [sent[number].message_id])
    await until(lambda: not bench.session.replaying)
    for each in sent:
        bench.record(each)
    bench.record(await bench.store(300))
    assert await bench.receive() == 300


async def test_a_suspended_session_is_sent_nothing_and_lets_go_of_what_was_acknowledged_elsewhere(bench: Bench) -> None:
    """Its node's lease was lost: no resend, no record; then the inbox alone says what it still has to get."""
    delivery, session = bench.delivery, bench.session
    delivery.replay(session, await bench.slice())
    sent = [await bench.store(number) for number in range(2)]
    for each in sent:
        bench.record(each)
    assert [await bench.receive() for _ in sent] == [0, 1]
    delivery.suspend(session, resync=True)
    late = await bench.store(2)
    bench.record(late)
    delivery.now += 3600
    delivery.resend_due()
    await bench.inbox.retire([(CLIENT, sent[0].message_id)])  # acknowledged on another session
    delivery.resume(session)
    assert await bench.receive() == 2
    delivery.now += 3600
    delivery.resend_due()
    if session.ack:
        assert [await bench.receive(), await bench.receive()] == [1, 2]
    after = await bench.store(3)
    delivery.ack(session, [sent[1].message_id, late.message_id])
    bench.record(after)
    assert await bench.receive() == 3


async def test_a_session_of_a_store_that_lost_its_data_keeps_its_window(bench: Bench) -> None:
    """Redis came back empty: what was sent and not acknowledged is in the window alone, and is sent again."""
    delivery, session = bench.delivery, bench.session
    delivery.replay(session, await bench.slice())
    only_copy = await bench.store(0)
    bench.record(only_copy)
    assert await bench.receive() == 0
    await bench.inbox.retire([(CLIENT, only_copy.message_id)])
    delivery.suspend(session, resync=False)
    delivery.resume(session)
    await until(lambda: not session.replaying)
    delivery.now += 3600
    delivery.resend_due()
    if session.ack:
        assert await bench.receive() == 0
    bench.record(await bench.store(1))
    assert await bench.receive() == 1


async def test_the_sweep_lacks_only_what_was_not_sent(bench: Bench) -> None:
    """Not what waits for its acknowledgement or was acknowledged just now; nothing while the inbox is being read."""
    delivery, session = bench.delivery, bench.session
    assert not delivery.lacks(session, [b"0" * 32])
    delivery.replay(session, await bench.slice())
    sent = [await bench.store(number) for number in range(3)]
    for each in sent[:2]:
        bench.record(each)
    delivery.ack(session, [sent[0].message_id])
    assert not delivery.lacks(session, [each.message_id.encode() for each in sent[:2]])
    assert delivery.lacks(session, [each.message_id.encode() for each in sent])
    delivery.fall_behind(session)
    if session.ack:
        assert [await bench.receive() for _ in sent] == [0, 1, 2]


async def test_what_was_read_before_the_lease_was_lost_is_not_sent(bench: Bench) -> None:
    """The node was stopped between its question and the answer; meanwhile its client got the message elsewhere."""
    bench.delivery.replay(bench.session, await bench.slice())
    old = await bench.store(1)
    was_lost = asyncio.Event()

    async def lose() -> None:
        if not was_lost.is_set():
            bench.delivery.suspend(bench.session, resync=True)
            await bench.inbox.retire([(CLIENT, old.message_id.encode())])
            was_lost.set()

    bench.delivery.until_clear = lose
    bench.delivery.fall_behind(bench.session)
    await soon(was_lost.wait())
    bench.delivery.resume(bench.session)
    await until(lambda: not bench.session.replaying)
    bench.record(await bench.store(2))
    assert await bench.receive() == 2
