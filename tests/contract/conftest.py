"""
Redis and the bus adapters under the contract, each on a real server.

    store_url, store   Redis as one server, then as a cluster; clustered_store as a cluster alone
    bus, another_bus   the adapter on the server of the run; `another_bus` is as another process would be
    topic              a topic name of this test's own; nothing is created
    breakable_bus      the adapter on a server of the module's own
    breakable          that server, to kill and restart
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.bus import Bus, open_bus
from shared.store import Store
from tests.harness.valkey import run_apart
from tests.harness.valkey_sites import ValkeyCluster

ADAPTERS = ("streams", "rocketmq", "streams-cluster")
_SERVERS = {"streams": "valkey", "rocketmq": "shared_rocketmq", "streams-cluster": "valkey_cluster"}


class Breakable(Protocol):
    """A server of a test module's own."""

    @property
    def url(self) -> str: ...
    def kill(self) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def restart(self) -> None: ...


@pytest.fixture(params=["valkey", "valkey_cluster"], ids=["single", "cluster"])
def store_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param).url
    return url


@pytest.fixture
async def store(store_url: str, namespace: str) -> AsyncIterator[Store]:
    store = Store(store_url, namespace=namespace)
    yield store
    await store.close()


@pytest.fixture
async def clustered_store(valkey_cluster: ValkeyCluster, namespace: str) -> AsyncIterator[Store]:
    store = Store(valkey_cluster.url, namespace=namespace)
    yield store
    await store.close()


@pytest.fixture(params=ADAPTERS)
def bus_url(request: pytest.FixtureRequest) -> str:
    """The URL of the server of the run."""
    url: str = request.getfixturevalue(_SERVERS[request.param]).url
    return url


@pytest.fixture
async def bus(bus_url: str, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(bus_url, namespace=namespace)
    yield bus
    await bus.close()


@pytest.fixture
async def another_bus(bus_url: str, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(bus_url, namespace=namespace)
    yield bus
    await bus.close()


@pytest.fixture
def topic(namespace: str) -> str:
    return f"{namespace}-topic"


@pytest.fixture(scope="module", params=ADAPTERS)
def breakable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Breakable]:
    """Every test on it leaves it running."""
    folder = tmp_path_factory.mktemp("breakable")
    server: Breakable
    if request.param == "rocketmq":
        server = LocalRocketMQ(folder)
    elif request.param == "streams":
        server = LocalValkey(folder, fsync="always")
    else:
        server = ValkeyCluster(folder)
    run_apart(server.start())
    try:
        yield server
    finally:
        server.kill()
        run_apart(server.stop())


@pytest.fixture
async def breakable_bus(breakable: Breakable, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(breakable.url, namespace=namespace)
    yield bus
    await bus.close()
