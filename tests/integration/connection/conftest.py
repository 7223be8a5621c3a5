"""A node whose layer above records what it is told, plain and behind TLS: every property holds for both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.certificates import Authority
from tests.harness.connection import Node, soon


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest_asyncio.fixture(params=[False, True], ids=["plain", "tls"])
async def node(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Node]:
    running = Node(authority if request.param else None)
    await running.start()
    yield running
    await soon(running.stop())
