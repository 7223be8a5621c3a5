"""A dispatcher for each module of tests, a node that lives all the time, and a caller."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import Caller, DispatcherProcess, FakeNode, Site, running_dispatcher

NAMESPACE = "dispatcher-sends"
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dispatcher(valkey: LocalValkey) -> AsyncIterator[DispatcherProcess]:
    """One for the module; its inboxes hold 20 messages."""
    async with running_dispatcher(valkey.url, NAMESPACE, PUSH_LEASE="1", PUSH_INBOX_MESSAGES="20") as running:
        await running.until("ready")
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(valkey: LocalValkey) -> AsyncIterator[Site]:
    site = Site(valkey.url, NAMESPACE)
    yield site
    await site.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(site: Site, dispatcher: DispatcherProcess) -> FakeNode:
    """A node that lives all the time."""
    return await site.node()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(dispatcher: DispatcherProcess) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as http:
        yield Caller(http, dispatcher.url)


@pytest.fixture
def name() -> Callable[[str], str]:
    """A clientId that no other test uses."""
    return lambda what: f"{what}-{next(_numbers)}"
