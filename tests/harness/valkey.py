"""
Valkey servers for tests, and the fixtures over them (registered in tests/conftest.py).

    valkey           one server for the whole run; keep apart by `namespace`, never FLUSHALL, never stop it
    namespace        a word no other test uses
    private_valkey   a server of this test's own, to kill and restart; loses nothing that was answered
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pushfleet.local_valkey import Fsync, LocalValkey

_numbers = itertools.count(1)


@asynccontextmanager
async def running_valkey(data_dir: Path | str, *, fsync: Fsync = "always") -> AsyncIterator[LocalValkey]:
    """A server on a free port, stopped at the end: `valkey.url`, `valkey.kill()`, `await valkey.restart()`."""
    valkey = LocalValkey(data_dir, fsync=fsync)
    await valkey.start()
    try:
        yield valkey
    finally:
        await valkey.stop()


def run_apart(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a loop of its own: session fixtures outlive the loops of the tests."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalValkey]:
    """The server of the whole run; its data is not kept."""
    server = LocalValkey(tmp_path_factory.mktemp("valkey"), appendonly=False)
    run_apart(server.start())
    try:
        yield server
    finally:
        run_apart(server.stop())


@pytest.fixture
async def private_valkey(tmp_path: Path) -> AsyncIterator[LocalValkey]:
    """A server that this test may kill."""
    async with running_valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A fresh word for key prefixes, topics and groups."""
    return f"t{os.getpid()}x{next(_numbers)}"
