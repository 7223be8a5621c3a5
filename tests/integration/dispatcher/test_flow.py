"""A node that is behind gets nothing more: such sends are refused whole, and others are not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import pytest_asyncio

from shared.ids import MessageIdMint
from shared.upstream import UpstreamSend
from tests.harness.dispatcher import Answer, Caller, FakeNode, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

Name = Callable[[str], str]


async def answered(status: int, send: Callable[[], Awaitable[Answer]]) -> Answer:
    """Its first answer of this status: a dispatcher reads the leases each second."""
    async with asyncio.timeout(20):
        while (answer := await send()).status != status:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
    return answer


@pytest_asyncio.fixture(loop_scope="module")
async def slow(site: Site, caller: Caller) -> AsyncIterator[FakeNode]:
    """A node that is 20 s behind, and the dispatcher knows it."""
    node = await site.node(lag_ms=20_000)
    await answered(429, lambda: caller.send(sendToAll=True))
    yield node
    await node.release()
    await answered(200, lambda: caller.send(sendToAll=True))


async def test_sends_to_everyone_are_refused(caller: Caller, slow: FakeNode, node: FakeNode) -> None:
    """429 with the time to catch up as Retry-After; the other nodes get nothing of it either."""
    refused = await caller.send(msg="refused", sendToAll=True)
    assert (429, "15") == (refused.status, refused.headers["Retry-After"])
    await slow.lease(lag_ms=5000)
    taken = await answered(200, lambda: caller.send(msg="taken", sendToAll=True))
    await node.lines_of(taken.message_id)
    assert [] == [line for line in node.lines if b'"msg":"refused"' in line.envelope]


async def test_a_send_to_a_client_there_is_refused_whole(
    caller: Caller, slow: FakeNode, node: FakeNode, site: Site, name: Name
) -> None:
    """Nothing is stored for any of its targets; a retry under the same requestId goes through later, once."""
    there, elsewhere = name("there"), name("elsewhere")
    await slow.connect(there)
    await node.connect(elsewhere)
    body = {"to": [elsewhere, there], "msg": 1, "requestId": name("request")}
    refused = await caller.send(**body)
    assert (429, "15") == (refused.status, refused.headers["Retry-After"])
    assert [[], []] == [await site.held(there), await site.held(elsewhere)]
    await slow.lease(lag_ms=0)
    taken = await answered(200, lambda: caller.send(**body))
    assert [taken.message_id] == await site.held(there)
    assert taken.message_id == (await caller.send(**body)).message_id


async def test_clients_elsewhere_are_not_concerned(
    caller: Caller, slow: FakeNode, node: FakeNode, site: Site, name: Name
) -> None:
    """On another node, on none, or on an earlier start of that one; in a list each item by itself."""
    there, elsewhere, nowhere, before = (name(what) for what in ("there", "elsewhere", "nowhere", "before"))
    await slow.connect(there)
    await node.connect(elsewhere)
    await site.silent_node(slow.node_id, "an earlier epoch").connect(before)
    answers = [await caller.send(client_id) for client_id in (elsewhere, nowhere, before)]
    assert [200, 200, 200] == [answer.status for answer in answers]
    await node.lines_of(answers[0].message_id)
    items = await caller.send_list({"to": there, "msg": 1}, {"to": elsewhere, "msg": 1}, {"sendToAll": True, "msg": 1})
    assert [429, 200, 429] == [item["statusCode"] for item in items.content]


async def test_what_clients_send_waits(caller: Caller, slow: FakeNode, site: Site, name: Name) -> None:
    """It was accepted on its way here: it is tried until the node has caught up, not refused."""
    there = name("there")
    await slow.connect(there)
    send = UpstreamSend(
        message_id=MessageIdMint().mint(),
        request_id=name("request"),
        sender=name("sender"),
        active_time=time.time_ns() // 1_000_000,
        to=[there],
        msg=msgspec.Raw(b'"upstream"'),
    )
    await site.publish_upstream(send)
    await answered(429, lambda: caller.send(there))
    assert [] == await site.held(there)
    await slow.lease(lag_ms=0)
    (line,) = await slow.lines_of(send.message_id)
    assert "upstream" == line.fields["msg"]
