"""What one fault does to a push: parts are killed, slow or told to leave, and nothing stored is lost."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.bus import open_bus
from shared.errors import TopicMissing
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_sent(cluster: Cluster, client_id: str, msg: object) -> None:
    """Send until it is answered 200, under one requestId."""
    async with asyncio.timeout(30):
        while True:
            body = {"to": client_id, "msg": msg, "requestId": f"until-{msg}"}
            if (await cluster.post("/message/send", body)).status == 200:
                return
            await asyncio.sleep(0.1)


async def until_offline(cluster: Cluster, client_id: str) -> None:
    """Until a send says that the client is not online."""
    async with asyncio.timeout(20):
        while True:
            if (await cluster.send(client_id, "there?")).body["content"] == [client_id]:
                return
            await asyncio.sleep(0.1)


async def until_closed_by_node(cluster: Cluster, code: int) -> None:
    """Until the node's own count says that it ended a session with this code."""
    url = f"http://127.0.0.1:{cluster.nodes[0].ready['admin_port']}/metrics"
    async with asyncio.timeout(20):
        while True:
            async with cluster.http.get(url) as answer:
                if f'push_node_sessions_ended_total{{code="{code}"}}' in await answer.text():
                    return
            await asyncio.sleep(0.05)


async def test_an_unacknowledged_message_is_resent_on_the_live_session(valkey: LocalValkey, namespace: str) -> None:
    """Under the same messageId, until it is acknowledged."""
    async with running_cluster(valkey.url, valkey.url, namespace, PUSH_ACK_TIMEOUT="0.2") as cluster:
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=alice&ack=1") as client:
            await client.receive()
            answer = await cluster.send("alice", "again")
            first, second = await client.receive_type(1), await client.receive_type(1)
            await client.ack(answer.message_id)
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=alice&ack=1") as client:
            assert (await client.receive())["msg"]["pending"] == 0

    assert first == second
    assert first["messageId"] == answer.message_id


async def test_a_slow_consumer_is_cut_and_others_are_not(valkey: LocalValkey, namespace: str) -> None:
    """4008 beyond the outbox; what the kernel never took comes on the client's next session."""
    async with running_cluster(valkey.url, valkey.url, namespace, PUSH_MAX_OUTBOX="100000") as cluster:
        port = cluster.nodes[0].ready["port"]
        sleeper = stop_reading(port, "sleeper")
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=brisk") as brisk:
            await brisk.receive()
            for number in range(60):
                await cluster.send(["sleeper", "brisk"], [number, "x" * 60_000])
                got = await brisk.until_business(number + 1)
            await until_closed_by_node(cluster, 4008)
        sleeper.close()
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=sleeper") as again:
            pending = (await again.receive())["msg"]["pending"]
            replayed = await again.until_business(pending)

    assert [message["msg"][0] for message in got] == list(range(60))
    assert 0 < pending
    assert [message["msg"][0] for message in replayed] == list(range(60 - pending, 60))


def stop_reading(port: int, client_id: str) -> socket.socket:
    """A connection that is opened and never read from."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(
        f"GET /websocket?clientId={client_id} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return sock


async def test_a_killed_node_loses_nothing(valkey: LocalValkey, shared_rocketmq: LocalRocketMQ, namespace: str) -> None:
    """kill -9: what was sent to it before anybody knew comes on the client's next session, on another node."""
    async with running_cluster(valkey.url, shared_rocketmq.url, namespace, nodes=2, PUSH_LEASE="2") as cluster:
        async with connected(cluster.http, f"{cluster.socket_url(0)}?clientId=alice&ack=1") as client:
            await client.receive()
            await cluster.nodes[0].kill()
            assert await client.closed() in (0, 1006)
        answers = [await cluster.send("alice", number) for number in range(5)]
        async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId=alice&ack=1") as client:
            got = await client.until_business(5)
            await cluster.send("alice", "live")
            await client.until_business(6)
        await until_offline(cluster, "alice")

    assert [message["messageId"] for message in got] == [answer.message_id for answer in answers]


async def test_sessions_outlive_redis(
    private_valkey: LocalValkey, shared_rocketmq: LocalRocketMQ, namespace: str, tmp_path: Path
) -> None:
    """Away: 503 with Retry-After, sessions stay. Back, even empty: every session is registered again by itself."""
    async with (
        running_cluster(private_valkey.url, shared_rocketmq.url, namespace, PUSH_LEASE="2") as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=alice&ack=1") as client,
    ):
        await client.receive()
        private_valkey.kill()
        refused = await cluster.post("/message/send", {"to": "alice", "msg": "no"})
        await client.send({"msgType": 3, "messageId": "still here"})
        assert (await client.receive_type(4))["messageId"] == "still here"
        empty = LocalValkey(tmp_path / "empty", private_valkey.port)
        await empty.start()
        try:
            await until_sent(cluster, "alice", "back")
            await client.until(lambda: any(message["msg"] == "back" for message in client.business))
            assert (await cluster.send("alice", "routed")).body["content"] is None
            for role in (*cluster.nodes, *cluster.dispatchers):
                await role.close()
        finally:
            await empty.stop()

    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.body["success"] is False


async def test_sigterm_drains(valkey: LocalValkey, shared_rocketmq: LocalRocketMQ, namespace: str) -> None:
    """No longer offered, sessions closed 1001 with advice, the topic gone, exit 0."""
    async with running_cluster(
        valkey.url, shared_rocketmq.url, namespace, nodes=2, PUSH_DRAIN_SECONDS="0.5"
    ) as cluster:
        sockets = [await cluster.http.ws_connect(f"{cluster.socket_url(0)}?clientId=c{n}") for n in range(20)]
        clients = [Client(sock) for sock in sockets]
        for client in clients:
            await client.receive()
        code = await cluster.nodes[0].stop()
        closes = [await client.closed() for client in clients]
        offered = await cluster.get("/server/get?clientId=c1")
        topic = cluster.nodes[0].ready["topic"]
        bus = open_bus(shared_rocketmq.url, namespace=namespace)
        with pytest.raises(TopicMissing):
            await bus.queue_count(topic)
        await bus.close()

    assert code == 0
    assert set(closes) == {1001}
    advice = [orjson.loads(client.close_reason)["reconnectIn"] for client in clients]
    assert all(0 <= ms <= 500 for ms in advice)
    assert len(set(advice)) > 1
    assert offered.body["content"]["url"] == cluster.socket_url(1)


@pytest.mark.parametrize(
    ("module", "variable", "value"),
    [
        ("gateway_node", "PUSH_NODE_PORT", "many"),
        ("gateway_node", "PUSH_JWT_SECRET", "short"),
        ("dispatcher", "PUSH_HTTP_PORT", "-1"),
        ("dispatcher", "PUSH_API_KEYS", "/nowhere/at/all"),
        ("dispatcher", "PUSH_BUS_URL", "kafka://x"),
    ],
)
async def test_wrong_settings_end_with_2_and_name_the_variable(module: str, variable: str, value: str) -> None:
    """One line: the variable, what it held, what is expected; a secret is not shown."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("PUSH_")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", module],
        env=inherited | {variable: value},
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert variable in done.stderr.decode()
    assert "expected" in done.stderr.decode()
    assert "short" not in done.stderr.decode()


async def test_a_port_that_is_taken_is_named() -> None:
    """Exit 2 with the variable; no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for variables in (
            {"PUSH_NODE_PORT": port, "PUSH_ADMIN_PORT": "0"},
            {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": port},
        ):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "gateway_node"],
                env=os.environ | {"PUSH_AUTH": "off"} | variables,
                capture_output=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 2
            assert f"_PORT={port}: " in done.stderr.decode()
            assert "Traceback" not in done.stderr.decode()


async def test_help_lists_the_variables() -> None:
    """python -m gateway_node --help."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "gateway_node", "--help"], capture_output=True, timeout=30, check=False
    )

    assert done.returncode == 0
    assert b"PUSH_NODE_ADVERTISE" in done.stdout
