"""Groups in the chat dialect, and in envelopes of clients: what nodes say and publish, and what members get."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from shared.bus import Bus, open_bus
from shared.upstream import upstream_topic
from tests.harness.chat import person, user
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]

MESSAGE = {"text": "hi", "n": 1}
ID = re.compile(r"[0-9a-f]{32}\Z")


# -- groups: what the node itself says -----------------------------------------------------------------------


async def test_creating_a_group(cluster: Cluster, name: Name) -> None:
    """The creator is a member; the id is the node's."""
    async with user(cluster, 0, name("alice")) as alice:
        group = await alice.ask(3, 4, userIdList=["bob", "bob", "eve"], groupName="Team")

    assert {"groupId": group["groupId"], "groupName": "Team", "userIdList": [alice.client_id, "bob", "eve"]} == group
    assert group["groupId"].startswith("g")
    assert ID.match(group["groupId"][1:])


async def test_only_members_write_to_a_group(cluster: Cluster, name: Name) -> None:
    """In either dialect; who joins may, who leaves may not any more, all in one breath and from any node."""
    async with user(cluster, 0, name("alice")) as alice, user(cluster, 1, name("bob")) as bob:
        group_id = (await alice.ask(3, 4, userIdList=[]))["groupId"]
        stranger = await bob.refused(9, toMessageId=group_id, message=1)
        await bob.client.send({"msgType": 1, "toGroups": [group_id], "msg": 1, "requestId": "q"})
        envelope = await bob.client.receive_type(-1)
        await bob.send(14, groupId=group_id)
        await bob.send(9, toMessageId=group_id, message="in")
        await bob.send(14, groupId=group_id, action="leave")
        joined, sent, left = await bob.answered(14), await bob.answered(0), await bob.answered(14)
        gone = await bob.refused(9, toMessageId=group_id, message=2)

    words = f"not a member of the group {group_id}"
    assert ("forbidden", words) == (stranger["code"], stranger["message"])
    assert ("forbidden", words, "q") == (envelope["code"], envelope["resultMsg"], envelope["requestId"])
    assert {"groupId": group_id, "action": "join"} == joined
    assert sent["message"] == "in"
    assert {"groupId": group_id, "action": "leave"} == left
    assert gone["code"] == "forbidden"


async def test_an_unknown_group_in_an_envelope(cluster: Cluster, name: Name) -> None:
    """msgType -1 names it, and nothing of the frame is sent."""
    async with user(cluster, 0, name("alice")) as alice, user(cluster, 1, name("bob")) as bob:
        frame = {"msgType": 1, "to": bob.client_id, "toGroups": ["gNone"], "msg": "lost", "requestId": "q"}
        await alice.client.send(frame)
        error = await alice.client.receive_type(-1)
        await alice.ask(1, 0, toMessageId=bob.client_id, message="last")
        await bob.told(2)

        assert ("unknown_group", "there is no group gNone") == (error["code"], error["resultMsg"])
        assert 1 == len(bob.client.business)


async def test_too_many_members_and_too_many_groups(valkey: Any, name: Name) -> None:
    """Told with the figure; who may be in no more groups is left out of a new one."""
    async with (
        running_cluster(
            valkey.url, valkey.url, name("limits"), PUSH_GROUP_MEMBERS="3", PUSH_CLIENT_GROUPS="2"
        ) as cluster,
        user(cluster, 0, "alice") as alice,
        user(cluster, 0, "bob") as bob,
    ):
        many = await alice.refused(3, userIdList=["a", "b", "c"])
        first = (await alice.ask(3, 4, userIdList=["a", "b"]))["groupId"]
        full = await bob.refused(14, groupId=first)
        await alice.ask(3, 4, userIdList=[])
        crowded = await alice.refused(3, userIdList=["a"])
        without = await bob.ask(3, 4, userIdList=["alice", "eve"])

    assert "at most 3" in many["message"]
    assert "group_limit" == full["code"] == crowded["code"]
    assert "3 members" in full["message"]
    assert "2 groups" in crowded["message"]
    assert (["bob", "eve"], ["alice"]) == (without["userIdList"], [one["openid"] for one in without["refused"]])


async def test_what_a_node_publishes_for_groups(bus_url: str, valkey: Any, name: Name) -> None:
    """One record a message, whatever the members: the groups, and the session that gets nothing of it."""
    namespace = name("records")
    async with (
        opened_bus(bus_url, namespace) as bus,
        running_cluster(valkey.url, bus_url, namespace, dispatchers=0) as cluster,
        user(cluster, 0, "alice") as alice,
    ):
        members = [f"m{number}" for number in range(2000)]
        group = await alice.ask(3, 4, userIdList=members, groupName="Team")
        own = alice.client.frames[0]["sessionId"]
        answer = await alice.ask(9, 0, toMessageId=group["groupId"], message=1, requestId="q-1")
        await alice.client.send({"msgType": 1, "to": "bob", "toGroups": [group["groupId"]], "msg": 2})
        await alice.client.receive_type(2)
        await alice.ask(1, 0, toMessageId="bob", message=3)
        records = await records_of(bus, upstream_topic(namespace), 4)

    new, told, both, single = sorted(records, key=lambda record: str(record["messageId"]))
    assert {"type": 4, "params": group, "status": 200} == new["msg"]
    assert ["alice", *members] == group["userIdList"]
    for record, to in ((new, []), (told, []), (both, ["bob"])):
        assert (to, [group["groupId"]], own) == (record["to"], record["toGroups"], record["but"])
    assert (answer["messageId"], "q-1") == (told["messageId"], told["requestId"])
    assert {"toGroups", "but"} & set(single) == set()


async def test_the_order_of_what_a_client_sends(bus_url: str, valkey: Any, name: Name) -> None:
    """In both dialects, to users and groups: it is published in this order, whether it needs look-ups or not."""
    namespace = name("order")
    async with (
        opened_bus(bus_url, namespace) as bus,
        running_cluster(valkey.url, bus_url, namespace, dispatchers=0) as cluster,
        user(cluster, 0, "alice") as alice,
    ):
        group_id = (await alice.ask(3, 4, userIdList=["bob"]))["groupId"]
        for number in range(0, 200, 4):
            await alice.send(1, toMessageId="bob", message=number)
            await alice.client.send({"msgType": 1, "to": "bob", "msg": number + 1})
            await alice.send(9, toMessageId=group_id, message=number + 2)
            await alice.client.send({"msgType": 1, "toGroups": [group_id], "msg": number + 3})
        records = await records_of(bus, upstream_topic(namespace), 201)

    sent = [record["msg"] for record in records[1:]]
    assert list(range(200)) == [msg if isinstance(msg, int) else msg["params"]["message"] for msg in sent]


@asynccontextmanager
async def opened_bus(url: str, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(url, namespace=namespace)
    try:
        yield bus
    finally:
        await bus.close()


async def records_of(bus: Bus, topic: str, count: int) -> list[dict[str, Any]]:
    """Of the upstream topic, those of one client in their order."""
    reader = await bus.open_reader(topic)
    records: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(20):
            while len(records) < count:
                records += [orjson.loads(record.body) for record in await reader.fetch()]
    finally:
        await reader.close()
    return records


# -- groups: what members get --------------------------------------------------------------------------------


async def test_members_are_told_of_a_new_group(cluster: Cluster, name: Name) -> None:
    """Each of them, on whichever node, now or later; the creator's own session has its answer already."""
    eve = name("eve")
    async with user(cluster, 0, name("alice"), "Alice") as alice, user(cluster, 1, name("bob")) as bob:
        answer = await alice.ask(3, 4, userIdList=[bob.client_id, eve], groupName="Team")
        here = await bob.told(4)
        async with user(cluster, 2, eve) as late:
            there = await late.told(4)

    assert {"type": 4, "params": answer, "status": 200} == here["msg"] == there["msg"]
    assert (alice.client_id, answer["groupId"]) == (here["from"], here["group"])
    assert [] == alice.client.business


async def test_a_message_to_a_group(cluster: Cluster, name: Name) -> None:
    """Type 10 to every member on every node, the sender's other sessions too, but not to the one it came from."""
    alice_id = name("alice")
    async with (
        user(cluster, 0, alice_id, "Alice") as alice,
        user(cluster, 1, alice_id) as other,
        user(cluster, 1, name("bob")) as bob,
        user(cluster, 2, name("eve")) as eve,
    ):
        group_id = (await alice.ask(3, 4, userIdList=[bob.client_id, eve.client_id]))["groupId"]
        answer = await alice.ask(9, 0, toMessageId=group_id, message=MESSAGE, fileType="TEXT", requestId="q")
        got = [await member.told(10) for member in (other, bob, eve)]
        await bob.ask(1, 0, toMessageId=alice_id, message="last")
        await alice.told(2)
        mine = alice.tellings(10)

    document = {
        "type": 10,
        "params": {
            "fromUser": person(alice, "Alice"),
            "groupId": group_id,
            "message": MESSAGE,
            "fileType": "TEXT",
        },
        "status": 200,
    }
    assert (MESSAGE, "q") == (answer["message"], answer["requestId"])
    for envelope in got:
        assert document == envelope["msg"]
        assert (group_id, answer["messageId"]) == (envelope["group"], envelope["messageId"])
    assert [] == mine


async def test_members_get_what_is_sent_while_they_are_members(cluster: Cluster, name: Name) -> None:
    """From their joining to their leaving, also while they are away."""
    bob = name("bob")
    async with user(cluster, 0, name("alice")) as alice, user(cluster, 2, name("eve")) as eve:
        group_id = (await alice.ask(3, 4, userIdList=[eve.client_id]))["groupId"]

        async def say(message: str) -> None:
            await alice.ask(9, 0, toMessageId=group_id, message=message)
            await eve.told(10)

        await say("before")
        async with user(cluster, 1, bob) as member:
            await member.ask(14, 14, groupId=group_id)
            await say("here")
            await member.told(10)
            first = member.tellings(10)
        await say("away")
        async with user(cluster, 2, bob) as member:
            await member.told(10)
            await member.ask(14, 14, groupId=group_id, action="leave")
            second = member.tellings(10)
        await say("after")
        async with user(cluster, 1, bob) as stranger:
            await alice.ask(1, 0, toMessageId=bob, message="last")
            await stranger.told(2)
            third = stranger.tellings(10)

    assert [["here"], ["away"], []] == [first, second, third]


async def test_where_groups_are_closed_nobody_joins_by_itself(valkey: Any, namespace: str) -> None:
    """Who makes a group takes others in, and they may leave; a client that knows the id is refused."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, dispatchers=0, PUSH_GROUP_JOIN="closed") as cluster,
        user(cluster, 0, "alice") as alice,
        user(cluster, 0, "bob") as bob,
        user(cluster, 0, "mallory") as mallory,
    ):
        made = await alice.ask(3, 4, userIdList=["bob"])
        refused = await mallory.refused(14, groupId=made["groupId"])
        await bob.ask(14, 14, groupId=made["groupId"], action="leave")

    assert ["alice", "bob"] == sorted(made["userIdList"])
    assert "forbidden" == refused["code"]


async def test_a_group_message_that_was_read(cluster: Cluster, name: Name) -> None:
    """Its sender is told by each who says so."""
    async with user(cluster, 0, name("alice"), "Alice") as alice, user(cluster, 1, name("bob"), "Bob") as bob:
        group_id = (await alice.ask(3, 4, userIdList=[bob.client_id]))["groupId"]
        await alice.ask(9, 0, toMessageId=group_id, message=1)
        message_id = (await bob.told(10))["messageId"]
        await bob.ask(15, 16, msgid=message_id)
        receipt = await alice.told(17)

    users = {"fromUser": person(bob, "Bob"), "toUser": person(alice, "Alice")}
    assert {"msgid": message_id, **users} == receipt["msg"]["params"]


async def test_an_envelope_to_clients_and_groups(cluster: Cluster, name: Name) -> None:
    """`to` and `toGroups` in one frame of the envelope dialect: one messageId, acknowledged once."""
    async with (
        user(cluster, 0, name("alice")) as alice,
        user(cluster, 1, name("bob")) as bob,
        user(cluster, 2, name("eve")) as eve,
    ):
        group_id = (await alice.ask(3, 4, userIdList=[bob.client_id]))["groupId"]
        await bob.told(4)
        await alice.client.send({"msgType": 1, "to": [eve.client_id], "toGroups": [group_id], "msg": "all"})
        ack = await alice.client.receive_type(2)
        group = (await bob.client.until_business(2))[-1]
        direct = (await eve.client.until_business(1))[-1]

    assert ("all", ack["messageId"]) == (group["msg"], group["messageId"]) == (direct["msg"], direct["messageId"])
    assert (group_id, None) == (group["group"], direct.get("group"))
    assert [] == alice.client.business


async def test_who_logs_out_gets_nothing_twice(cluster: Cluster, name: Name) -> None:
    """What a user had of its group before it left is not what it missed; what came behind that is."""
    alice, bob = name("alice"), name("bob")
    async with user(cluster, 0, alice) as sender:
        async with user(cluster, 1, bob) as member:
            group = (await sender.ask(3, 4, userIdList=[bob]))["groupId"]
            await member.told(4)
            for number in range(20):
                await sender.ask(9, 0, toMessageId=group, message=number)
            await member.client.until(lambda: len(member.tellings(10)) == 20)
            await member.ask(7, 8, openid=bob, loginStatus="0")
            assert 1000 == await member.client.closed()
        await sender.ask(9, 0, toMessageId=group, message="missed")
        async with user(cluster, 2, bob) as again:
            await again.told(10)
            await sender.ask(9, 0, toMessageId=group, message="last")
            await again.client.until(lambda: "last" in again.tellings(10))
    assert ["missed", "last"] == again.tellings(10)
