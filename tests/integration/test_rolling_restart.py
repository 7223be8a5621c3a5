"""
A rolling restart under load, on real RocketMQ: every node drains and starts again, one after the other.

What is promised: nothing that was answered 200 is lost, and no client is without a session for longer than the pause
it was told and a second. A client here does what the contract says: it waits for exactly what it was told, asks a
dispatcher where to go, and connects there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import aiohttp
import orjson
import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.drain import ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENTS = 60
SENDERS = 4
MARGIN_S = 1.0
DEADLINE_S = 120.0


@dataclass
class Gap:
    """A client's time without a session: what it was told, how long it took (s), and how it was refused meanwhile."""

    client_id: str
    code: int
    told_s: float
    took_s: float
    refusals: list[str]


@dataclass
class Ledger:
    """What was answered 200, to whom, and who has received what."""

    sent: dict[str, str] = field(default_factory=dict)
    received: dict[str, set[str]] = field(default_factory=dict)
    again: int = 0
    gaps: list[Gap] = field(default_factory=list)

    def lost(self) -> set[str]:
        return {message_id for message_id, client_id in self.sent.items() if message_id not in self.received[client_id]}


class LiveClient:
    """Is connected from the start to the end, as far as it can."""

    def __init__(self, cluster: Cluster, http: aiohttp.ClientSession, client_id: str, ledger: Ledger) -> None:
        self.client_id = client_id
        self.connected = asyncio.Event()
        self._cluster = cluster
        self._http = http
        self._ledger = ledger
        self._seen = ledger.received.setdefault(client_id, set())
        self._number = int(client_id.rpartition("-")[2])

    async def run(self) -> None:
        """Until cancelled."""
        ended: tuple[float, int, float] | None = None
        while True:
            socket, refusals = await self._connect()
            async with socket:
                assert 0 == (await socket.receive_json(loads=orjson.loads))["msgType"]
                if ended is not None:
                    at, code, told_s = ended
                    self._ledger.gaps.append(Gap(self.client_id, code, told_s, time.monotonic() - at, refusals))
                self.connected.set()
                reason = await self._take_all(socket)
                at, code = time.monotonic(), socket.close_code or 0
            told_s = orjson.loads(reason)["reconnectIn"] / 1000 if code == 1001 else 0.0
            ended = (at, code, told_s)
            await asyncio.sleep(told_s)

    async def _connect(self) -> tuple[aiohttp.ClientWebSocketResponse, list[str]]:
        refusals: list[str] = []
        while True:
            dispatcher = self._cluster.dispatchers[(self._number + len(refusals)) % len(self._cluster.dispatchers)]
            url = f"{self._cluster.url_of(dispatcher)}/server/get?clientId={self.client_id}"
            try:
                async with self._http.get(url) as answer:
                    place = await answer.json()
                return await self._http.ws_connect(
                    f"{place['content']['url']}?clientId={self.client_id}&ack=1"
                ), refusals
            except (aiohttp.ClientError, TypeError) as error:
                refusals.append(f"{type(error).__name__} {str(error)[:80]}")
                await asyncio.sleep(0.1)

    async def _take_all(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """The reason of the close."""
        while True:
            message = await socket.receive()
            if message.type != aiohttp.WSMsgType.TEXT:
                return str(message.extra)
            envelope = orjson.loads(message.data)
            if envelope["msgType"] != 1:
                continue
            message_id = envelope["messageId"]
            self._ledger.again += message_id in self._seen
            self._seen.add(message_id)
            if not socket.closed:
                await socket.send_json({"msgType": 2, "messageId": message_id})


async def send_on(cluster: Cluster, sender: int, names: list[str], ledger: Ledger, done: asyncio.Event) -> None:
    """To one client after the other; what is not answered 200 is sent again under its requestId."""
    url = cluster.url_of(cluster.dispatchers[sender % len(cluster.dispatchers)])
    for number in itertools.count(sender):
        if done.is_set():
            return
        body = {"to": names[number * 7 % len(names)], "msg": number, "requestId": f"rolling-{sender}-{number}"}
        answer = await cluster.post_to(url, "/message/send", body)
        while answer.status != 200:
            await asyncio.sleep(0.1)
            answer = await cluster.post_to(url, "/message/send", body)
        ledger.sent[answer.message_id] = str(body["to"])
        await asyncio.sleep(0.01)


async def drain_and_restart(cluster: Cluster, node: Role, *, by_signal: bool) -> int:
    """The exit code."""
    if by_signal:
        node.terminate()
    else:
        assert 202 == (await ask(cluster, "POST", node)).status
    code = await node.ended()
    await node.restart()
    await node.until_healthy(cluster.http)
    return code


async def test_a_rolling_restart_loses_nothing_and_keeps_its_word(
    valkey: LocalValkey, shared_rocketmq: LocalRocketMQ, namespace: str
) -> None:
    """Three nodes; two told by a signal, one by a request."""
    ledger, done = Ledger(), asyncio.Event()
    names = [f"rolling-{number}" for number in range(CLIENTS)]
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        running_cluster(
            valkey.url, shared_rocketmq.url, namespace, nodes=3, dispatchers=2, PUSH_DRAIN_SECONDS="2"
        ) as cluster,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        clients = [LiveClient(cluster, http, client_id, ledger) for client_id in names]
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            living = [group.create_task(client.run()) for client in clients]
            for client in clients:
                await client.connected.wait()
            senders = [group.create_task(send_on(cluster, n, names, ledger, done)) for n in range(SENDERS)]
            codes = [
                await drain_and_restart(cluster, node, by_signal=number != 1)
                for number, node in enumerate(cluster.nodes)
            ]
            done.set()
            await asyncio.gather(*senders)
            while ledger.lost():  # noqa: ASYNC110 - the last ones are on their way
                await asyncio.sleep(0.05)
            for task in living:
                task.cancel()
        drained = [line for node in cluster.nodes for line in node.log if line.get("event") == "drained"]

    late = [gap for gap in ledger.gaps if gap.took_s > gap.told_s + MARGIN_S]
    worst = max(gap.took_s - gap.told_s for gap in ledger.gaps)
    print(  # noqa: T201 - the figures, for who runs it with -s
        f"{len(ledger.sent)} messages, {len(ledger.lost())} lost, {ledger.again} on the wire again; "
        f"{len(ledger.gaps)} reconnections, {worst * 1000:.0f} ms beyond what was told at most, "
        f"{sum(1 for gap in ledger.gaps if gap.refusals)} refused at first"
    )
    assert [0, 0, 0] == codes
    assert [0, 0, 0] == [line["left"] for line in drained]
    assert len(ledger.gaps) >= CLIENTS  # all nodes had their turn
    assert {1001} == {gap.code for gap in ledger.gaps}
    assert [] == late
    assert set() == ledger.lost()
