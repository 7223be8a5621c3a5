"""Messages to groups on real nodes: members alone, from where they joined, once, wherever they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.tokens import mint_token
from tests.harness.client import Client, connected
from tests.harness.cluster import Answer, Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]
SECRET = "a secret of more than 32 bytes, for tests"
KINDS = pytest.mark.parametrize("ack", ["", "&ack=1"], ids=["plain", "ack"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    """Two nodes that want tokens."""
    async with running_cluster(valkey.url, valkey.url, "claims", nodes=0) as cluster:
        for _ in range(2):
            await cluster.add_node(PUSH_AUTH="jwt", PUSH_JWT_SECRET=SECRET, PUSH_NODE_HOST="127.0.0.1")
        yield cluster


async def make_group(cluster: Cluster, group: str, *members: str) -> None:
    answer = await cluster.post("/v1/groups", {"groupId": group, "members": list(members)})
    assert 201 == answer.status


async def add(cluster: Cluster, group: str, *members: str) -> None:
    assert 200 == (await cluster.post(f"/v1/groups/{group}/members", {"members": list(members)})).status


async def to_groups(cluster: Cluster, groups: str | list[str], msg: object, **fields: Any) -> Answer:
    return await cluster.post("/message/send", {"toGroups": groups, "msg": msg, **fields})


def socket(cluster: Cluster, client_id: str, ack: str = "", node: int = 0) -> str:
    return f"{cluster.socket_url(node)}?clientId={client_id}{ack}"


def messages(client: Client) -> list[Any]:
    """What came to a group or to it alone; what tests send to everyone comes to all."""
    return [frame["msg"] for frame in client.business]


@KINDS
async def test_members_get_it_wherever_they_are(cluster: Cluster, name: Name, ack: str) -> None:
    """Each session of theirs once, with the group's id; others nothing."""
    group, alice, bob, other = name("group"), name("alice"), name("bob"), name("other")
    await make_group(cluster, group, alice, bob)
    async with (
        connected(cluster.http, socket(cluster, alice, ack)) as one,
        connected(cluster.http, socket(cluster, alice, ack, 1)) as two,
        connected(cluster.http, socket(cluster, bob, ack, 2)) as three,
        connected(cluster.http, socket(cluster, other, ack, 2)) as stranger,
    ):
        answer = await to_groups(cluster, group, {"n": 1}, **{"from": "billing"})
        assert (200, None) == (answer.status, answer.body["content"])
        for client, client_id in ((one, alice), (two, alice), (three, bob)):
            (frame,) = await client.until_business(1)
            expected = {"from": "billing", "messageId": answer.message_id, "msg": {"n": 1}, "to": client_id}
            assert expected == {field: frame[field] for field in expected}
            assert (group, 1, 1) == (frame["group"], frame["trigger"], frame["msgType"])
            assert "group" == list(frame)[-1]
        await cluster.send(other, "to you")
        await stranger.until_business(1)
        assert ["to you"] == messages(stranger)


@KINDS
async def test_who_joins_gets_what_comes_from_then_on(cluster: Cluster, name: Name, ack: str) -> None:
    """At once on the live session; who leaves gets no more; both while messages fly."""
    group, alice = name("group"), name("alice")
    await make_group(cluster, group)
    async with connected(cluster.http, socket(cluster, alice, ack, 1)) as client:
        await client.receive()
        await to_groups(cluster, group, "before")
        await add(cluster, group, alice)
        await to_groups(cluster, group, "member")
        await client.until_business(1)
        answer = await cluster.http.delete(
            f"{cluster.dispatcher_url}/v1/groups/{group}/members", json={"members": [alice]}
        )
        assert 200 == answer.status
        await cluster.send(alice, "left")
        await client.until_business(2)
        await to_groups(cluster, group, "after")
        await cluster.send(alice, "last")
        await client.until_business(3)
        assert ["member", "left", "last"] == messages(client)


async def test_members_who_are_away_get_it_when_they_come(cluster: Cluster, name: Name) -> None:
    """Also those that had never been there; in order, once."""
    group, alice, never = name("group"), name("alice"), name("never")
    await make_group(cluster, group, alice, never)
    async with connected(cluster.http, socket(cluster, alice, "&ack=1")) as client:
        await client.receive()
        first = await to_groups(cluster, group, 0)
        await client.until_business(1)
        await client.ack(first.message_id)
        await client.send({"msgType": 3})
        await client.receive_type(4)
    for number in range(1, 20):
        await to_groups(cluster, group, number)
    async with (
        connected(cluster.http, socket(cluster, alice, "&ack=1", 1)) as back,
        connected(cluster.http, socket(cluster, never, "&ack=1", 2)) as new,
    ):
        await new.until_business(20)
        assert list(range(20)) == messages(new)
        await back.until(lambda: 19 in messages(back))
        assert list(range(1, 20)) == [number for number in messages(back) if number]


@KINDS
async def test_a_message_by_several_ways_comes_once(cluster: Cluster, name: Name, ack: str) -> None:
    """To the client, and to two of its groups; also on the next session when nobody acknowledged."""
    groups, alice = [name("group"), name("group")], name("alice")
    for group in groups:
        await make_group(cluster, group, alice)
    async with connected(cluster.http, socket(cluster, alice, ack)) as client:
        await client.receive()
        answer = await to_groups(cluster, groups, "once", to=[alice, "nobody-here"])
        assert ["nobody-here"] == answer.body["content"]
        await cluster.send(alice, "next")
        await client.until_business(2)
        await to_groups(cluster, groups[1], "last")
        await client.until_business(3)
        assert ["last", "next", "once"] == sorted(messages(client))
        if ack:
            await client.ack(*(frame["messageId"] for frame in client.business))
            await client.send({"msgType": 3})
            await client.receive_type(4)


async def test_a_group_that_is_not_there_is_named(cluster: Cluster, name: Name) -> None:
    """404, and nothing of the send is done, whatever else it is for."""
    group, alice = name("group"), name("alice")
    await make_group(cluster, group, alice)
    async with connected(cluster.http, socket(cluster, alice, "&ack=1")) as client:
        await client.receive()
        for answer in (
            await to_groups(cluster, "no-such-group", 1),
            await to_groups(cluster, [group, "no-such-group"], 1, to=alice),
        ):
            assert 404 == answer.status
            assert "there is no group no-such-group" in answer.body["msg"]
        await to_groups(cluster, group, "good")
        await client.until_business(1)
        assert ["good"] == messages(client)


async def test_a_group_that_is_deleted_is_left_by_all(cluster: Cluster, name: Name) -> None:
    """Sends to it are 404; a group made anew under its id is another one."""
    group, alice = name("group"), name("alice")
    await make_group(cluster, group, alice)
    async with connected(cluster.http, socket(cluster, alice)) as client:
        await client.receive()
        await to_groups(cluster, group, "one")
        await client.until_business(1)
        assert 200 == (await cluster.http.delete(f"{cluster.dispatcher_url}/v1/groups/{group}")).status
        assert 404 == (await to_groups(cluster, group, "two")).status
        await make_group(cluster, group)
        assert 200 == (await to_groups(cluster, group, "three")).status
        await add(cluster, group, alice)
        await to_groups(cluster, group, "four")
        await client.until_business(2)
        assert ["one", "four"] == messages(client)


async def test_what_nobody_stores_goes_to_members_who_are_there(cluster: Cluster, name: Name) -> None:
    """`durable:false`: never again."""
    group, alice = name("group"), name("alice")
    await make_group(cluster, group, alice)
    async with connected(cluster.http, socket(cluster, alice)) as client:
        await client.receive()
        await to_groups(cluster, group, "loose", durable=False)
        await client.until_business(1)
    await to_groups(cluster, group, "gone", durable=False)
    async with connected(cluster.http, socket(cluster, alice, node=1)) as back:
        await back.receive()
        await to_groups(cluster, group, "kept")
        await back.until_business(1)
        assert ["kept"] == messages(back)


async def test_a_clients_frame_to_its_groups(cluster: Cluster, name: Name) -> None:
    """Members but the sender's own session get it, trigger 2; who is no member is refused."""
    group, alice, bob = name("group"), name("alice"), name("bob")
    await make_group(cluster, group, alice, bob)
    async with (
        connected(cluster.http, socket(cluster, alice)) as sender,
        connected(cluster.http, socket(cluster, alice, node=1)) as own,
        connected(cluster.http, socket(cluster, bob, node=2)) as member,
        connected(cluster.http, socket(cluster, name("eve"), node=2)) as stranger,
    ):
        await sender.send({"msgType": 1, "toGroups": [group], "msg": "hi", "requestId": "r1"})
        accepted = await sender.receive_type(2)
        for client in (own, member):
            (frame,) = await client.until_business(1)
            assert (alice, "hi", 2, group) == (frame["from"], frame["msg"], frame["trigger"], frame["group"])
            assert accepted["messageId"] == frame["messageId"]
        await stranger.send({"msgType": 1, "toGroups": [group], "msg": "no", "requestId": "r2"})
        refused = await stranger.receive_type(-1)
        assert ("forbidden", "r2") == (refused["code"], refused["requestId"])
        await member.send({"msgType": 1, "toGroups": [group], "msg": "back"})
        await sender.until_business(1)
        assert ["back"] == messages(sender)


async def test_groups_that_a_token_names(guarded: Cluster, name: Name) -> None:
    """Joined for the session, with the right to send; one that is not there is told; a bad claim is 401."""
    group = name("group")
    await make_group(guarded, group)
    tokens = [mint_token(SECRET, f"c{number}", life_s=60, groups=[group]) for number in range(2)]
    sockets = [f"{guarded.socket_url(node)}?token={tokens[node]}&ack=1" for node in range(2)]
    async with (
        connected(guarded.http, sockets[0]) as one,
        connected(guarded.http, sockets[1]) as two,
    ):
        await one.receive()
        await two.receive()
        await two.send({"msgType": 1, "toGroups": [group], "msg": "from two"})
        await two.receive_type(2)
        await one.until_business(1)
        await to_groups(guarded, group, "to both")
        await one.until_business(2)
        await two.until_business(1)
        assert (["from two", "to both"], ["to both"]) == (messages(one), messages(two))
    missing = mint_token(SECRET, "c3", life_s=60, groups=["no-such"])
    async with connected(guarded.http, f"{guarded.socket_url()}?token={missing}") as client:
        error = await client.receive_type(-1)
        assert ("unknown_group", "no-such") == (error["code"], error["group"])
    bad = mint_token(SECRET, "c4", life_s=60, groups=["a group"])
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await guarded.http.ws_connect(f"{guarded.socket_url()}?token={bad}")
    assert 401 == refused.value.status
