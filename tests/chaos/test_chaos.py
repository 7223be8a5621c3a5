"""A short walk through the faults, one cluster for all; `make chaos` is the long one. And the run can say no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.groups import Groups
from shared.keys import EVERYONE
from shared.store import Store
from tests.chaos.audiences import behind
from tests.chaos.ledger import Fault, Kind
from tests.chaos.report import line
from tests.chaos.rounds import Plan, play
from tests.chaos.site import NAMESPACE, Site, running_site

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.chaos]

SHORT = (
    *("none:1", "node_killed:1", "node_stopped:9", "dispatcher_killed:2", "valkey_killed:3", "broker_killed:4"),
    *("clients_half_open:5", "redis_black_hole:3", "node_drained:1"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("chaos")) as site:
        yield site


@pytest.mark.parametrize("plan", SHORT)
async def test_nothing_is_lost_and_nothing_comes_under_two_ids(site: Site, plan: str) -> None:
    """
    Under load of all kinds: what was answered 200 arrives, where it is for alone, and under one id; all parts are whole
    again, all inboxes empty, all cursors at the newest message.
    """
    round_ = await play(site, Plan.read(plan))
    text = line(round_)
    assert round_.is_good, text
    assert round_.verdict.answered > 200, text
    assert 0 == round_.offline, text
    totals = round_.verdict.totals
    assert min(totals[Kind.GROUP]["answered"], totals[Kind.EVERYONE]["answered"]) > 200, (text, totals)


@pytest.mark.parametrize("kind", [Kind.UNICAST, Kind.EVERYONE])
async def test_a_message_that_is_taken_away_is_reported(
    site: Site, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered 200, then deleted, and killed with its node, before its client could get it: lost is not 0."""
    monkeypatch.setattr("tests.chaos.site._WHOLE_S", 5.0)
    store = Store(site.valkey.url, namespace=NAMESPACE)
    victim = site.clients[0]
    (node,) = [node for node in site.nodes if node.url == victim.url]
    for other in site.nodes:
        other.front.black_hole()  # the client gets nothing and can go nowhere
    try:
        async with asyncio.timeout(30):
            while not site.ledger.missing_of(victim.client_id, kind):  # noqa: ASYNC110 - each answer may be the one
                await asyncio.sleep(0.02)
        if kind is Kind.UNICAST:
            assert await store.redis.delete(store.keys.inbox(victim.client_id))
        else:
            assert await store.redis.xtrim(store.keys.audience(EVERYONE)[1], maxlen=0, approximate=False)
        await node.role.kill()  # with what it had in memory
    finally:
        for other in site.nodes:
            other.front.heal()
        await node.restart()
        await store.close()
    problems = await site.until_whole()
    verdict = site.ledger.close(Fault(0.0, 0.0))

    assert verdict.totals[kind]["lost"] > 0
    assert not verdict.is_good
    assert any("missing" in problem for problem in problems)


async def test_members_that_nobody_knows_of_are_reported(site: Site) -> None:
    """Made members behind the load's back: what one gets is misdirected; the cursor of one who is away is behind."""
    site.ledger.close(Fault(0.0, 0.0))
    group = site.audiences.groups[0]
    stranger = next(client for client in site.clients if client.client_id not in group.members)
    group.changed.add(stranger.client_id)  # the load leaves it alone
    store = Store(site.valkey.url, namespace=NAMESPACE)
    try:
        await Groups(store).add(group.group_id, [stranger.client_id, "away"])
        async with asyncio.timeout(30):
            while not (late := await behind(store, ["away"])) or not site.ledger.misdirected:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.05)
        await Groups(store).remove(group.group_id, [stranger.client_id, "away"])
    finally:
        await store.close()

    assert late[0].startswith(f"away in {group.group_id}: ")
    assert not site.ledger.close(Fault(0.0, 0.0)).is_good
