"""PROTOCOL section 4: who may connect, how, and when a node says no."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import jwt
import orjson
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.security_headers import SECURITY_HEADERS
from shared.tokens import mint_token
from tests.harness.client import connected
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.valkey import running_valkey

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]
SECRET = "a secret of more than 32 bytes, for tests"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    """A node with authentication, allowed origins and a short heartbeat."""
    async with running_cluster(
        valkey.url,
        valkey.url,
        "guarded",
        dispatchers=0,
        PUSH_AUTH="jwt",
        PUSH_JWT_SECRET=SECRET,
        PUSH_NODE_HOST="127.0.0.1",
        PUSH_ALLOWED_ORIGINS="https://app.example.com,https://*.example.org",
        PUSH_HEARTBEAT_TIMEOUT="1.2",
    ) as running:
        yield running


def token(**claims: object) -> str:
    return jwt.encode({"sub": "alice", "exp": int(time.time()) + 60} | claims, SECRET, algorithm="HS256")


async def refused(
    cluster: Cluster, query: str = "", headers: dict[str, str] | None = None, protocols: tuple[str, ...] = ()
) -> int:
    """The status that refused the upgrade."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await cluster.http.ws_connect(cluster.socket_url() + query, headers=headers, protocols=protocols)
    return error.value.status


async def test_a_token_may_come_three_ways(guarded: Cluster) -> None:
    """Authorization, ?token=, or the subprotocol pair, which is answered with `bearer`."""
    good = mint_token(SECRET, "alice", life_s=60)
    bearer = {"Authorization": f"Bearer {good}"}
    async with connected(guarded.http, guarded.socket_url(), headers=bearer) as by_header:
        assert (await by_header.receive())["to"] == "alice"
    async with connected(guarded.http, f"{guarded.socket_url()}?token={good}") as by_query:
        assert (await by_query.receive())["to"] == "alice"
    async with connected(guarded.http, guarded.socket_url(), protocols=("bearer", good)) as by_protocol:
        assert (await by_protocol.receive())["to"] == "alice"
        assert by_protocol.socket.protocol == "bearer"
    async with connected(guarded.http, guarded.socket_url().replace("/websocket", "/ws"), headers=bearer) as alias:
        assert (await alias.receive())["to"] == "alice"


async def test_no_or_a_bad_token_is_401(guarded: Cluster) -> None:
    """Before the upgrade; a clientId in the query is no identity here."""
    assert await refused(guarded) == 401
    assert await refused(guarded, "?clientId=alice") == 401
    assert await refused(guarded, "?token=x.y.z") == 401
    assert await refused(guarded, f"?token={token(exp=int(time.time()) - 10)}") == 401
    assert await refused(guarded, f"?token={token(nbf=int(time.time()) + 30)}") == 401
    assert await refused(guarded, headers={"Authorization": "Bearer " + token(sub="no client!")}) == 401
    assert await refused(guarded, f"?token={jwt.encode({'sub': 'alice'}, 'x' * 32, algorithm='HS256')}") == 401


async def test_origins(guarded: Cluster) -> None:
    """Allowed ones pass, `*` is one label, others are 403; without Origin it is no browser."""
    query = f"?token={token()}"
    for origin in ("https://app.example.com", "https://x.example.org"):
        async with connected(guarded.http, guarded.socket_url() + query, headers={"Origin": origin}) as client:
            await client.receive()
    for origin in ("https://example.org", "https://a.b.example.org", "http://app.example.com", "null"):
        assert await refused(guarded, query, {"Origin": origin}) == 403


async def test_type_7_may_name_only_the_tokens_sub(guarded: Cluster) -> None:
    """With authentication on, too."""
    async with connected(guarded.http, f"{guarded.socket_url()}?token={token()}") as client:
        await client.receive()
        await client.send({"type": 7, "params": {"openid": "bob"}})
        assert (await client.receive())["params"]["code"] == "forbidden"


async def test_a_silent_client_is_pinged_then_closed_with_4009(guarded: Cluster) -> None:
    """It answers nothing: pings come first, the close within the timeout."""
    async with connected(guarded.http, f"{guarded.socket_url()}?token={token()}", autoping=False) as client:
        await client.receive()
        assert await client.closed() == 4009
    assert client.pings >= 1


async def test_answering_pings_or_sending_heartbeats_keeps_a_session(guarded: Cluster) -> None:
    """Beyond the heartbeat timeout: pongs of one client, msgType 3 of another."""
    query = f"?token={token()}"
    async with (
        connected(guarded.http, guarded.socket_url() + query) as ponging,
        connected(guarded.http, guarded.socket_url() + query, autoping=False) as beating,
    ):
        await ponging.receive()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            await beating.send({"msgType": 3})
            await beating.receive_type(4)
            await asyncio.sleep(0.1)
        assert not ponging.socket.closed
        assert not beating.socket.closed


async def test_a_session_ends_with_its_token(guarded: Cluster) -> None:
    """4001 once exp has passed."""
    async with connected(guarded.http, f"{guarded.socket_url()}?token={token(exp=int(time.time()) + 2)}") as client:
        await client.receive()
        assert await client.closed() == 4001


async def test_plain_requests(guarded: Cluster) -> None:
    """/healthz on the same port, 404 elsewhere, an upgrade asked for where none is offered."""
    base = f"http://127.0.0.1:{guarded.nodes[0].ready['port']}"
    async with guarded.http.get(base + "/healthz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ok")
    async with guarded.http.get(base + "/nowhere") as answer:
        assert answer.status == 404
    async with guarded.http.get(base + "/websocket", headers={"Authorization": f"Bearer {token()}"}) as answer:
        assert answer.status in (400, 426)


async def test_plain_answers_have_security_headers(guarded: Cluster) -> None:
    """Of both ports, errors included; neither names a version of what serves it."""
    port, admin_port = (guarded.nodes[0].ready[name] for name in ("port", "admin_port"))
    places = [(port, path) for path in ("/healthz", "/nowhere", "/websocket")]
    places += [(admin_port, path) for path in ("/healthz", "/metrics", "/sessions", "/nowhere")]
    for at, path in places:
        async with guarded.http.get(f"http://127.0.0.1:{at}{path}") as answer:
            headers = {name: answer.headers.get(name) for name in SECURITY_HEADERS}
            assert (path, SECURITY_HEADERS) == (path, headers)
            assert answer.headers.get("Server", "pushfleet") == "pushfleet"


async def test_the_admin_port(guarded: Cluster) -> None:
    """Metrics, health and the number of sessions."""
    base = f"http://127.0.0.1:{guarded.nodes[0].ready['admin_port']}"
    async with connected(guarded.http, f"{guarded.socket_url()}?token={token()}") as client:
        await client.receive()
        async with guarded.http.get(base + "/metrics") as answer:
            assert "push_node_sessions 1.0" in await answer.text()
        async with guarded.http.get(base + "/sessions") as answer:
            assert (await answer.json())["sessions"] == 1
    async with guarded.http.get(base + "/healthz") as answer:
        assert answer.status == 200


async def test_sessions_of_one_client_in_one_instant_have_ids_of_their_own(cluster: Cluster, name: Name) -> None:
    """Fifty at once, on one node."""
    url = f"{cluster.socket_url()}?clientId={name('alice')}"
    sockets = await asyncio.gather(*(cluster.http.ws_connect(url) for _ in range(50)))
    ids = {orjson.loads((await socket.receive()).data)["sessionId"] for socket in sockets}
    await asyncio.gather(*(socket.close() for socket in sockets))

    assert len(ids) == 50


async def test_bad_client_ids_are_400(cluster: Cluster) -> None:
    """Named before the upgrade."""
    assert await refused(cluster, "?clientId=not%20good") == 400
    assert await refused(cluster, "?channelId=" + "x" * 129) == 400


async def test_channel_id_is_another_name(cluster: Cluster, name: Name) -> None:
    """The predecessor's clients use it."""
    alice = name("alice")
    async with connected(cluster.http, f"{cluster.socket_url()}?channelId={alice}") as client:
        assert (await client.receive())["to"] == alice


async def test_a_full_node_says_503_with_retry_after(valkey: LocalValkey, namespace: str) -> None:
    """And takes sockets again when one has gone."""
    async with running_cluster(valkey.url, valkey.url, namespace, dispatchers=0, PUSH_MAX_SESSIONS="1") as small:
        async with connected(small.http, f"{small.socket_url()}?clientId=a") as client:
            await client.receive()
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await small.http.ws_connect(f"{small.socket_url()}?clientId=b")
        assert error.value.status == 503
        assert error.value.headers is not None
        assert int(error.value.headers["Retry-After"]) > 0
        async with connected(small.http, f"{small.socket_url()}?clientId=b") as client:
            await client.receive()


async def test_a_node_without_redis_waits_for_it(tmp_path_factory: pytest.TempPathFactory, namespace: str) -> None:
    """/healthz and sockets 503 while Redis is absent at start; healthy by itself once it is there."""
    folder = tmp_path_factory.mktemp("late")
    async with running_valkey(folder) as probe:
        port = probe.port
    url = f"redis://127.0.0.1:{port}/0"
    variables = {"PUSH_REDIS_URL": url, "PUSH_AUTH": "off", "PUSH_NAMESPACE": namespace}
    node = Role("gateway_node", variables | {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0"})
    async with aiohttp.ClientSession() as http:
        try:
            await node.start()
            await node.until_healthy(http, status=503)
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await http.ws_connect(f"ws://127.0.0.1:{node.ready['port']}/websocket?clientId=a")
            assert error.value.status == 503
            late = LocalValkey(folder, port)
            await late.start()
            try:
                await node.until_healthy(http)
                assert await node.stop() == 0
            finally:
                await late.stop()
        finally:
            await node.close()


async def test_a_node_that_never_reached_its_broker_takes_no_sockets(valkey: LocalValkey, namespace: str) -> None:
    """/healthz says what it waits for, sockets are 503 with Retry-After, SIGTERM ends it with 0."""
    variables = {"PUSH_REDIS_URL": valkey.url, "PUSH_BUS_URL": "rocketmq://127.0.0.1:1", "PUSH_AUTH": "off"}
    ports = {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0", "PUSH_NAMESPACE": namespace}
    node = Role("gateway_node", variables | ports)
    async with aiohttp.ClientSession() as http:
        try:
            await node.start()
            waiting = await node.until_logged("waiting_for")
            async with http.get(node.health_url) as answer:
                assert answer.status == 503
                assert "bus" in (await answer.json())["reason"]
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await http.ws_connect(f"ws://127.0.0.1:{node.ready['port']}/websocket?clientId=a")
            assert await node.stop() == 0
        finally:
            await node.close()

    assert waiting["waiting_for"] == "bus"
    assert error.value.status == 503
    assert error.value.headers is not None
    assert int(error.value.headers["Retry-After"]) > 0
