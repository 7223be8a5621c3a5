"""The file of API keys changes under a running dispatcher."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.key_file import digest_of
from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import DEADLINE_S, Caller, DispatcherProcess, running_dispatcher


def write(path: Path, *entries: dict[str, Any]) -> None:
    """All at once, as an operator's tool would."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"keys": entries}))
    beside.replace(path)


def entry(name: str, *keys: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": [digest_of(key).hex() for key in keys], "scopes": ["send"], **fields}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def until_events(dispatcher: DispatcherProcess, event: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = [line for line in dispatcher.log if line["event"] == event]
            if len(found) >= count:
                return found
            dispatcher._changed.clear()
            await dispatcher._changed.wait()


async def statuses(ask: Callable[[str], Caller], *keys: str) -> list[int]:
    return [(await ask(key).send("alice")).status for key in keys]


async def test_the_file_is_read_again_when_it_changes(
    valkey: LocalValkey, namespace: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """Removed keys are refused, added ones taken, buckets kept; a bad file is named once and changes nothing."""
    path = tmp_path / "keys.json"
    write(path, entry("slow", "slow-1", rate=0.001), entry("gone", "gone-1"))
    async with running_dispatcher(
        valkey.url, namespace, PUSH_AUTH="jwt", PUSH_API_KEYS=str(path), PUSH_HTTP_HOST="127.0.0.1"
    ) as dispatcher:
        await dispatcher.until("ready")

        def ask(key: str) -> Caller:
            return Caller(http, dispatcher.url, key)

        assert [200, 200, 401, 401] == await statuses(ask, "slow-1", "gone-1", "slow-2", "new-1")

        write(path, entry("slow", "slow-2", "slow-1", rate=0.001), entry("new", "new-1"))
        assert 2 == (await until_events(dispatcher, "api_keys_read", 2))[1]["keys"]
        assert [429, 429, 401, 200] == await statuses(ask, "slow-1", "slow-2", "gone-1", "new-1")

        path.write_text('{"keys":[{"name":"half')
        (fault,) = await until_events(dispatcher, "api_keys_not_read", 1)
        assert ("not JSON", str(path)) == (fault["reason"], fault["file"])
        path.unlink()
        faults = await until_events(dispatcher, "api_keys_not_read", 2)
        assert "cannot be read" in faults[1]["reason"]
        assert [401, 200] == await statuses(ask, "gone-1", "new-1")

        write(path, entry("gone", "gone-1"))
        await until_events(dispatcher, "api_keys_read", 3)
        assert [200, 401] == await statuses(ask, "gone-1", "new-1")
        metrics = (await ask("").get("/metrics")).text
        assert "push_api_keys 1.0" in metrics
        assert "push_api_keys_not_read_total 2.0" in metrics
        assert 2 == sum(line["event"] == "api_keys_not_read" for line in dispatcher.log)
