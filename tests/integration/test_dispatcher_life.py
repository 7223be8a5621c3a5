"""The dispatcher as an operator sees it: keys, placement, health, what it survives, how it starts and stops."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from pushfleet.local_valkey import LocalValkey
from shared.tokens import mint_token
from shared.upstream import UpstreamSend
from tests.harness.dispatcher import DEADLINE_S, Caller, DispatcherProcess, Site, running_dispatcher, start_dispatcher

SECRET = "a secret of at least 32 characters!"


@asynccontextmanager
async def serving(valkey: LocalValkey, namespace: str, **environ: str) -> AsyncIterator[tuple[DispatcherProcess, Site]]:
    """A dispatcher that is ready, and the nodes' side of its namespace."""
    async with running_dispatcher(valkey.url, namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        site = Site(valkey.url, namespace)
        try:
            yield dispatcher, site
        finally:
            await site.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


def keys_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return str(path)


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_keys_decide_who_may_send(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """401 without a good key, 403 without the scope, the key's name is the default `from`."""
    keys = keys_file(
        tmp_path,
        {"name": "billing", "sha256": hashlib.sha256(b"b-key").hexdigest(), "scopes": ["send"]},
        {"name": "news", "key": "n-key", "scopes": ["broadcast"]},
        {"name": "audit", "key": "a-key", "scopes": ["read"]},
    )
    async with serving(valkey, namespace, PUSH_AUTH="jwt", PUSH_API_KEYS=keys) as (dispatcher, site):
        node = await site.node()
        await node.connect("alice")
        billing, news, audit, nobody = (Caller(http, dispatcher.url, key) for key in ("b-key", "n-key", "a-key", ""))

        refused = await nobody.send("alice")
        assert (401, False, "Bearer") == (
            refused.status,
            refused.fields["success"],
            refused.headers["WWW-Authenticate"],
        )
        assert 401 == (await Caller(http, dispatcher.url, "guess").send("alice")).status
        assert [403, 403, 403] == [
            (await news.send("alice")).status,
            (await billing.send(sendToAll=True)).status,
            (await audit.send_list({"to": "alice", "msg": 1})).status,
        ]
        named = await billing.send("alice")
        assert "billing" == (await node.lines_of(named.message_id))[0].fields["from"]
        in_other_header = await nobody.post("/message/send", b'{"to":"alice","msg":1}', **{"X-API-Key": "b-key"})
        assert 200 == in_other_header.status
        assert 200 == (await news.send(sendToAll=True)).status
        mixed = await billing.send_list({"to": "alice", "msg": 1}, {"sendToAll": True, "msg": 1})
        assert [200, 403] == [item["statusCode"] for item in mixed.content]
        assert "b-key" not in dispatcher.text
        assert ["news", "audit"] == (await dispatcher.until("plain_api_keys"))["names"]


async def test_rate_and_quota_are_kept(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """429 with Retry-After over either; a list's items count one by one."""
    keys = keys_file(
        tmp_path,
        {"name": "slow", "key": "s-key", "scopes": ["send"], "rate": 0.01},
        {"name": "small", "key": "q-key", "scopes": ["send"], "quota": 3},
    )
    async with serving(valkey, namespace, PUSH_AUTH="jwt", PUSH_API_KEYS=keys) as (dispatcher, _):
        slow, small = Caller(http, dispatcher.url, "s-key"), Caller(http, dispatcher.url, "q-key")
        assert 200 == (await slow.send("alice")).status
        refused = await slow.send("alice")
        assert (429, 429) == (refused.status, refused.fields["statusCode"])
        assert 1 <= int(refused.headers["Retry-After"]) <= 100

        assert 200 == (await small.send("alice")).status
        items = (await small.send_list(*[{"to": "alice", "msg": 1}] * 4)).content
        assert [200, 200, 429, 429] == [item["statusCode"] for item in items]
        refused = await small.send("alice")
        assert 429 == refused.status
        assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
        metrics = (await small.get("/metrics")).text
        for limit, count in (("rate", 1), ("quota", 3)):
            assert f'push_dispatcher_refused_total{{limit="{limit}"}} {count}.0' in metrics


async def test_callers_have_request_ids_of_their_own(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """Two callers may use the same requestId; neither sees the other's answer."""
    entries = [{"name": name, "key": name, "scopes": ["send"]} for name in ("a", "b")]
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": keys_file(tmp_path, *entries)}
    async with serving(valkey, namespace, **environ) as (dispatcher, site):
        one = await Caller(http, dispatcher.url, "a").send("alice", requestId="r")
        two = await Caller(http, dispatcher.url, "b").send("alice", "other", requestId="r")
        assert [200, 200] == [one.status, two.status]
        assert [one.message_id, two.message_id] == await site.held("alice")


# -- placement -----------------------------------------------------------------------------------------------------


async def test_a_client_is_sent_to_its_last_node_or_the_least_loaded(
    valkey: LocalValkey, namespace: str, http: aiohttp.ClientSession
) -> None:
    """By connections and weight; never to one that drains or died; 503 when there is none."""
    async with serving(valkey, namespace, PUSH_LEASE="1") as (dispatcher, site):
        caller = Caller(http, dispatcher.url)
        none = await caller.get("/server/get", clientId="alice")
        assert 503 == none.status
        assert int(none.headers["Retry-After"]) > 0

        small = await site.node(connections=1000)
        large = await site.node(connections=3000, weight=4, url="wss://large.example/websocket")
        await until_placed(caller, "new", large.node_id)
        content = (await caller.get("/server/get", clientId="new")).content
        assert {"nodeId": large.node_id, "url": "wss://large.example/websocket"} == content

        await small.connect("alice")
        content = (await caller.get("/server/get", clientId="alice")).content
        assert {"nodeId": small.node_id, "url": f"ws://{small.node_id}/websocket"} == content
        await small.lease(draining=True)
        await until_placed(caller, "alice", large.node_id)
        await small.lease()
        await until_placed(caller, "alice", small.node_id)
        await small.release()
        await until_placed(caller, "alice", large.node_id)


async def until_placed(caller: Caller, client_id: str, node_id: str) -> None:
    """The table of nodes is read each second."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            answer = await caller.get("/server/get", clientId=client_id)
            if answer.status == 200 and answer.content["nodeId"] == node_id:
                return
            await asyncio.sleep(0.05)


async def test_a_crowd_is_spread_before_leases_tell(
    valkey: LocalValkey, namespace: str, http: aiohttp.ClientSession
) -> None:
    """Nodes tell their connections seldom; clients sent there since count as well."""
    async with serving(valkey, namespace) as (dispatcher, site):
        caller = Caller(http, dispatcher.url)
        nodes = [await site.node(), await site.node()]
        await until_placed(caller, "first", nodes[0].node_id)
        await until_placed(caller, "second", nodes[1].node_id)
        answers = await asyncio.gather(*(caller.get("/server/get", clientId=f"c{n}") for n in range(40)))
        placed = [answer.content["nodeId"] for answer in answers]
        assert 15 <= placed.count(nodes[0].node_id) <= 25


async def test_placement_is_for_callers_and_for_the_client_itself(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """Any API key, or the client's own connect token; bad questions are 400."""
    keys = keys_file(tmp_path, {"name": "audit", "key": "a-key", "scopes": ["read"]})
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": keys, "PUSH_JWT_SECRET": SECRET}
    async with serving(valkey, namespace, **environ) as (dispatcher, site):
        node = await site.node()
        audit = Caller(http, dispatcher.url, "a-key")
        await until_placed(audit, "alice", node.node_id)
        alice = Caller(http, dispatcher.url, mint_token(SECRET, "alice", life_s=60))
        late = Caller(http, dispatcher.url, mint_token(SECRET, "alice", life_s=-60))
        forged = Caller(http, dispatcher.url, mint_token(SECRET + "?", "alice", life_s=60))
        assert 200 == (await alice.get("/server/get", clientId="alice")).status
        assert 403 == (await alice.get("/server/get", clientId="bob")).status
        for caller in (late, forged, Caller(http, dispatcher.url)):
            assert 401 == (await caller.get("/server/get", clientId="alice")).status
        assert 401 == (await alice.send("bob")).status
        assert 400 == (await audit.get("/server/get")).status
        assert "clientId: " in (await audit.get("/server/get", clientId="not good")).fields["msg"]


# -- health, metrics, OpenAPI --------------------------------------------------------------------------------------


async def test_health_metrics_and_openapi_need_no_key(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """Probes and scrapers carry none; every reference in the document resolves."""
    keys = keys_file(tmp_path, {"name": "billing", "key": "b-key", "scopes": ["send"]})
    async with serving(valkey, namespace, PUSH_AUTH="jwt", PUSH_API_KEYS=keys) as (dispatcher, _):
        nobody = Caller(http, dispatcher.url)
        await Caller(http, dispatcher.url, "b-key").send(["alice", "bob"])
        assert (200, {"status": "ok"}) == ((health := await nobody.get("/healthz")).status, json.loads(health.text))
        metrics = (await nobody.get("/metrics")).text
        assert 'push_sends_total{status="200"} 1.0' in metrics
        assert 'push_targets_total{state="offline"} 2.0' in metrics
        assert "push_http_send_seconds_count 1.0" in metrics
        document = json.loads((await nobody.get("/openapi.json")).text)
        assert document["openapi"].startswith("3.1")
        assert {"/message/send", "/message/sendList", "/server/get"} <= set(document["paths"])
        for reference in references(document):
            part = document
            for step in reference.removeprefix("#/").split("/"):
                part = part[step]


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


# -- what it survives ----------------------------------------------------------------------------------------------


async def test_it_starts_without_redis_and_serves_when_it_is_there(
    private_valkey: LocalValkey, http: aiohttp.ClientSession
) -> None:
    """Until then /healthz is 503 with the reason, sends are 503 with Retry-After, and the log is not flooded."""
    private_valkey.kill()
    async with running_dispatcher(private_valkey.url, "t") as dispatcher:
        caller = Caller(http, dispatcher.url)
        await dispatcher.until("waiting")
        health, send = await caller.get("/healthz"), await caller.send("alice")
        assert (503, "unavailable") == (health.status, json.loads(health.text)["status"])
        assert "Redis" in json.loads(health.text)["reason"]
        assert (503, 503) == (send.status, send.fields["statusCode"])
        assert int(send.headers["Retry-After"]) > 0
        assert 503 == (await caller.get("/server/get", clientId="a")).status
        await private_valkey.restart()
        await dispatcher.until("ready")
        assert [200, 200] == [(await caller.get("/healthz")).status, (await caller.send("alice")).status]


async def test_it_survives_a_crash_of_redis(private_valkey: LocalValkey, http: aiohttp.ClientSession) -> None:
    """Sends are 503 meanwhile; the retry of one with a requestId is the same message; frames are not lost."""
    async with serving(private_valkey, "t") as (dispatcher, site):
        caller = Caller(http, dispatcher.url)
        node = await site.node()
        await node.connect("alice")
        before = await caller.send("alice", requestId="r")
        private_valkey.kill()
        down = await caller.send("alice", "other")
        assert (503, False) == (down.status, down.fields["success"])
        assert int(down.headers["Retry-After"]) > 0
        await until_health(caller, 503)
        await private_valkey.restart()
        await until_health(caller, 200)
        again = await caller.send("alice", requestId="r")
        assert (200, before.message_id) == (again.status, again.message_id)
        frame = UpstreamSend("a" * 32, "r", "bob", 1_900_000_000_000, ["alice"], msgspec.Raw(b'"hi"'))
        await site.publish_upstream(frame)
        assert await node.lines_of("a" * 32)


async def until_health(caller: Caller, status: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (await caller.get("/healthz")).status == status:
                return
            await asyncio.sleep(0.05)


# -- start and stop ------------------------------------------------------------------------------------------------


async def test_it_finishes_what_it_accepted(valkey: LocalValkey, namespace: str) -> None:
    """SIGTERM while a body is still coming in: that send is answered, new connections are refused, exit code 0."""
    async with serving(valkey, namespace) as (dispatcher, site):
        host, port = dispatcher.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"to":"alice","msg":1}'
        writer.write(b"POST /message/send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body))
        writer.write(b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        dispatcher.ask_to_stop()
        await until_refused(host, int(port))
        writer.write(body)
        answer = await reader.read()
        writer.close()
        assert b"200 OK" in answer
        assert 0 == await dispatcher.ended()
        assert 1 == len(await site.held("alice"))


async def until_refused(host: str, port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)


async def test_idle_connections_do_not_hold_up_the_end(valkey: LocalValkey, namespace: str) -> None:
    """A kept connection without a request is closed at once."""
    async with serving(valkey, namespace) as (dispatcher, _):
        host, port = dispatcher.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b'"ok"}')
        assert 0 == await dispatcher.stop()
        assert b"" == await reader.read()
        writer.close()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PUSH_AUTH": "jwt"}, "PUSH_API_KEYS"),
        ({"PUSH_HTTP_HOST": "0.0.0.0"}, "PUSH_HTTP_HOST='0.0.0.0'"),
        ({"PUSH_HTTP_PORT": "http"}, "PUSH_HTTP_PORT='http'"),
        ({"PUSH_INBOX_BYTES": "-1", "PUSH_LEASE": "x"}, "PUSH_LEASE='x'"),
    ],
)
async def test_wrong_settings_are_named(environ: dict[str, str], words: str) -> None:
    """Exit code 2, after saying the variable, its value and what is expected."""
    code, text = await failing_start(environ)
    assert 2 == code
    assert words in text


async def test_a_taken_port_is_named() -> None:
    """Exit code 2, with the variables and the reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, text = await failing_start({"PUSH_HTTP_PORT": port})
    assert 2 == code
    assert f"PUSH_HTTP_PORT={port}" in text


async def failing_start(environ: dict[str, str]) -> tuple[int, str]:
    """(exit code, stderr)"""
    dispatcher = await start_dispatcher("redis://127.0.0.1:1/0", "t", **environ)
    return await dispatcher.ended(), dispatcher.text


async def test_help_names_every_variable() -> None:
    """`python -m dispatcher --help` lists them with their defaults, and starts nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", "--help", stdout=asyncio.subprocess.PIPE
    )
    text = (await process.communicate())[0].decode()
    assert 0 == process.returncode
    assert "PUSH_HTTP_PORT" in text
    assert "8080" in text
