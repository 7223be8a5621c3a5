"""Who may do what: every operation with no key and with each scope alone, as an API key and as a JWT."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import jwt
import pytest
import pytest_asyncio

from dispatcher.app import Dispatcher
from dispatcher.key_file import SCOPES, digest_of
from dispatcher.settings import DispatcherSettings
from pushfleet.local_valkey import LocalValkey
from shared.settings import load
from tests.harness.dispatcher import running_dispatcher

SECRET = "a secret of at least 32 bytes, for tests"
LONG = "/api/chatServe/rocketmq/mqmessage"
EVERYBODY = (200, 200, 200, 200, 200)
ONE = '{"to":"alice","msg":1}'

# The status for: no key, then each of SCOPES alone. 400 and 404 are answers to who may ask: nothing is called `none`.
SEND = (401, 200, 403, 403, 403)
LIST = (401, 200, 200, 403, 403)  # who may send anything at all; each item is then judged on its own
READ = (401, 403, 403, 404, 404)
BAD_ID = (401, 403, 403, 400, 400)
FOUND = (401, 403, 403, 200, 200)
GROUPS = (401, 404, 403, 403, 404)
ADMIN = (401, 403, 403, 403, 404)

# method, path -> body, statuses. A path's parameters are replaced by "none".
TABLE: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {
    ("POST", "/message/send"): (ONE, SEND),
    ("POST", f"{LONG}/message/send"): (ONE, SEND),
    ("POST", "/message/sendList"): (f"[{ONE}]", LIST),
    ("POST", f"{LONG}/message/sendList"): (f"[{ONE}]", LIST),
    ("GET", "/server/get"): ("", (401, 503, 503, 503, 503)),  # no node lives here
    ("GET", "/healthz"): ("", EVERYBODY),
    ("GET", "/metrics"): ("", EVERYBODY),
    ("GET", "/openapi.json"): ("", EVERYBODY),
    ("GET", "/v1/nodes"): ("", FOUND),
    ("POST", "/v1/nodes/{nodeId}/drain"): ("", ADMIN),
    ("DELETE", "/v1/nodes/{nodeId}/drain"): ("", ADMIN),
    ("GET", "/v1/nodes/{nodeId}/sessions"): ("", BAD_ID),
    ("POST", "/v1/groups"): ("", (401, 201, 403, 403, 201)),
    ("GET", "/v1/groups/{groupId}"): ("", READ),
    ("PATCH", "/v1/groups/{groupId}"): ('{"groupName":"n"}', GROUPS),
    ("DELETE", "/v1/groups/{groupId}"): ("", GROUPS),
    ("GET", "/v1/groups/{groupId}/members"): ("", READ),
    ("POST", "/v1/groups/{groupId}/members"): ('{"members":["a"]}', GROUPS),
    ("DELETE", "/v1/groups/{groupId}/members"): ('{"members":["a"]}', GROUPS),
    ("POST", "/v1/broadcasts"): ('{"toGroups":"none","msg":1}', (401, 403, 404, 403, 404)),
    ("GET", "/v1/broadcasts"): ("", (401, 403, 200, 200, 200)),
    ("GET", "/v1/broadcasts/{broadcastId}"): ("", (401, 403, 404, 404, 404)),
    ("DELETE", "/v1/broadcasts/{broadcastId}"): ("", (401, 403, 404, 403, 404)),
    ("GET", "/v1/clients/{clientId}"): ("", FOUND),
    ("POST", "/v1/clients/online"): ('{"clientIds":["a"]}', FOUND),
    ("DELETE", "/v1/clients/{clientId}/sessions"): ("", (401, 403, 403, 403, 200)),
    ("POST", "/v1/clients/{clientId}/revoke"): ("", (401, 403, 403, 403, 200)),
    ("GET", "/v1/sessions/{sessionId}"): ("", BAD_ID),
    ("DELETE", "/v1/sessions/{sessionId}"): ("", (401, 403, 403, 403, 400)),
}


def credentials(kind: str) -> list[str]:
    """Nothing, then one with each of the scopes alone."""
    if kind == "key":
        return ["", *(f"pf_{scope}" for scope in SCOPES)]
    claims = {"sub": "crm", "exp": int(time.time()) + 600}
    return ["", *(jwt.encode({**claims, "scope": scope}, SECRET, algorithm="HS256") for scope in SCOPES)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(valkey: LocalValkey, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = [{"name": scope, "sha256": digest_of(f"pf_{scope}").hex(), "scopes": [scope]} for scope in SCOPES]
    path.write_text(json.dumps({"keys": keys}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(path), "PUSH_JWT_SECRET": SECRET}
    async with running_dispatcher(valkey.url, "scopes", **environ) as running:
        await running.until("ready")
        yield running.url


async def test_every_operation_is_in_the_table(tmp_path: Path) -> None:
    """Whoever adds one has to say who may use it."""
    dispatcher = Dispatcher(load(DispatcherSettings, {"PUSH_AUTH": "off"}))
    served = dispatcher.api.paths()
    await dispatcher.close()
    assert set(TABLE) == set(served)
    assert len(served) == len(set(served))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", ["key", "jwt"])
@pytest.mark.parametrize("operation", TABLE, ids=" ".join)
async def test_scopes(url: str, operation: tuple[str, str], kind: str) -> None:
    """The status without a key and with each scope alone; a JWT's scope is worth what a key's is."""
    method, path = operation
    body, expected = TABLE[operation]
    for parameter in ("nodeId", "groupId", "broadcastId", "clientId", "sessionId"):
        path = path.replace(f"{{{parameter}}}", "none")
    path += "?clientId=alice" if path == "/server/get" else ""
    found = []
    async with aiohttp.ClientSession() as http:
        for credential in credentials(kind):
            headers = {"Authorization": f"Bearer {credential}"} if credential else {}
            async with http.request(method, url + path, data=body or None, headers=headers) as answer:
                found.append(answer.status)
                if answer.status == 401:
                    assert "Bearer" == answer.headers["WWW-Authenticate"]
    assert expected == tuple(found)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_audience_keeps_connect_tokens_out(valkey: LocalValkey, tmp_path: Path) -> None:
    """With PUSH_CALLER_AUDIENCE a scope in a connect token is worth nothing."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["send"]}]}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(path), "PUSH_JWT_SECRET": SECRET}
    audiences = {"PUSH_JWT_AUDIENCE": "nodes", "PUSH_CALLER_AUDIENCE": "dispatcher"}
    async with running_dispatcher(valkey.url, "audiences", **environ, **audiences) as running:
        await running.until("ready")
        found = []
        for audience in ("nodes", "dispatcher"):
            claims = {"sub": "crm", "exp": int(time.time()) + 600, "scope": "send", "aud": audience}
            headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.post(f"{running.url}/message/send", data=ONE) as answer,
            ):
                found.append(answer.status)
    assert [401, 200] == found


@pytest.mark.asyncio(loop_scope="module")
async def test_send_to_all_needs_broadcast(url: str) -> None:
    """In a send and as an item of a list; nobody else may, not even `admin`."""
    body = '{"sendToAll":true,"msg":1}'
    sends, items = [], []
    async with aiohttp.ClientSession() as http:
        for credential in credentials("key"):
            headers = {"X-API-Key": credential}
            async with http.post(f"{url}/message/send", data=body, headers=headers) as answer:
                sends.append(answer.status)
            async with http.post(f"{url}/message/sendList", data=f"[{body}]", headers=headers) as answer:
                content = (await answer.json())["content"]
                items.append(content[0]["statusCode"] if answer.status == 200 else answer.status)
    assert [401, 403, 200, 403, 403] == sends
    assert [401, 403, 200, 403, 403] == items


@pytest.mark.asyncio(loop_scope="module")
async def test_a_connect_token_may_do_nothing_but_ask_for_its_node(url: str) -> None:
    """Without a scope it is no caller's, whatever is asked for."""
    token = jwt.encode({"sub": "alice", "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")
    headers = {"Authorization": f"Bearer {token}"}
    found = {}
    async with aiohttp.ClientSession() as http:
        for method, path in TABLE:
            asked = path + ("?clientId=alice" if path == "/server/get" else "")
            async with http.request(method, url + asked.replace("{", "").replace("}", ""), headers=headers) as answer:
                found[path] = answer.status
    open_to_all = {path: 200 for path in ("/healthz", "/metrics", "/openapi.json")}
    assert dict.fromkeys((path for _, path in TABLE), 401) | open_to_all | {"/server/get": 503} == found
