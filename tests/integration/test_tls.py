"""TLS of the roles' ports and of what they connect to, certificates that change, and what proxies tell."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from tests.harness.certificates import Authority, Pair
from tests.harness.client import connected
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.terminator import terminated

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def port_tls(pair: Pair) -> dict[str, Any]:
    return {"PUSH_TLS_CERT": pair.cert, "PUSH_TLS_KEY": pair.key}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secure(valkey: LocalValkey, authority: Authority) -> AsyncIterator[Cluster]:
    """Both roles behind TLS."""
    trusted, variables = authority.client_context(), port_tls(authority.sign())
    async with running_cluster(valkey.url, valkey.url, "secure", tls=trusted, **variables) as running:
        yield running


async def test_a_message_over_tls(secure: Cluster, name: Name) -> None:
    """From a caller over https to a client over wss, and an answer that spans many records."""
    alice = name("alice")
    async with connected(secure.http, f"{secure.socket_url()}?clientId={alice}&ack=1") as client:
        assert (await client.receive())["to"] == alice
        await secure.send(alice, {"text": "x" * 200_000})
        (message,) = await client.until_business(1)
        assert {"text": "x" * 200_000} == message["msg"]
        await client.ack(message["messageId"])


async def test_clients_are_told_wss(secure: Cluster) -> None:
    """The url that /server/get names is what the port speaks."""
    answer = await secure.get("/server/get?clientId=alice")
    assert f"wss://{secure.nodes[0].node_id}/websocket" == answer.body["content"]["url"]


async def test_a_consumer_that_stops_reading_is_cut(
    valkey: LocalValkey, authority: Authority, namespace: str, name: Name
) -> None:
    """Behind TLS the node sees what the kernel has not taken: 4008 beyond the outbox, and nothing is lost."""
    alice = name("alice")
    variables = port_tls(authority.sign("slow")) | {"PUSH_MAX_OUTBOX": "65536"}
    async with running_cluster(
        valkey.url, valkey.url, namespace, tls=authority.client_context(), **variables
    ) as cluster:
        url = f"{cluster.socket_url()}?clientId={alice}"
        reader, writer = await stalled_client(cluster, alice, authority)
        for number in range(30):
            await cluster.send(alice, {"n": number, "text": "x" * 100_000})
        ended = await cluster.nodes[0].until_logged("session_ended")
        assert 4008 == ended["code"]
        whole = (await asyncio.wait_for(reader.read(), DEADLINE_S)).count(b'x"}')
        writer.transport.abort()
        async with connected(cluster.http, url) as client:
            await client.until(lambda: any(frame["msg"]["n"] == 29 for frame in client.business))
            numbers = [frame["msg"]["n"] for frame in client.business]
            assert numbers == list(range(numbers[0], 30))
            assert numbers[0] <= whole < 30


async def stalled_client(
    cluster: Cluster, client_id: str, authority: Authority
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that reads the answer to its upgrade and no more."""
    port = cluster.nodes[0].ready["port"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=authority.client_context(), server_hostname="127.0.0.1", limit=4096
    )
    writer.write(
        f"GET /websocket?clientId={client_id} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def serial_of(port: int, authority: Authority) -> int:
    """Of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=authority.client_context())
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(certificate["serialNumber"], 16)


async def until_other(port: int, authority: Authority, serial: int) -> int:
    async with asyncio.timeout(DEADLINE_S):
        while (now := await serial_of(port, authority)) == serial:  # noqa: ASYNC110 - the role looks when it looks
            await asyncio.sleep(0.1)
    return now


async def test_a_certificate_is_read_again(
    valkey: LocalValkey, authority: Authority, namespace: str, name: Name
) -> None:
    """Of both roles; who is connected stays; a pair that does not fit leaves the old one in use and is logged."""
    pair = authority.sign("renewed")
    trusted = authority.client_context()
    async with running_cluster(valkey.url, valkey.url, namespace, tls=trusted, **port_tls(pair)) as cluster:
        ports = [cluster.nodes[0].ready["port"], cluster.dispatchers[0].ready["http_port"]]
        alice = name("alice")
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}") as client:
            await client.receive()
            serials = [await serial_of(port, authority) for port in ports]
            authority.sign("renewed", days=5)
            assert len({*serials, *[await until_other(port, authority, serials[0]) for port in ports]}) == 2
            await cluster.nodes[0].until_logged("tls_certificate_taken")
            newer = await serial_of(ports[0], authority)
            shutil.copy(authority.sign("other").cert, pair.cert)
            for role in (cluster.nodes[0], cluster.dispatchers[0]):
                assert "PUSH_TLS_KEY" in (await role.until_logged("tls_certificate_not_taken"))["reason"]
            assert newer == await serial_of(ports[0], authority)
            await cluster.send(alice, "still here")
            assert "still here" == (await client.until_business(1))[0]["msg"]


@pytest.mark.parametrize("module", ["gateway_node", "dispatcher"])
@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PUSH_TLS_CERT": "{cert}"}, "PUSH_TLS_KEY"),
        ({"PUSH_TLS_KEY": "{key}"}, "PUSH_TLS_CERT"),
        ({"PUSH_TLS_CERT": "{cert}", "PUSH_TLS_KEY": "nowhere.key"}, "PUSH_TLS_KEY"),
        ({"PUSH_TLS_CERT": "{cert}", "PUSH_TLS_KEY": "{other}"}, "PUSH_TLS_KEY"),
        ({"PUSH_TLS_CERT": "{key}", "PUSH_TLS_KEY": "{key}"}, "PUSH_TLS_CERT"),
        ({"PUSH_TRUSTED_PROXIES": "10.0.0.0/40"}, "PUSH_TRUSTED_PROXIES"),
    ],
)
async def test_wrong_settings(
    module: str, variables: Mapping[str, str], named: str, valkey: LocalValkey, authority: Authority
) -> None:
    """Exit code 2, and the variable by its name."""
    pair, other = authority.sign("wrong"), authority.sign("other")
    files = {"cert": pair.cert, "key": pair.key, "other": other.key}
    code, text = await exit_of(module, valkey, {key: value.format_map(files) for key, value in variables.items()})
    assert 2 == code
    assert f"{named}=" in text


async def test_proxy_headers_of_anybody_are_refused(valkey: LocalValkey) -> None:
    """PUSH_PROXY_PROTOCOL without trusted proxies on an address that others reach."""
    variables = {"PUSH_PROXY_PROTOCOL": "1", "PUSH_NODE_HOST": "0.0.0.0", "PUSH_INSECURE": "1"}
    code, text = await exit_of("gateway_node", valkey, variables)
    assert 2 == code
    assert "PUSH_TRUSTED_PROXIES" in text


async def exit_of(module: str, valkey: LocalValkey, variables: Mapping[str, str]) -> tuple[int, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PUSH_")}
    common = {"PUSH_REDIS_URL": valkey.url, "PUSH_AUTH": "off", "PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        env=inherited | common | {"PUSH_HTTP_PORT": "0"} | dict(variables),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, text = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, text.decode()


async def test_the_commands_speak_tls(secure: Cluster, authority: Authority, name: Name) -> None:
    """`pushfleet tail` and `send` against https and wss, with an authority of the site's own; without it not."""
    alice = name("alice")
    trusting = {**os.environ, "SSL_CERT_FILE": authority.ca}
    command = (sys.executable, "-m", "pushfleet")
    to = ("--dispatcher", secure.dispatcher_url)
    pipe = asyncio.subprocess.PIPE
    tail = await asyncio.create_subprocess_exec(*command, "tail", alice, *to, env=trusting, stdout=pipe)
    assert tail.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert alice == orjson.loads(await tail.stdout.readline())["to"]
            send = await asyncio.create_subprocess_exec(*command, "send", alice, '"hi"', *to, env=trusting, stdout=pipe)
            await send.communicate()
            assert 0 == send.returncode
            assert "hi" == orjson.loads(await tail.stdout.readline())["msg"]
            stranger = await asyncio.create_subprocess_exec(*command, "send", alice, '"hi"', *to, stderr=pipe)
            _, text = await stranger.communicate()
    finally:
        tail.terminate()
        await tail.wait()
    assert 1 == stranger.returncode
    assert b"CERTIFICATE_VERIFY_FAILED" in text


async def test_redis_behind_tls(valkey: LocalValkey, authority: Authority, namespace: str, name: Name) -> None:
    """rediss:// for the store and the streams, with an authority of the site's own."""
    alice = name("alice")
    async with terminated(valkey.port, authority.sign("redis")) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca}"
        async with (
            running_cluster(url, url, namespace) as cluster,
            connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}") as client,
        ):
            await client.receive()
            await cluster.send(alice, "hi")
            assert "hi" == (await client.until_business(1))[0]["msg"]


@pytest.mark.parametrize("module", ["gateway_node", "dispatcher"])
async def test_a_redis_with_a_wrong_certificate(
    module: str, valkey: LocalValkey, authority: Authority, namespace: str, tmp_path: Path
) -> None:
    """Is not spoken to, by the role that waits and says why; nothing is ever said in plain."""
    stranger = Authority(tmp_path, "stranger")
    async with terminated(valkey.port, stranger.sign("redis")) as port, aiohttp.ClientSession() as http:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca}"
        variables = {"PUSH_REDIS_URL": url, "PUSH_NAMESPACE": namespace, "PUSH_AUTH": "off"}
        ports = {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0", "PUSH_HTTP_PORT": "0"}
        role = Role(module, variables | ports)
        waiting = asyncio.create_task(role.until_logged("waiting_for" if module == "gateway_node" else "waiting"))
        started = asyncio.create_task(role.start())
        try:
            line = await waiting
            assert "certificate" in str(line["reason"]).lower()
            if module == "gateway_node":
                await started
                async with http.get(role.health_url) as answer:
                    assert 503 == answer.status
        finally:
            started.cancel()
            await asyncio.wait((started,))
            await role.close()


async def test_forwarded_addresses_are_counted(valkey: LocalValkey, namespace: str, name: Name) -> None:
    """Behind a trusted proxy each client has the limit, not all of them together; beyond it 429 with Retry-After."""
    variables: dict[str, Any] = {"PUSH_TRUSTED_PROXIES": "127.0.0.1", "PUSH_ADDRESS_CONNECTIONS": "1"}
    async with running_cluster(valkey.url, valkey.url, namespace, dispatchers=0, **variables) as cluster:
        url = f"{cluster.socket_url()}?clientId={name('alice')}"
        first, second = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.1, 192.0.2.2"}
        async with connected(cluster.http, url, headers=first), connected(cluster.http, url, headers=second):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await cluster.http.ws_connect(url, headers={"X-Forwarded-For": "192.0.2.9, 192.0.2.2"})
            assert 429 == error.value.status
            assert error.value.headers is not None
            assert 1 <= int(error.value.headers["Retry-After"]) <= 5
            assert 'push_node_refused_total{limit="address_connections"} 1.0' in await metrics(cluster)


async def metrics(cluster: Cluster) -> str:
    async with cluster.http.get(f"http://127.0.0.1:{cluster.nodes[0].ready['admin_port']}/metrics") as answer:
        return await answer.text()


async def test_refused_tokens_are_limited(valkey: LocalValkey, namespace: str) -> None:
    """Beyond the limit an address gets 429 whatever its token, before it is looked at."""
    variables: dict[str, Any] = {"PUSH_AUTH": "jwt", "PUSH_JWT_SECRET": "s" * 32, "PUSH_NODE_HOST": "127.0.0.1"}
    async with running_cluster(
        valkey.url, valkey.url, namespace, dispatchers=0, PUSH_ADDRESS_AUTH_FAILURES="2", **variables
    ) as cluster:
        statuses = []
        for _ in range(6):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await cluster.http.ws_connect(f"{cluster.socket_url()}?token=a.b.c")
            statuses.append(error.value.status)
        assert [401] * 4 == statuses[:4]
        assert 429 in statuses
        assert 'push_node_refused_total{limit="auth_failures"}' in await metrics(cluster)


async def test_the_expiry_is_told(secure: Cluster) -> None:
    """As a metric of both roles."""
    async with secure.http.get(f"{secure.dispatcher_url}/metrics") as answer:
        lines = (await answer.text()).splitlines() + (await metrics(secure)).splitlines()
    shown = [float(line.split()[1]) for line in lines if line.startswith("push_tls_certificate_expires_seconds ")]
    assert 2 == len(shown)
    assert all(seconds > 1.7e9 for seconds in shown)
