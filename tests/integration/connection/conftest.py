"""A node whose layer above records what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.harness.connection import Node, soon


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    running = Node()
    await running.start()
    yield running
    await soon(running.stop())
