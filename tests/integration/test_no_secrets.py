"""No secret and no message stands where others read: logs, metrics, answers, error bodies, command lines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import jwt
import pytest
import redis.asyncio

from pushfleet.local_valkey import LocalValkey
from shared.tokens import mint_token
from tests.harness.client import connected
from tests.harness.cluster import Cluster, Role, running_cluster

SIGNING = "Odd-Signing-Secret-0123456789-abcdef"
REDIS = "Odd-Redis-Pa55word"
KEY = "Odd-Api-Key-0123456789"
FOREIGN_KEY = "Odd-Foreign-Key-0123456789"
BODY = "Odd-Body-0123456789"
JWKS = "Odd-Jwks-Pa55word"


@dataclass
class Seen:
    """What anybody but its owner could read, by where it was."""

    texts: dict[str, str] = field(default_factory=dict)

    def places_of(self, *secrets: str) -> list[str]:
        found = ((place, secret) for place, text in self.texts.items() for secret in secrets if secret in text)
        return [f"{secret[:24]} in {place}" for place, secret in found]

    def keep_logs(self, cluster: Cluster) -> None:
        for role in (*cluster.nodes, *cluster.dispatchers):
            self.texts[f"log of {role.pid}"] = "\n".join(map(json.dumps, role.log))
            self.texts[f"command line of {role.pid}"] = command_line(role.pid)

    async def ask(self, http: aiohttp.ClientSession, method: str, url: str, **options: object) -> None:
        async with http.request(method, url, **options) as answer:  # type: ignore[arg-type]
            self.texts[f"{method} {url.partition('?')[0]} {len(self.texts)}"] = f"{answer.headers}{await answer.text()}"

    async def exchange(self, url: str, request: bytes) -> None:
        """A request that no HTTP library would make."""
        host, _, port = urlsplit(url).netloc.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                self.texts[f"raw answer {len(self.texts)}"] = (await reader.read(65536)).decode("latin-1")
        writer.close()


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture
async def guarded(private_valkey: LocalValkey, namespace: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster with authentication everywhere, also at its Redis."""
    async with redis.asyncio.Redis.from_url(private_valkey.url) as admin:
        await admin.config_set("requirepass", REDIS)
    url = private_valkey.url.replace("redis://", f"redis://:{REDIS}@")
    keys = tmp_path / "keys.json"
    entry = {"name": "tests", "sha256": sha256(KEY.encode()).hexdigest(), "scopes": ["send", "broadcast", "read"]}
    keys.write_text(json.dumps({"keys": [entry]}))
    variables = {
        "PUSH_AUTH": "jwt",
        "PUSH_JWT_SECRET": SIGNING,
        "PUSH_API_KEYS": str(keys),
        "PUSH_NODE_HOST": "127.0.0.1",
    }
    variables |= {"PUSH_HTTP_HOST": "127.0.0.1", "PUSH_LOG_LEVEL": "debug"}
    async with running_cluster(url, url, namespace, nodes=1, dispatchers=1, tls=True, **variables) as cluster:
        yield cluster


def authorized(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_secrets_of_callers_and_clients_stay_with_them(guarded: Cluster) -> None:
    """Good and bad tokens and keys in headers, queries and subprotocols, bodies and frames, well formed or not."""
    seen, http, dispatcher, node = Seen(), guarded.http, guarded.dispatcher_url, guarded.nodes[0].health_url[:-8]
    good = mint_token(SIGNING, "alice", life_s=60)
    bad = jwt.encode({"sub": "alice", "exp": time.time() + 60}, "Another-Secret-0123456789-0123456789", "HS256")
    async with connected(http, f"{guarded.socket_url()}?token={good}&ack=1") as client:
        await client.receive()
        await seen.ask(
            http, "POST", f"{dispatcher}/message/send", json={"to": "alice", "msg": BODY}, headers=authorized(KEY)
        )
        await client.until_business(1)
        for frame in (f"{{{BODY}", f'{{"type":1,"params":"{BODY}"}}', f'{{"msgType":5,"token":"{bad}"}}'):
            await client.send(frame)
            await client.receive()
        await client.send({"msgType": 1, "to": "bob", "msg": BODY})
        await client.receive_type(2)
    foreign = authorized(FOREIGN_KEY)
    for path in ("/message/send", "/v1/groups", f"/nowhere?token={bad}", f"/server/get?clientId=alice&token={bad}"):
        await seen.ask(http, "POST", dispatcher + path, data=f'{{"to":"{BODY}', headers=foreign)
        await seen.ask(http, "POST", dispatcher + path, data=f"[{BODY}", headers=authorized(KEY))
        await seen.ask(http, "GET", dispatcher + path, headers=foreign)
    for path in ("/metrics", "/healthz", "/openapi.json", "/v1/nodes", "/v1/clients/alice", f"/v1/nodes?token={bad}"):
        await seen.ask(http, "GET", dispatcher + path, headers=authorized(KEY))
    admin = f"http://127.0.0.1:{guarded.nodes[0].ready['admin_port']}"
    for url in (
        f"{node}/websocket?token={bad}",
        f"{node}/healthz?token={bad}",
        f"{admin}/metrics",
        f"{admin}/nowhere?{bad}",
    ):
        await seen.ask(http, "GET", url, headers=foreign)
    for url, path in ((dispatcher, "/message/send"), (node, f"/websocket?token={bad}")):
        secret = f"Authorization: Bearer {FOREIGN_KEY}"
        await seen.exchange(url, f"GET {path} HTTP/1.1\r\nHost: a\r\n{secret}\0\r\n\r\n".encode())
        await seen.exchange(url, f"{FOREIGN_KEY} {path} HTTP/1.1\r\n{secret}\r\n\r\n".encode())
        await seen.exchange(url, f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {FOREIGN_KEY}\r\n\r\n".encode())
    logged = Seen()
    logged.keep_logs(guarded)
    seen.keep_logs(guarded)

    tokens = [text for token in (good, bad) for text in (token, token.rpartition(".")[2])]
    assert [] == seen.places_of(SIGNING, REDIS, KEY, sha256(KEY.encode()).hexdigest(), *tokens)
    # A caller may read its own words back in the answer that refuses them; nobody else may.
    assert [] == logged.places_of(FOREIGN_KEY, BODY)


async def test_a_redis_that_refuses_the_password_does_not_have_it_logged(
    guarded: Cluster, private_valkey: LocalValkey
) -> None:
    """The password was changed: both roles say that Redis refuses them, and nothing of what they tried."""
    url = private_valkey.url.replace("redis://", f"redis://:{REDIS}@")
    async with redis.asyncio.Redis.from_url(url) as admin:
        await admin.config_set("requirepass", "another")
        await admin.client_kill_filter(_type="normal", skipme=True)
        await guarded.nodes[0].until_logged("lease_not_renewed")
        await guarded.dispatchers[0].until_logged("redis_unavailable")
        seen = Seen()
        await seen.ask(guarded.http, "GET", f"{guarded.dispatcher_url}/healthz")
        await seen.ask(guarded.http, "GET", guarded.nodes[0].health_url)
        await admin.config_set("requirepass", REDIS)
    seen.keep_logs(guarded)
    seen.texts["command line of Valkey"] = command_line(private_valkey.pid)
    assert [] == seen.places_of(REDIS)


async def test_a_jwks_url_that_leads_nowhere_does_not_have_its_password_logged(guarded: Cluster) -> None:
    """Nor the one of a URL that is none."""
    places = (f"http://reader:{JWKS}@127.0.0.1:1/keys?token={JWKS}", f"http://reader:{JWKS}@[::/keys")
    for place in places:
        node = Role(
            "gateway_node", guarded.variables | {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0", "PUSH_JWT_JWKS": place}
        )
        guarded.nodes.append(node)
        await node.start()
        await node.until_logged("keys_not_read")
    seen = Seen()
    seen.keep_logs(guarded)
    assert [] == seen.places_of(JWKS)
