"""
What is RocketMQ's own in the adapter, on real brokers: masters that fail, security, delivery times, odd records.

The contract that all adapters share is in test_bus.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest

from pushfleet.local_rocketmq import Credentials, LocalRocketMQ
from shared.bus.port import Received, Record, SharedReader, TopicReader
from shared.bus.rocketmq import RocketMQBus, codes
from shared.bus.rocketmq.connection import Connection, ConnectionSettings
from shared.errors import BusError, BusUnavailable, TopicMissing
from shared.metrics import BUS_RECORDS_SET_ASIDE
from tests.harness.rocketmq import fresh_topic, running_rocketmq, self_signed

DEADLINE_S = 60.0


@asynccontextmanager
async def bus_on(url: str) -> AsyncIterator[RocketMQBus]:
    bus = RocketMQBus.from_url(url)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def bus(shared_rocketmq: LocalRocketMQ) -> AsyncIterator[RocketMQBus]:
    """On the broker of the run."""
    async with bus_on(shared_rocketmq.url) as bus:
        yield bus


@pytest.fixture
async def topic(bus: RocketMQBus) -> AsyncIterator[str]:
    """A topic with one queue, on the broker of the run."""
    topic = fresh_topic()
    await bus.ensure_topic(topic)
    yield topic
    await bus.drop_topic(topic)


@pytest.fixture
async def broker(shared_rocketmq: LocalRocketMQ) -> AsyncIterator[Connection]:
    """A bare connection to the broker of the run, for requests that the adapter never makes."""
    connection = Connection(shared_rocketmq.broker_address(), ConnectionSettings())
    yield connection
    await connection.close()


async def fetch_until(reader: TopicReader, wanted: Iterable[bytes]) -> list[Received]:
    """Fetch until each of these bodies came; all that came."""
    missing = set(wanted)
    got: list[Received] = []
    async with asyncio.timeout(DEADLINE_S):
        while missing:
            some = await reader.fetch()
            got += some
            missing -= {record.body for record in some}
    return got


async def take(reader: SharedReader, count: int) -> list[Received]:
    got: list[Received] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < count:
            got += await reader.fetch(count - len(got))
    return got


async def send_raw(broker: Connection, topic: str, body: bytes, flags: int) -> None:
    """A send (request 310) with system flags of the caller's choice: brokers store what they are given."""
    fields = dict.fromkeys("dfhj", "0") | {"a": "raw", "b": topic, "c": "TBW102", "d": "4", "e": "0", "f": str(flags)}
    fields |= {"g": str(int(time.time() * 1000)), "i": "KEYS\x01raw\x02", "k": "false", "m": "false"}
    response = await broker.call(codes.SEND, fields, body)
    assert response.code == codes.SUCCESS


# -- records that are out of the ordinary


async def test_undecodable_record_is_set_aside(bus: RocketMQBus, topic: str, broker: Connection) -> None:
    """A record that cannot be decoded is counted and passed over; those around it come, and the commit passes it."""
    counter = BUS_RECORDS_SET_ASIDE.labels(topic)
    await bus.publish(topic, [Record(b"before")])
    await send_raw(broker, topic, b"no zlib, whatever the flag says", flags=1)
    await bus.publish(topic, [Record(b"after")])
    reader = await bus.open_reader(topic)
    got = await fetch_until(reader, [b"after"])
    assert [b"before", b"after"] == [record.body for record in got]
    assert counter._value.get() == 1
    reader.commit()
    await reader.close()
    await bus.publish(topic, [Record(b"next")])
    reader = await bus.open_reader(topic)
    assert [b"next"] == [record.body for record in await fetch_until(reader, [b"next"])]
    assert counter._value.get() == 1


async def test_undecodable_record_of_a_shared_topic(bus: RocketMQBus, topic: str, broker: Connection) -> None:
    """A shared record that cannot be decoded is acknowledged, so it does not come again for ever."""
    counter = BUS_RECORDS_SET_ASIDE.labels(topic)
    await send_raw(broker, topic, b"no zlib, whatever the flag says", flags=1)
    await bus.publish(topic, [Record(b"held"), Record(b"last")])
    reader = await bus.open_shared(topic, topic, invisible_s=2)
    assert [b"held", b"last"] == [record.body for record in await take(reader, 2)]
    # When the two that were not acknowledged come back, so would the broken one have.
    assert {b"held", b"last"} == {record.body for record in await take(reader, 2)}
    assert counter._value.get() == 1


async def test_compressed_body(bus: RocketMQBus, topic: str, broker: Connection) -> None:
    """What another client compressed (flag 1, zlib) comes out as it went in, read alone and shared."""
    body = b"compress me " * 1000
    await send_raw(broker, topic, zlib.compress(body), flags=1)
    reader = await bus.open_reader(topic)
    assert [body] == [record.body for record in await reader.fetch()]
    shared = await bus.open_shared(topic, f"{topic}-g")
    assert [body] == [record.body for record in await take(shared, 1)]


async def test_record_of_another_client(bus: RocketMQBus, topic: str, shared_rocketmq: LocalRocketMQ) -> None:
    """RocketMQ's own Java client compresses long bodies by itself; key and unique key are read from its record."""
    body = "compress me" * 1000
    command = shared_rocketmq.admin_command("sendMessage", "-t", topic, "-p", body, "-k", "from-java")
    sender = await asyncio.create_subprocess_exec(
        *command,
        env=shared_rocketmq.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reader = await bus.open_reader(topic)
    [record] = await fetch_until(reader, [body.encode()])
    assert record.key == "from-java"
    assert len(record.record_id) == 32
    await sender.wait()


async def test_records_beyond_one_batch(bus: RocketMQBus, topic: str) -> None:
    """One publish of more bytes than a batch holds keeps its order, with large records in between."""
    sizes = [300_000, 300_000, 2_000_000, 10, 900_000, 200_000, 4 * 1024 * 1024, 1]
    bodies = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    await bus.publish(topic, [Record(body) for body in bodies])
    reader = await bus.open_reader(topic)
    got = await fetch_until(reader, bodies)
    assert [body[:1] for body in bodies] == [record.body[:1] for record in got]
    assert sizes == [len(record.body) for record in got]


async def test_broker_with_a_smaller_limit(tmp_path: Path) -> None:
    """A batch over a broker's own limit goes record by record, and a record over it is told to its caller alone."""
    async with running_rocketmq(tmp_path, maxMessageSize="65536") as rocketmq, bus_on(rocketmq.url) as bus:
        topic = fresh_topic()
        await bus.ensure_topic(topic)
        bodies = [bytes([65 + number]) * 40_000 for number in range(4)]
        fits = bus.publish(topic, [Record(body) for body in bodies])
        too_large = bus.publish(topic, [Record(bytes(300_000))])
        outcomes = await asyncio.gather(fits, too_large, return_exceptions=True)
        assert [None, "record_too_large"] == [getattr(outcome, "code", outcome) for outcome in outcomes]
        reader = await bus.open_reader(topic)
        assert bodies == [record.body for record in await fetch_until(reader, bodies)]


# -- delivery times


async def test_delivery_time(bus: RocketMQBus, topic: str) -> None:
    """A record with a delivery time comes when it is due, not before; those without, and past ones, come at once."""
    due_ms = int(time.time() * 1000) + 2000
    later = Record(b"later", key="k", deliver_at_ms=due_ms)
    past = Record(b"past", deliver_at_ms=due_ms - 3_600_000)
    await bus.publish(topic, [later, Record(b"now"), past])
    reader = await bus.open_reader(topic)
    got = await fetch_until(reader, [b"now", b"past"])
    assert [b"now", b"past"] == [record.body for record in got]
    [record] = await fetch_until(reader, [b"later"])
    assert time.time() * 1000 >= due_ms
    assert record.key == "k"


async def test_delivery_time_beyond_the_broker(bus: RocketMQBus, topic: str) -> None:
    """A delivery time beyond what the broker holds (3 days by default) is refused, not sent at once."""
    with pytest.raises(BusError, match="max delay"):
        await bus.publish(topic, [Record(b"x", deliver_at_ms=int(time.time() * 1000) + 4 * 86_400_000)])


# -- the broker's own requests, name servers, topics that go away


async def test_requests_of_the_broker(bus: RocketMQBus, topic: str, broker: Connection) -> None:
    """
    A broker's own request is answered "not supported" and disturbs no call.

    Request 307 asks the broker to ask a consumer: what this end answers comes back to who asked.
    """
    consumer = Connection(broker.address, ConnectionSettings())
    subscription = {"topic": topic, "subString": "*", "tagsSet": [], "codeSet": [], "subVersion": 0}
    group = {
        "groupName": topic,
        "consumeType": "CONSUME_PASSIVELY",
        "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
        "subscriptionDataSet": [subscription],
        "unitMode": False,
    }
    body = orjson.dumps({"clientID": "it", "consumerDataSet": [group], "producerDataSet": []})
    await consumer.call(codes.HEARTBEAT, {}, body)
    fields = {"consumerGroup": topic, "clientId": "it", "jstackEnable": "false"}
    asked = await asyncio.gather(
        *(broker.call(307, fields) for _ in range(20)), consumer.call(codes.HEARTBEAT, {}, body)
    )
    assert [3] * 20 + [0] == [response.code for response in asked]
    await consumer.close()


async def test_dead_name_server(shared_rocketmq: LocalRocketMQ) -> None:
    """With one of two name servers dead everything works."""
    url = shared_rocketmq.url.replace("rocketmq://", "rocketmq://127.0.0.1:1,")
    async with bus_on(url) as bus:
        topic = fresh_topic()
        await bus.ensure_topic(topic)
        await bus.publish(topic, [Record(b"x")])
        reader = await bus.open_reader(topic)
        assert [b"x"] == [record.body for record in await reader.fetch()]
        assert bus.connected
        await bus.drop_topic(topic)


async def test_nothing_listens() -> None:
    """Without any name server calls raise BusUnavailable, and `connected` is false."""
    async with bus_on("rocketmq://127.0.0.1:1") as bus:
        with pytest.raises(BusUnavailable):
            await bus.ensure_topic("t")
        with pytest.raises(BusUnavailable):
            await bus.open_reader("t")
        assert not bus.connected


@pytest.mark.parametrize(("count", "commits"), [(2, False), (7, True)])
async def test_topic_dropped_under_its_reader(bus: RocketMQBus, topic: str, count: int, commits: bool) -> None:
    """
    A reader whose topic was dropped, and made anew at once, reads the new one from its beginning.

    Also if the new one is longer than the old one was, provided that something of the old one was committed.
    """
    reader = await bus.open_reader(topic)
    await bus.publish(topic, [Record(b"old")] * 5)
    await fetch_until(reader, [b"old"])
    if commits:
        reader.commit()
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: reader.is_committed)
    await bus.drop_topic(topic)
    with pytest.raises(TopicMissing):
        await bus.publish(topic, [Record(b"lost")])
    await bus.ensure_topic(topic)
    bodies = [b"new %d" % number for number in range(count)]
    await bus.publish(topic, [Record(body) for body in bodies])
    await fetch_until(reader, bodies)


@pytest.mark.parametrize(
    "url",
    ["rocketmq://", "rocketmq://h?accessKey=a", "rocketmq://h?what=1", "redis://h", "rocketmq://u:p@h"],
)
def test_bad_urls(url: str) -> None:
    """What is wrong is refused with what is expected, before anything is connected."""
    with pytest.raises(ValueError, match="expected rocketmq://"):
        RocketMQBus.from_url(url)


# -- masters that fail


async def test_master_fails(tmp_path: Path) -> None:
    """
    With one of two masters killed, or frozen, a publish to any queue succeeds within its deadline.

    A reader gets all of it; what lies on the killed master it gets when that is back. `connected` stays true.
    """
    async with running_rocketmq(tmp_path, brokers=2) as rocketmq, bus_on(rocketmq.url) as bus:
        topic = fresh_topic()
        await bus.ensure_topic(topic, queues=2)
        assert await bus.queue_count(topic) == 4
        await bus.publish(topic, [Record(b"before %d" % queue, queue=queue) for queue in range(4)])
        rocketmq.kill(0)
        await bus.publish(topic, [Record(b"killed %d" % queue, queue=queue) for queue in range(4)])
        reader = await bus.open_reader(topic)
        await fetch_until(reader, [b"killed %d" % queue for queue in range(4)])
        assert bus.connected
        await rocketmq.restart()
        await fetch_until(reader, [b"before 0", b"before 1"])
        rocketmq.pause(0)
        try:
            await bus.publish(topic, [Record(b"frozen %d" % queue, queue=queue) for queue in range(4)])
            await fetch_until(reader, [b"frozen %d" % queue for queue in range(4)])
        finally:
            rocketmq.resume(0)


async def test_broker_is_killed_and_comes_back(tmp_path: Path) -> None:
    """
    Kill -9 under load and a restart: every acknowledged record arrives, each publish's records in order.

    Meanwhile the topic is not taken for missing (the name server no longer knows it), and `connected` is false
    until the broker is back, whether anybody calls or not.
    """
    async with running_rocketmq(tmp_path) as rocketmq, bus_on(rocketmq.url) as bus, bus_on(rocketmq.url) as idle:
        topic = fresh_topic()
        await bus.ensure_topic(topic, queues=4)
        assert await idle.queue_count(topic) == 4
        await idle.publish(topic, [Record(b"first")])
        reader = await bus.open_reader(topic)
        acknowledged: set[bytes] = set()
        stop = asyncio.Event()

        async def publish(queue: int) -> None:
            number = 0
            while not stop.is_set():
                bodies = [b"%d %d" % (queue, number + k) for k in range(3)]
                with suppress(BusUnavailable):
                    await bus.publish(topic, [Record(body, queue=queue) for body in bodies])
                    acknowledged.update(bodies)
                number += 3

        publishers = [asyncio.create_task(publish(queue)) for queue in range(4)]
        await fetch_until(reader, [b"%d 300" % queue for queue in range(4)])
        rocketmq.kill()
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: not bus.connected and not idle.connected)
            with pytest.raises(BusUnavailable):
                await idle.publish(topic, [Record(b"x")])
            await rocketmq.restart()
            await until(lambda: idle.connected and bus.connected)
            at_restart = len(acknowledged)
            await until(lambda: len(acknowledged) > at_restart + 300)
        stop.set()
        await asyncio.gather(*publishers)
        await reader.close()
        reader = await bus.open_reader(topic)  # nothing was committed: from the beginning
        order: dict[bytes, list[int]] = {}
        for record in await fetch_until(reader, acknowledged):
            queue, _, number = record.body.partition(b" ")
            if number:
                order.setdefault(queue, []).append(int(number))
        for numbers in order.values():
            firsts = list(dict.fromkeys(numbers))  # a publish that was answered late was made twice
            assert sorted(firsts) == firsts


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event, inside the caller's deadline."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


# -- security


async def test_acl_and_tls(tmp_path: Path) -> None:
    """
    On servers that ask for a signature and speak TLS alone: with both everything works.

    With a wrong secret, without a key, without TLS, or with a certificate that is not trusted, nothing does. The secret
    is on no command line, and in no file that others can read.
    """
    tls = self_signed(tmp_path)
    credentials = Credentials("pushfleet", "a secret+with/signs=")
    async with running_rocketmq(tmp_path, credentials=credentials, tls=tls) as rocketmq:
        async with bus_on(rocketmq.url) as bus:
            topic = fresh_topic()
            await bus.ensure_topic(topic)
            await bus.publish(topic, [Record(b"1"), Record(b"2", key="schlüssel")])
            reader = await bus.open_reader(topic)
            await fetch_until(reader, [b"1", b"2"])
            reader.commit()
            shared = await bus.open_shared(topic, f"{topic}-g")
            await shared.ack(await take(shared, 2))
        trusted = f"tls=1&tlsCa={tls.certificate}"
        good = "accessKey=pushfleet&secretKey=a+secret%2Bwith%2Fsigns%3D"
        bad_options = [f"{trusted}&accessKey=pushfleet&secretKey=wrong", trusted, good, f"{good}&tls=1"]
        outcomes = await asyncio.gather(*(refusal(rocketmq, topic, options) for options in bad_options))
        assert [BusUnavailable] * 4 == [type(outcome) for outcome in outcomes]
        assert ([], [0o600]) == exposed(rocketmq, credentials.secret_key.encode())


def exposed(rocketmq: LocalRocketMQ, secret: bytes) -> tuple[list[int], list[int]]:
    """Processes whose command line has it, and the modes of the files that do."""
    pids = [pid for pid in rocketmq.pids if secret in Path(f"/proc/{pid}/cmdline").read_bytes()]
    files = [path for path in rocketmq.data_dir.glob("*.conf") if secret in path.read_bytes()]
    return pids, [path.stat().st_mode & 0o777 for path in files]


async def refusal(rocketmq: LocalRocketMQ, topic: str, options: str) -> BaseException | None:
    async with bus_on(f"rocketmq://{rocketmq.name_server}?{options}") as bus:
        try:
            await bus.publish(topic, [Record(b"no")])
        except BusUnavailable as error:
            return error
        return None
