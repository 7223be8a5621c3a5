"""What a dead node left unread, line by line: on real topics, without the processes around it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Outbox, OutboxFull
from dispatcher.publisher import Publisher
from dispatcher.reroute import Reroute
from pushfleet.local_valkey import LocalValkey
from shared.bus import Record, open_bus
from shared.envelope import Trigger, business_template, fill_template
from shared.errors import TopicMissing
from shared.record import Kind, audience_head, encode_line, join_lines, line_head
from tests.harness.dispatcher import FakeNode, Site

pytestmark = pytest.mark.asyncio(loop_scope="session")
LATER_MS = 9_000_000_000_000
QUEUES = 3


@dataclass
class Dead:
    """A node that died, what reads its topic, and how often that was asked whether to go on."""

    site: Site
    node: FakeNode
    nodes: LiveNodes
    reroute: Reroute
    asked: int = 0

    async def go_on(self) -> None:
        self.asked += 1

    async def empty(self) -> int:
        return await self.reroute.empty(self.node.topic, self.go_on)

    async def publish(self, *lines: bytes, queue: int = 0) -> None:
        await self.site.bus.publish(self.node.topic, [Record(join_lines(lines), queue=queue)])


@pytest_asyncio.fixture(loop_scope="session")
async def dead(valkey: LocalValkey, namespace: str) -> AsyncIterator[Dead]:
    site = Site(valkey.url, namespace)
    nodes = LiveNodes(site.store, site.registry, namespace=namespace, lease_s=60)
    await nodes.start()
    outbox = Outbox(site.store, most_bytes=1 << 20)
    publisher = Publisher(site.bus, outbox)
    node = site.silent_node()
    await site.bus.ensure_topic(node.topic, queues=QUEUES)
    yield Dead(site, node, nodes, Reroute(site.bus, site.inbox, nodes, publisher))
    await publisher.close()
    await outbox.close()
    await nodes.close()
    await site.close()


def message_id(number: int) -> str:
    return f"{number:032x}"


def envelope(number: int, session_id: str, client_id: str) -> bytes:
    template = business_template(
        active_time_ms=1,
        sender="me",
        message_id=message_id(number),
        msg=b'{"n":\n%d}' % number,
        request_id="r",
        trigger=Trigger.HTTP,
    )
    return fill_template(template, session_id.encode(), client_id.encode())


def line(number: int, session_id: str, client_id: str, kind: Kind = Kind.ONLINE, expires_ms: int = LATER_MS) -> bytes:
    return encode_line(line_head(kind, expires_ms, 0), envelope(number, session_id, client_id))


async def test_only_what_nobody_stored_goes_elsewhere(dead: Dead) -> None:
    """Neither direct lines nor those for all or to close, nor expired ones; what is no line stops nothing."""
    old = await dead.node.connect("alice")
    node = await dead.site.node()
    new = await node.connect("alice")
    now_ms = time.time_ns() // 1_000_000
    await dead.publish(
        line(1, old, "alice"),
        line(2, old, "alice", Kind.DIRECT),
        encode_line(audience_head(LATER_MS, 0, 0, "*", ""), envelope(3, old, "alice")),
        encode_line(line_head(Kind.CLOSE, LATER_MS, 0), b'{"sessionId":"%b","code":4003}' % old.encode()),
        line(4, old, "alice", expires_ms=now_ms - 1),
        b"not a line",
        encode_line(line_head(Kind.ONLINE, LATER_MS, 0), b'{"no":"session"}'),
        line(5, old, "alice"),
    )
    await dead.publish(b"", queue=1)
    assert 2 == await dead.empty()
    await node.lines_of(message_id(5))
    assert [("online", LATER_MS, 0)] * 2 == [(got.kind, got.expires_ms, got.place) for got in node.lines]
    assert [envelope(number, new, "alice") for number in (1, 5)] == [got.envelope for got in node.lines]


async def test_it_goes_to_every_session_that_lives(dead: Dead) -> None:
    """On one node and several; not to nodes that died, too; who has no session gets nothing and nothing is stored."""
    one, other, gone = await dead.site.node(), await dead.site.node(), dead.site.silent_node()
    places = [(node, await node.connect("alice")) for node in (one, one, other)]
    await gone.connect("alice")
    old = await dead.node.connect("alice")
    await dead.publish(line(1, old, "alice"), line(2, f"{dead.node.node_id}_bob_20260101000000000", "bob"))
    assert 3 == await dead.empty()
    got = [(node, each) for node, count in ((one, 2), (other, 1)) for each in await node.lines_of(message_id(1), count)]
    assert {session for _, session in places} == {each.fields["sessionId"] for _, each in got}
    assert [] == await dead.site.held("alice") == await dead.site.held("bob")


async def test_a_topic_is_read_to_its_end(dead: Dead) -> None:
    """Thousands of lines in many records and all queues, in order for each target."""
    node = await dead.site.node()
    old = await dead.node.connect("alice")
    await node.connect("alice")
    count = 3000
    for start in range(0, count, 100):
        some = [line(number, old, "alice") for number in range(start, start + 100)]
        await dead.publish(*some, queue=2)
    assert count == await dead.empty()
    await node.lines_of(message_id(count - 1))
    assert [message_id(number) for number in range(count)] == [each.fields["messageId"] for each in node.lines]
    assert dead.asked > 1


async def test_who_begins_again_does_not_begin_at_the_beginning(dead: Dead) -> None:
    """A janitor that was stopped in between leaves what it rerouted behind it."""
    node = await dead.site.node()
    old = await dead.node.connect("alice")
    await node.connect("alice")
    await dead.publish(line(1, old, "alice"))

    async def stop_at_the_second_step() -> None:
        dead.asked += 1
        if dead.asked == 2:
            raise InterruptedError

    await dead.site.bus.publish(dead.node.topic, [Record(b"more than a fetch brings", queue=1)] * 2000)
    with pytest.raises(InterruptedError):
        await dead.reroute.empty(dead.node.topic, stop_at_the_second_step)
    await dead.publish(line(2, old, "alice"))
    await dead.empty()
    await node.lines_of(message_id(2))
    assert [message_id(1), message_id(2)] == [each.fields["messageId"] for each in node.lines]


async def test_what_could_not_be_published_is_not_done_with(dead: Dead) -> None:
    """The bus is away and the outbox full: the next try finds it again."""
    node = await dead.site.node()
    old = await dead.node.connect("alice")
    await node.connect("alice")
    await dead.publish(line(1, old, "alice"))
    away = open_bus("redis://127.0.0.1:1", namespace=dead.site.namespace)
    outbox = Outbox(dead.site.store, most_bytes=1)
    await outbox.add(node.topic, [], force=True)
    publisher = Publisher(away, outbox)
    with pytest.raises(OutboxFull):
        await Reroute(dead.site.bus, dead.site.inbox, dead.nodes, publisher).empty(dead.node.topic, dead.go_on)
    await publisher.close()
    await away.close()
    await dead.site.store.redis.delete(*dead.site.store.keys.outbox)
    assert 1 == await dead.empty()
    await node.lines_of(message_id(1))


async def test_a_topic_that_is_gone_is_named(dead: Dead) -> None:
    """TopicMissing: its node deleted it, or an earlier janitor."""
    await dead.site.bus.drop_topic(dead.node.topic)
    with pytest.raises(TopicMissing):
        await dead.empty()


async def test_another_node_that_ends_meanwhile_stops_nothing(dead: Dead) -> None:
    """Its lease lives and its topic is gone: what was for it is let go."""
    ending = dead.site.silent_node()
    await ending.lease()
    node = await dead.site.node()
    for each in (ending, node):
        await each.connect("alice")
    old = await dead.node.connect("alice")
    await dead.publish(line(1, old, "alice"))
    assert 1 == await dead.empty()
    await node.lines_of(message_id(1))
