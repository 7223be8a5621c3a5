"""
An audience on one node, step by step: a real connection, a real timeline on Valkey, and records that come late, twice,
in the wrong order or not at all, while the node is cut off and comes back.

Whatever happens, the client gets each message once, in the timeline's order, and none is left behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from gateway_node.audience import Audience
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from pushfleet.local_valkey import LocalValkey
from shared.cursors import Cursors
from shared.envelope import Trigger, business_template
from shared.groups import Groups
from shared.ids import MessageIdMint
from shared.keys import EVERYONE
from shared.record import AudienceLine
from shared.registry import Joining, Registry
from shared.settings import load
from shared.store import Store
from shared.timeline import AudienceMessage, Timelines
from tests.harness.connection import Node, Peer, soon
from tests.harness.node_parts import Parts, node_parts

CLIENT = "alice"
NODE_ID = "127.0.0.1:9000"
SESSION = f"{NODE_ID}_{CLIENT}_20261124000000000"
FAR_MS = 9_999_999_999_999
DEADLINE_S = 20.0
_mint = MessageIdMint().mint


class Bench:
    """A session of one client, its node's parts, and the means to send to everyone."""

    def __init__(self, peer: Peer, parts: Parts, session: Session, store: Store) -> None:
        self.parts = parts
        self.session = session
        self.store = store
        self.sent: list[str] = []
        self.got: list[str] = []
        self._timelines = Timelines(store)
        self._cursors = Cursors(store)
        self._registry = Registry(store)
        self._peer = peer
        self._reading = asyncio.create_task(self._read())

    @property
    def everyone(self) -> Audience:
        return self.parts.audiences.everyone

    async def _read(self) -> None:
        while True:
            _, payload = await self._peer.frame()
            self.got.append(orjson.loads(payload)["messageId"])

    async def come(self) -> None:
        """Enter the audience, register, go live."""
        self.parts.audiences.enter_all()
        await self.settled()
        await self._register()

    async def _register(self, *, again: bool = False) -> None:
        joining = [Joining(CLIENT, SESSION, start=self.parts.audiences.begin(self.session))]
        (joined,) = await self._registry.register(NODE_ID, "e1", joining, most=0, most_bytes=1, again=again)
        self.parts.audiences.attach(self.session, joined.audiences)

    async def send(self) -> AudienceLine:
        """As a dispatcher does; gives the line that is to come."""
        message_id = _mint()
        template = business_template(
            active_time_ms=1, sender="s", message_id=message_id, msg=b"1", request_id="r", trigger=Trigger.HTTP
        )
        (added,) = await self._timelines.add([AudienceMessage(EVERYONE, message_id, FAR_MS, template)])
        self.sent.append(message_id)
        return AudienceLine(FAR_MS, added.order, added.after, EVERYONE, b"", template)

    async def arrive(self, *lines: AudienceLine) -> None:
        self.parts.delivery.now = asyncio.get_running_loop().time()
        await self.parts.fanout.receive(lines, self.parts.audiences.turn)

    def ack(self, message_ids: list[str]) -> None:
        if self.session.ack:
            self.parts.delivery.ack(self.session, message_ids)

    async def cut_off(self, *, kept: bool) -> None:
        """The lease was lost, and the session is registered again."""
        self.parts.audiences.suspend_all()
        self.parts.delivery.suspend(self.session, resync=kept)
        await self.settled()
        await self._register(again=True)
        self.parts.delivery.resume(self.session)

    async def settled(self) -> None:
        await soon(self.parts.audiences.finish())
        await asyncio.sleep(0)

    async def until_all_came(self) -> None:
        """With sweeps and acknowledgements, as a node and a client do in time."""
        async with asyncio.timeout(DEADLINE_S):
            while len(set(self.got)) < len(self.sent):
                self.ack(self.got)
                self.parts.audiences.enter_all()
                await asyncio.sleep(0.01)

    async def until_got(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.got) < count:  # noqa: ASYNC110 - what comes is looked at in between
                await asyncio.sleep(0.005)

    async def until_cursor_is_at(self, order: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.session.cursors[EVERYONE].read_to != order:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)

    async def cursor(self) -> int:
        (memberships,) = await self._cursors.read([CLIENT])
        return memberships.cursors[EVERYONE]

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        await self.parts.close()


@pytest_asyncio.fixture(params=[True, False], ids=["ack", "no ack"])
async def bench(
    request: pytest.FixtureRequest, node: Node, valkey: LocalValkey, namespace: str
) -> AsyncIterator[Bench]:
    """A window of four messages."""
    settings = load(GatewaySettings, {"PUSH_AUTH": "off", "PUSH_WINDOW_MESSAGES": "4"})
    store = Store(valkey.url, namespace=namespace)
    parts = node_parts(store, settings, NODE_ID)
    peer = await node.opened()
    session = Session(SESSION.encode(), CLIENT, node.layer.connection, ack=request.param, expires_s=0.0, device="")
    parts.hub.add(session)
    moving = asyncio.create_task(parts.moves.run())
    bench = Bench(peer, parts, session, store)
    await bench.come()
    yield bench
    moving.cancel()
    await asyncio.wait((moving,))
    await bench.close()
    await store.close()


async def test_who_read_further_than_the_records_waits_for_them(bench: Bench) -> None:
    """A message read from the timeline comes no second time by its record; the next one comes by its own."""
    first = await bench.send()
    await bench.arrive(first)
    await bench.until_got(1)
    bench.ack(bench.got)
    late = await bench.send()
    await bench.cut_off(kept=True)
    await bench.until_got(2)
    await bench.arrive(late)
    assert bench.session.cursors[EVERYONE].live
    await bench.arrive(await bench.send())
    await bench.until_got(3)
    assert bench.sent == bench.got


async def test_a_record_that_comes_while_an_audience_is_entered_is_not_lost(bench: Bench) -> None:
    """Nobody knows yet what came before it."""
    bench.parts.audiences.suspend_all()
    line = await bench.send()
    await bench.arrive(line)
    await bench.cut_off(kept=True)
    await bench.until_got(1)
    await bench.arrive(await bench.send())
    await bench.until_got(2)
    assert bench.sent == bench.got


async def test_the_cursor_stands_where_the_client_has_everything(bench: Bench) -> None:
    """It passes over nothing that is not acknowledged, or not taken by the kernel."""
    lines = [await bench.send() for _ in range(3)]
    await bench.arrive(*lines)
    await bench.until_got(3)
    bench.ack([bench.sent[0], bench.sent[2]])
    await bench.settled()
    expected = lines[1].order - 1 if bench.session.ack else lines[2].order
    assert expected == await bench.cursor()
    bench.ack([bench.sent[1]])
    bench.parts.audiences.detach(bench.session)
    await bench.settled()
    assert lines[2].order == await bench.cursor()


@pytest.mark.parametrize("bench", [True], indirect=True, ids=["ack"])
async def test_what_was_acknowledged_elsewhere_is_not_sent_again(bench: Bench) -> None:
    """While the node was cut off the client's other session acknowledged; what it did not is kept."""
    lines = [await bench.send() for _ in range(3)]
    await bench.arrive(*lines)
    await bench.until_got(3)
    window = bench.parts.delivery.window_of(bench.session)
    assert 3 == len(window)
    await bench._cursors.move([(CLIENT, EVERYONE, lines[1].order)])
    await bench.cut_off(kept=True)
    assert 1 == len(window)
    assert lines[2].order == window.first_order(bench.session.cursors[EVERYONE])


@pytest.mark.parametrize("bench", [True], indirect=True, ids=["ack"])
async def test_a_group_that_was_made_anew_knows_its_nodes(bench: Bench) -> None:
    """Deleted and made again between two looks: the member is one still, and the node is where its records go."""
    groups = Groups(bench.store)
    where = bench.store.keys.audience("g")[3]
    await groups.create("g", name="", owner="", members=[CLIENT])
    bench.parts.audiences.changed(SESSION.encode())
    await until_found(bench.store, where)
    async for _ in groups.delete("g"):
        pass
    await groups.create("g", name="", owner="", members=[CLIENT])
    assert 0 == await bench.store.redis.exists(where)
    bench.parts.audiences.changed(SESSION.encode())
    await until_found(bench.store, where)


async def until_found(store: Store, where: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await store.redis.hget(where, NODE_ID) != b"e1":  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("bench", [True], indirect=True, ids=["ack"])
async def test_who_left_and_joined_anew_gets_nothing_from_between(bench: Bench) -> None:
    """Though its node looks only when both have happened."""
    lines = [await bench.send() for _ in range(2)]
    name = bench.store.keys.audiences(CLIENT)
    await bench.store.redis.hset(name, mapping={EVERYONE: f"{lines[1].order:016d}", "#": "2"})
    bench.parts.audiences.changed(SESSION.encode())
    await bench.until_cursor_is_at(lines[1].order)
    await bench.arrive(*lines)
    await bench.arrive(await bench.send())
    await bench.until_got(1)
    assert bench.sent[2:] == bench.got


class Walk:
    """Steps by chance; `flying` are records that have not come yet."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.chance = random.Random(seed)
        self.flying: list[AudienceLine] = []

    async def step(self) -> None:
        steps = (self.send, self.arrive, self.lose, self.ack, self.sweep, self.cut_off, self.wait)
        await self.chance.choices(steps, (9, 8, 2, 5, 1, 1, 3))[0]()

    async def send(self) -> None:
        self.flying += [await self.bench.send() for _ in range(self.chance.randint(1, 3))]

    async def arrive(self) -> None:
        for _ in range(min(len(self.flying), self.chance.randint(1, 3))):
            late = self.chance.random() < 0.3
            line = self.flying.pop(self.chance.randrange(len(self.flying)) if late else 0)
            await self.bench.arrive(line)
            if self.chance.random() < 0.1:
                self.flying.append(line)

    async def lose(self) -> None:
        if self.flying:
            self.flying.pop(self.chance.randrange(len(self.flying)))

    async def ack(self) -> None:
        if self.bench.got:
            self.bench.ack(self.chance.sample(self.bench.got, self.chance.randint(1, len(self.bench.got))))

    async def sweep(self) -> None:
        self.bench.parts.audiences.enter_all()

    async def cut_off(self) -> None:
        await self.bench.cut_off(kept=self.chance.random() < 0.7)

    async def wait(self) -> None:
        await asyncio.sleep(self.chance.choice((0.0, 0.0, 0.002, 0.01)))


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_each_message_comes_once_and_in_order(bench: Bench, seed: int) -> None:
    """A walk by chance: records late, twice, swapped and lost; acknowledgements in any order; sweeps; cut off."""
    walk = Walk(bench, seed)
    for _ in range(60):
        await walk.step()
    while walk.flying:
        await walk.arrive()
    await bench.until_all_came()
    assert bench.sent == bench.got
