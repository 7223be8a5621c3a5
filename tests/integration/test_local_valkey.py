"""The embedded Valkey: ports, persistence, crash, and what it says when it cannot start."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from pushfleet import local_valkey
from pushfleet.local_valkey import LocalValkey, LocalValkeyError


@asynccontextmanager
async def client_of(valkey: LocalValkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(valkey.url)
    try:
        yield client
    finally:
        await client.aclose()


async def test_keeps_its_port_and_data_over_a_crash(tmp_path: Path) -> None:
    """What was answered before a SIGKILL is there after the restart, at the same URL."""
    async with LocalValkey(tmp_path, fsync="always") as valkey:
        url = valkey.url
        async with client_of(valkey) as client:
            await client.set("key", "value")
        valkey.kill()
        assert not valkey.running
        await valkey.restart()
        assert url == valkey.url
        async with client_of(valkey) as client:
            assert b"value" == await client.get("key")


async def test_takes_another_port_when_the_wanted_one_is_in_use(tmp_path: Path) -> None:
    """A port in use is no error: `url` tells where the server is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with LocalValkey(tmp_path, port=port) as valkey:
            assert port != valkey.port
            async with client_of(valkey) as client:
                assert await client.ping()


async def test_stop_ends_the_process(tmp_path: Path) -> None:
    """After `stop` the child is gone and reaped; a second stop does nothing."""
    valkey = LocalValkey(tmp_path)
    await valkey.start()
    pid = valkey.pid
    await valkey.stop()
    await valkey.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_refuses_a_data_folder_in_use(tmp_path: Path) -> None:
    """Two servers never append to the same files; the error names the process that holds them."""
    async with LocalValkey(tmp_path) as valkey:
        with pytest.raises(LocalValkeyError, match=f"stop process {valkey.pid} first"):
            await LocalValkey(tmp_path).start()


async def test_shows_the_log_when_it_does_not_start(tmp_path: Path) -> None:
    """The reason of the server is in the error, and nothing is left running."""
    (tmp_path / "appendonlydir").write_text("a file where the server wants a folder")
    valkey = LocalValkey(tmp_path)
    with pytest.raises(LocalValkeyError, match="appendonlydir"):
        await valkey.start()
    assert not valkey.running


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a server program the error names the extra."""
    monkeypatch.setattr("pushfleet.local_valkey.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalValkeyError, match="embedded"):
        local_valkey.find_server()
