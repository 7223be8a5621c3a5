"""
One cluster of 3 nodes and 2 dispatchers on RocketMQ and Valkey for the whole run; tests differ in client names.

For who needs a dispatcher alone: `site`, `http` and `caller`, a test's own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
import pytest_asyncio

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from tests.harness.cluster import Cluster, running_cluster
from tests.harness.dispatcher import Caller, Site, running_dispatcher

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(valkey: LocalValkey, shared_rocketmq: LocalRocketMQ) -> AsyncIterator[Cluster]:
    """Never stop a part of it; a test that has to takes a cluster of its own."""
    async with running_cluster(valkey.url, shared_rocketmq.url, "it", nodes=3, dispatchers=2) as running:
        yield running


@pytest.fixture(params=["valkey", "shared_rocketmq"], ids=["streams", "rocketmq"])
def bus_url(request: pytest.FixtureRequest) -> str:
    """Each kind of bus, for a cluster of the test's own."""
    url: str = request.getfixturevalue(request.param).url
    return url


@pytest.fixture
def name() -> Callable[[str], str]:
    """A clientId that no other test uses."""
    return lambda what: f"{what}-{next(_numbers)}"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


@pytest.fixture
async def site(valkey: LocalValkey, namespace: str) -> AsyncIterator[Site]:
    site = Site(valkey.url, namespace)
    yield site
    await site.close()


@pytest.fixture
async def caller(site: Site, valkey: LocalValkey, http: aiohttp.ClientSession) -> AsyncIterator[Caller]:
    """Of a dispatcher that asks for no keys."""
    async with running_dispatcher(valkey.url, site.namespace) as dispatcher:
        await dispatcher.until("ready")
        yield Caller(http, dispatcher.url)
