"""A short walk through the faults, one cluster for all; `make chaos` is the long one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.store import Store
from tests.chaos.run import is_good, one_fault
from tests.chaos.site import NAMESPACE, Site, running_site

pytestmark = pytest.mark.asyncio(loop_scope="session")
SHORT = (
    *("node_killed", "node_stopped", "dispatcher_killed", "broker_killed", "valkey_killed", "redis_black_hole"),
    *("clients_half_open", "node_drained", "node_and_dispatcher_killed"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("chaos")) as site:
        yield site


@pytest.mark.parametrize("name", SHORT)
async def test_nothing_is_lost_and_nothing_comes_under_two_ids(site: Site, name: str) -> None:
    """Under load: what was answered 200 arrives, at its client alone, and all parts are whole again."""
    seed = random.randrange(2**32)
    verdict, healed_s = await one_fault(site, name, random.Random(seed))
    print(name, seed, healed_s, verdict)  # noqa: T201 - pytest shows it when the test fails
    assert is_good(verdict)
    assert verdict.answered > 0


async def test_a_message_that_is_taken_away_is_found_missing(site: Site) -> None:
    """Stored, and its record, taken away while its client has no session: the ledger says lost."""
    victim = site.clients[0]
    victim.frozen = True
    store = Store(site.valkey.url, namespace=NAMESPACE)
    before = site.ledger.close(asyncio.get_running_loop().time())
    async with asyncio.timeout(30):
        while not await store.redis.exists(store.keys.inbox(victim.client_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        front = site.nodes[0].front
        assert front is not None
        while site.ledger.missing == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for node in site.nodes:
            assert node.front is not None
            node.front.black_hole = True
        await asyncio.sleep(0.5)
        await store.redis.delete(store.keys.inbox(victim.client_id))
        for node in site.nodes:
            assert node.front is not None
            node.front.heal()
    victim.frozen = False
    await store.close()
    await asyncio.sleep(5)
    assert site.ledger.missing > 0
    verdict = site.ledger.close(asyncio.get_running_loop().time())
    assert is_good(before)
    assert not is_good(verdict)
