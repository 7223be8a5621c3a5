"""Tokens on a real cluster: renewed on the live connection, revoked while clients connect, keys that come late."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from aiohttp import web

from pushfleet.local_valkey import LocalValkey
from shared.ids import client_of_session
from shared.registry import Registry
from shared.revocations import Revocations
from shared.store import Store
from tests.harness.client import Client, connected
from tests.harness.cluster import Answer, Cluster, Role, running_cluster
from tests.harness.tokens import jwks, signer

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]
SECRET = "a secret of more than 32 bytes, for tests"
ADMIN = {"X-API-Key": "admin-key"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(valkey: LocalValkey, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two nodes that look at a session every 80 s and at its route every half second; three sessions a client."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [{"name": scope, "key": f"{scope}-key", "scopes": [scope]} for scope in ("admin", "read", "send")]
    keys.write_text(json.dumps({"keys": entries}))
    async with running_cluster(
        valkey.url,
        valkey.url,
        "tokens",
        nodes=2,
        PUSH_AUTH="jwt",
        PUSH_JWT_SECRET=SECRET,
        PUSH_NODE_HOST="127.0.0.1",
        PUSH_HTTP_HOST="127.0.0.1",
        PUSH_API_KEYS=str(keys),
        PUSH_HEARTBEAT_TIMEOUT="240",
        PUSH_RECONCILE_SECONDS="0.5",
        PUSH_CLIENT_SESSIONS="3",
    ) as running:
        yield running


def token(client_id: str, **claims: object) -> str:
    """Issued ten seconds ago unless `claims` say otherwise (None: not said)."""
    now = int(time.time())
    all_claims = {"sub": client_id, "iat": now - 10, "exp": now + 600} | claims
    given = {name: value for name, value in all_claims.items() if value is not None}
    return jwt.encode(given, SECRET, algorithm="HS256")


def url(cluster: Cluster, with_token: str, node: int = 0) -> str:
    return f"{cluster.socket_url(node)}?token={with_token}"


async def refused(cluster: Cluster, with_token: str, node: int = 0) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await cluster.http.ws_connect(url(cluster, with_token, node))
    return error.value.status


async def is_alive(client: Client) -> bool:
    """Whether it is answered."""
    await client.send({"msgType": 3, "messageId": "alive"})
    return bool((await client.receive_type(4))["messageId"] == "alive")


# -- renewal -------------------------------------------------------------------------------------------------------


async def test_a_session_goes_on_with_a_newer_token(guarded: Cluster, name: Name) -> None:
    """Beyond the end of the first, until that of the second: 4001."""
    alice, now = name("alice"), int(time.time())
    first, second = now + 2, now + 5
    async with connected(guarded.http, url(guarded, token(alice, exp=first))) as client:
        await client.receive()
        await client.send({"msgType": 5, "token": token(alice, exp=second), "messageId": "m-1"})
        renewed = await client.receive()
        assert (5, "m-1", {"expires": second * 1000}) == (renewed["msgType"], renewed["messageId"], renewed["msg"])
        while time.time() < first + 1.5:
            assert await is_alive(client)
            await asyncio.sleep(0.1)
        assert 4001 == await client.closed()
    assert second <= time.time()


async def test_a_token_that_ends_sooner_counts_as_well(guarded: Cluster, name: Name) -> None:
    """Of a session that was to be looked at much later, and of one that was to last for ever."""
    alice = name("alice")
    for before in (int(time.time()) + 600, None):
        async with connected(guarded.http, url(guarded, token(alice, exp=before))) as client:
            await client.receive()
            for life_s in (500, 2):
                await client.send({"msgType": 5, "token": token(alice, exp=int(time.time()) + life_s)})
                await client.receive_type(5)
            assert 4001 == await client.closed()


async def test_a_session_may_be_renewed_for_ever(guarded: Cluster, name: Name) -> None:
    """By a token without exp: it says null."""
    alice, exp = name("alice"), int(time.time()) + 2
    async with connected(guarded.http, url(guarded, token(alice, exp=exp))) as client:
        await client.receive()
        await client.send({"msgType": 5, "token": token(alice, exp=None)})
        assert {"expires": None} == (await client.receive_type(5))["msg"]
        while time.time() < exp + 2.5:
            assert await is_alive(client)
            await asyncio.sleep(0.1)


async def test_tokens_that_renew_nothing(guarded: Cluster, name: Name) -> None:
    """Another client's, an expired one, garbage, none: an error frame each, and the session goes on as it was."""
    alice, exp = name("alice"), int(time.time()) + 4
    async with connected(guarded.http, url(guarded, token(alice, exp=exp))) as client:
        await client.receive()
        for bad, code in (
            (token(name("bob")), "forbidden"),
            (token(alice, exp=int(time.time()) - 60), "unauthorized"),
            ("x.y.z", "unauthorized"),
            ("x" * 20_000, "unauthorized"),
            ("", "bad_frame"),
            (None, "bad_frame"),
            (7, "bad_frame"),
        ):
            await client.send({"msgType": 5, "token": bad})
            error = await client.receive()
            assert (-1, code) == (error["msgType"], error["code"])
            assert not isinstance(bad, str) or not bad or bad not in error["resultMsg"]
        assert await is_alive(client)
        assert 4001 == await client.closed()
    assert exp <= time.time()


async def test_guessing_ends_the_session(guarded: Cluster, name: Name) -> None:
    """Bad tokens are bad frames: 1008 after 30 within a minute."""
    async with connected(guarded.http, url(guarded, token(name("alice")))) as client:
        await client.receive()
        for number in range(31):
            await client.send({"msgType": 5, "token": f"x.{number}.y"})
        assert 1008 == await client.closed()


async def test_where_authentication_is_off_there_is_nothing_to_renew(valkey: LocalValkey, namespace: str) -> None:
    """Said in an error frame."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, dispatchers=0) as open_to_all,
        connected(open_to_all.http, f"{open_to_all.socket_url()}?clientId=alice") as client,
    ):
        await client.receive()
        await client.send({"msgType": 5, "token": token("alice")})
        error = await client.receive()
        assert (-1, "bad_request") == (error["msgType"], error["code"])
        assert await is_alive(client)


# -- revocation ----------------------------------------------------------------------------------------------------


async def revoke(cluster: Cluster, client_id: str) -> Answer:
    answer = await cluster.post(f"/v1/clients/{client_id}/revoke", b"", headers=ADMIN)
    assert 200 == answer.status, answer
    return answer


async def test_revoked_tokens_are_no_good_any_more(guarded: Cluster, name: Name) -> None:
    """All sessions end with 4001, old tokens are refused wherever they are shown, and new ones taken; bob stays."""
    alice, bob = name("alice"), name("bob")
    old, ageless = token(alice), token(alice, iat=None)
    async with (
        connected(guarded.http, url(guarded, old)) as first,
        connected(guarded.http, url(guarded, ageless, 1)) as second,
        connected(guarded.http, url(guarded, token(bob))) as other,
    ):
        for client in (first, second, other):
            await client.receive()
        answer = await revoke(guarded, alice)
        assert 2 == answer.body["closed"]
        assert answer.body["before"] % 1000 == 0
        assert abs(answer.body["before"] / 1000 - time.time()) < 20
        presence = await guarded.get(f"/v1/clients/{alice}", headers=ADMIN)
        assert (False, []) == (presence.body["online"], presence.body["sessions"])
        for client in (first, second):
            assert 4001 == await client.closed()
            assert "the token was revoked" == client.close_reason
        assert await is_alive(other)
    for node in (0, 1):
        assert 401 == await refused(guarded, old, node)
        assert 401 == await refused(guarded, ageless, node)
    fresh = token(alice, iat=int(time.time()), exp=int(time.time()) + 5)
    async with connected(guarded.http, url(guarded, fresh, 1)) as client:
        await client.receive()
        await client.send({"msgType": 5, "token": fresh})
        assert 5 == (await client.receive())["msgType"]
        for bad in (old, ageless):  # which end later
            await client.send({"msgType": 5, "token": bad})
            error = await client.receive()
            assert (-1, "unauthorized") == (error["msgType"], error["code"])
        assert 4001 == await client.closed()
    fresh = token(alice, iat=int(time.time()))
    statuses = [
        (await guarded.get(f"/server/get?clientId={alice}", headers={"Authorization": f"Bearer {shown}"})).status
        for shown in (old, ageless, fresh)
    ]
    assert [401, 401, 200] == statuses


async def test_revoked_tokens_are_limited_like_bad_ones(valkey: LocalValkey, namespace: str) -> None:
    """An address that keeps coming with one gets 429."""
    variables: dict[str, Any] = {"PUSH_AUTH": "jwt", "PUSH_JWT_SECRET": SECRET, "PUSH_NODE_HOST": "127.0.0.1"}
    async with running_cluster(
        valkey.url, valkey.url, namespace, dispatchers=0, PUSH_ADDRESS_AUTH_FAILURES="2", **variables
    ) as cluster:
        store = Store(valkey.url, namespace=namespace)
        try:
            await Revocations(store).revoke("alice", keep_s=60)
        finally:
            await store.close()
        statuses = [await refused(cluster, token("alice")) for _ in range(8)]
        assert [401] * 4 == statuses[:4]
        assert 429 in statuses


async def test_a_token_of_the_same_second_is_taken(guarded: Cluster, name: Name) -> None:
    """Who was signed out may sign in at once."""
    alice = name("alice")
    before = (await revoke(guarded, alice)).body["before"] // 1000
    async with connected(guarded.http, url(guarded, token(alice, iat=before))) as client:
        assert 0 == (await client.receive())["msgType"]
    assert 401 == await refused(guarded, token(alice, iat=before - 1))


async def test_no_connection_slips_through_a_revocation(guarded: Cluster, name: Name) -> None:
    """Of those that come while it is carried out each is refused or ended."""
    alice = name("alice")
    old = token(alice)

    async def connect(number: int) -> int:
        try:
            socket = await guarded.http.ws_connect(url(guarded, old, number % 2))
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        async with asyncio.timeout(20):
            while not socket.closed:
                await socket.receive()
        return socket.close_code or 0

    async def revoke_amid() -> int:
        await asyncio.sleep(0)
        return int((await revoke(guarded, alice)).status)

    outcomes = await asyncio.gather(*(connect(n) for n in range(20)), revoke_amid(), *(connect(n) for n in range(20)))
    assert set(outcomes) <= {200, 401, 503, 4001, 4003}
    presence = await guarded.get(f"/v1/clients/{alice}", headers=ADMIN)
    assert [] == presence.body["sessions"]


async def test_a_session_whose_node_never_heard_of_it_ends_too(
    guarded: Cluster, valkey: LocalValkey, name: Name
) -> None:
    """The line to its node was lost: the sweep finds it."""
    alice = name("alice")
    store = Store(valkey.url, namespace="tokens")
    try:
        async with connected(guarded.http, url(guarded, token(alice))) as client:
            await client.receive()
            revocation = await Revocations(store).revoke(alice, keep_s=60)
            assert 1 == len(revocation.sessions)
            await Registry(store).unregister([(alice, *session) for session in revocation.sessions])
            assert 4001 == await client.closed()
    finally:
        await store.close()


async def test_who_may_revoke(guarded: Cluster, name: Name) -> None:
    """Scope admin; the clientId is checked; a client that nobody knows has no sessions."""
    path = f"/v1/clients/{name('alice')}/revoke"
    assert 401 == (await guarded.post(path, b"")).status
    for scope in ("read", "send"):
        assert 403 == (await guarded.post(path, b"", headers={"X-API-Key": f"{scope}-key"})).status
    bad = await guarded.post("/v1/clients/a%20b/revoke", b"", headers=ADMIN)
    assert (400, "clientId") == (bad.status, bad.body["field"])
    assert 405 == (await guarded.get(path, headers=ADMIN)).status
    assert 0 == (await revoke(guarded, name("nobody"))).body["closed"]
    document = (await guarded.get("/openapi.json")).body["paths"]["/v1/clients/{clientId}/revoke"]["post"]
    assert "Scope: admin." == document["description"]
    assert {"200", "400", "401", "403", "429", "503"} == set(document["responses"])


# -- sessions of a client ------------------------------------------------------------------------------------------


async def count_of(node: Role, http: aiohttp.ClientSession, line: str) -> float:
    async with http.get(f"http://127.0.0.1:{node.ready['admin_port']}/metrics") as answer:
        found = [row for row in (await answer.text()).splitlines() if row.startswith(f"{line} ")]
    return float(found[0].split()[1]) if found else 0.0


async def test_a_client_has_no_more_sessions_than_it_may(guarded: Cluster, name: Name) -> None:
    """Over two nodes: the oldest is replaced (4003) wherever it is, and counted where the new one came."""
    alice = name("alice")
    limit = 'push_node_refused_total{limit="client_sessions"}'
    before = [await count_of(node, guarded.http, limit) for node in guarded.nodes]
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(5):
            client = await stack.enter_async_context(connected(guarded.http, url(guarded, token(alice), number % 2)))
            await client.receive()
            clients.append(client)
        assert [4003, 4003] == [await client.closed() for client in clients[:2]]
        for client in clients[2:]:
            assert await is_alive(client)
        presence = await guarded.get(f"/v1/clients/{alice}", headers=ADMIN)
        assert 3 == len(presence.body["sessions"])
        assert {alice} == {client_of_session(session["sessionId"]) for session in presence.body["sessions"]}
    after = [await count_of(node, guarded.http, limit) for node in guarded.nodes]
    assert [1, 1] == [now - then for now, then in zip(after, before, strict=True)]


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_node_takes_nobody_before_it_has_keys(valkey: LocalValkey, namespace: str) -> None:
    """/healthz and connections are 503 with the reason while the JWKS URL fails; then tokens of its keys are taken."""
    issuer = signer("ES256")
    bodies: list[bytes] = []

    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bodies[0]) if bodies else web.Response(status=500)

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    variables = {
        "PUSH_REDIS_URL": valkey.url,
        "PUSH_NAMESPACE": namespace,
        "PUSH_JWT_JWKS": f"http://127.0.0.1:{runner.addresses[0][1]}/",
        "PUSH_NODE_HOST": "127.0.0.1",
        "PUSH_NODE_PORT": "0",
        "PUSH_ADMIN_PORT": "0",
    }
    node = Role("gateway_node", variables)
    async with aiohttp.ClientSession() as http:
        try:
            await node.start()
            cluster = Cluster(variables, http, [node])
            async with asyncio.timeout(20):
                reason = ""
                while "keys" not in reason:
                    async with http.get(node.health_url) as answer:
                        assert 503 == answer.status
                        reason = (await answer.json())["reason"]
            assert 503 == await refused(cluster, issuer.sign())
            assert 503 == await refused(cluster, "x.y.z")
            bodies.append(jwks(issuer.jwk()))
            await node.until_healthy(http)
            async with connected(http, url(cluster, issuer.sign())) as client:
                assert "alice" == (await client.receive())["to"]
            assert 401 == await refused(cluster, signer("ES256", which=1).sign())
            assert 401 == await refused(cluster, token("alice"))
        finally:
            await node.close()
            await runner.cleanup()
