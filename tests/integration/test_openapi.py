"""
The dispatcher keeps to the OpenAPI document that it serves: schemathesis asks a running one whatever the document says
may be asked, and what it says may not.

More examples of each operation than `make test` takes: OPENAPI_EXAMPLES=500 make integration ARGS='-k test_openapi'.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import aiohttp
import orjson

from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import Site, running_dispatcher

_EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "8")
_SEED = os.environ.get("OPENAPI_SEED", "1")
_KEY = "a-key-of-the-one-caller-who-may-do-everything"
_SCOPES = ["send", "broadcast", "read", "admin"]
_CONFIG = f"""
[auth.openapi.apiKey]
api_key = "{_KEY}"

# A bad item spoils no other: the list is answered 200.
[[operations]]
include-name = "POST /message/sendList"
checks.negative_data_rejection.expected-statuses = [200, 400, 401, 403, 404, 413, 429]

# A session that was kicked is there until its node has closed it; this node is none that closes anything.
[[operations]]
include-path = "/v1/sessions/{{sessionId}}"
checks.use_after_free.enabled = false

# Who leaves is named in the body or in the query: a schema cannot say that one of the two has to be there.
[[operations]]
include-name = "DELETE /v1/groups/{{groupId}}/members"
checks.positive_data_acceptance.expected-statuses = [200, 400, 404]
"""


async def test_what_is_served_is_what_is_documented(
    site: Site, valkey: LocalValkey, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """No 5xx; statuses, content types and bodies as documented; good data taken, bad refused, nothing without a key."""
    entry = {"name": "caller", "sha256": hashlib.sha256(_KEY.encode()).hexdigest(), "scopes": _SCOPES}
    (tmp_path / "keys.json").write_bytes(orjson.dumps({"keys": [entry]}))
    (tmp_path / "schemathesis.toml").write_text(_CONFIG)
    node = await site.node()
    await node.connect("somebody")
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(tmp_path / "keys.json")}
    async with running_dispatcher(valkey.url, site.namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        code, words = await _schemathesis(f"{dispatcher.url}/openapi.json", tmp_path)
        assert 0 == code, words
        assert "Tested: 0" not in words
        async with http.get(f"{dispatcher.url}/healthz") as answer:
            assert 200 == answer.status
    assert [] == [line for line in dispatcher.log if line["level"] == "error"]


_CHECKS = ("--checks=all", "--exclude-checks=allow_header_conformance")
"""A client may be called `online`, so GET is a method of /v1/clients/online, which no document says."""


async def _schemathesis(url: str, place: Path) -> tuple[int, str]:
    """Its exit code and what it says."""
    options = [*_CHECKS, f"--max-examples={_EXAMPLES}", f"--seed={_SEED}", "--no-shrink", "--continue-on-failure"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"),
        *("run", *options, "--request-timeout=20", url),
        cwd=place,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    words, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, words.decode(errors="replace")
