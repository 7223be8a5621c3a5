"""The chat dialect, each row of its table across two nodes on real RocketMQ, by clients that never acknowledge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jwt
import pytest

from shared.people import People, profile
from shared.person import Person
from shared.store import Store
from tests.harness.chat import User, person, user
from tests.harness.client import connected
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]

MESSAGE = {"text": "hi", "n": 1}


def age_of(date: str) -> timedelta:
    """How long ago a date was, which has to be in the form of Java and in China's time."""
    day, month, number, clock, zone, year = date.split(" ")
    at = datetime.strptime(f"{day} {month} {number} {clock} {year}", "%a %b %d %H:%M:%S %Y")
    assert zone == "CST"
    return datetime.now(UTC) - at.replace(tzinfo=timezone(timedelta(hours=8)))


# -- who is there --------------------------------------------------------------------------------------------


async def until_known(cluster: Cluster, person: Person) -> None:
    """Until this is what Redis knows of a client."""
    store = Store(cluster.variables["PUSH_REDIS_URL"], namespace=cluster.variables["PUSH_NAMESPACE"])
    people = People(store)
    async with asyncio.timeout(20):
        while await people.carry_out([profile(person.client_id)]) != [person]:
            pass
    await store.close()


@pytest.mark.parametrize(("kind", "reply"), [(7, 8), (5, 6)])
async def test_registering_and_logging_in(cluster: Cluster, name: Name, kind: int, reply: int) -> None:
    """As the first frame, which makes the session, and again on it."""
    alice = name("alice")
    params = {"openid": alice, "userName": "Alice", "loginStatus": "1"}
    async with connected(cluster.http, cluster.socket_url(0)) as client:
        await client.send({"type": kind, "params": params})
        welcome, first = await client.receive(), await client.receive()
        await client.send({"type": kind, "params": params})
        second = await client.receive()

    assert {"type": reply, "params": params | {"sessionId": welcome["sessionId"]}, "status": 200} == first == second


async def test_logging_out(cluster: Cluster, name: Name) -> None:
    """Type 8 with loginStatus "0", then 1000; the user is out of the registry, and others are told so."""
    alice, bob = name("alice"), name("bob")
    async with user(cluster, 0, alice, "Alice") as sender, user(cluster, 1, bob, "Bob") as leaver:
        answer = await leaver.ask(7, 8, openid=bob, userName="Bobby", loginStatus="0")
        code = await leaver.client.closed()
        await until_known(cluster, Person(bob, "Bobby", online=False))
        await sender.ask(1, 0, toMessageId=bob, message="late", fileType=None)
        async with user(cluster, 1, bob) as again:
            told = await again.told(2)

    assert (answer["loginStatus"], code) == ("0", 1000)
    assert {"openid": bob, "userName": "Bobby", "loginStatus": "0"} == told["msg"]["params"]["toUser"]


async def test_the_first_frame_cannot_log_out(cluster: Cluster) -> None:
    """Nobody is there: 1008."""
    async with connected(cluster.http, cluster.socket_url(0)) as client:
        await client.send({"type": 7, "params": {"openid": "nobody", "loginStatus": "0"}})
        assert await client.closed() == 1008


async def test_heartbeats(cluster: Cluster, name: Name) -> None:
    """Type 11 is answered by type 12."""
    async with user(cluster, 0, name("alice")) as alice:
        await alice.client.send('{"type":11}')
        await alice.answered(12)
        assert alice.client.frames[-1] == {"type": 12, "status": 200}


# -- one to one ----------------------------------------------------------------------------------------------


async def test_a_message_to_a_user_on_another_node(cluster: Cluster, name: Name) -> None:
    """The sender gets type 0, the other the type 2 in an envelope, each knows the other's name."""
    async with user(cluster, 0, name("alice"), "Alice") as alice, user(cluster, 1, name("bob"), "Bob") as bob:
        answer = await alice.ask(1, 0, toMessageId=bob.client_id, message=MESSAGE, fileType="TEXT", requestId="q-1")
        envelope = await bob.told(2)

    assert abs(age_of(answer["date"])) < timedelta(minutes=1)
    assert (MESSAGE, "q-1") == (answer["message"], answer["requestId"])
    assert ["date", "message", "messageId", "requestId"] == list(answer)
    assert envelope["msg"] == {
        "type": 2,
        "params": {
            "fromUser": person(alice, "Alice"),
            "toUser": person(bob, "Bob"),
            "message": MESSAGE,
            "fileType": "TEXT",
        },
        "status": 200,
    }
    expected = {
        "from": alice.client_id,
        "to": bob.client_id,
        "messageId": answer["messageId"],
        "requestId": "q-1",
        "trigger": 2,
        "msgType": 1,
    }
    assert envelope == envelope | expected


async def test_a_message_arrives_byte_for_byte(cluster: Cluster, name: Name) -> None:
    """Numbers of any size, white space and line breaks included."""
    message = '{ "z":18446744073709551616,\n"a":[1.0] }'
    async with user(cluster, 0, name("alice")) as alice, user(cluster, 1, name("bob")) as bob:
        await alice.client.send(
            '{"type":1,"params":{"toMessageId":"%s","message":%s,"fileType":3}}' % (bob.client_id, message)
        )
        await alice.answered(0)
        await bob.told(2)
        answer, envelope = alice.client.raw[-1], bob.client.raw[-1]

    assert b'"message":' + message.encode() + b"," in answer
    assert b'"message":' + message.encode() + b',"fileType":3}' in envelope


async def test_a_user_who_is_away_gets_it_later_and_once(cluster: Cluster, name: Name) -> None:
    """Delivered is what the kernel took, so the session after that gets nothing again."""
    bob = name("bob")
    async with user(cluster, 1, bob, "Bob"):
        pass
    async with user(cluster, 0, name("alice"), "Alice") as alice:
        for number in range(20):
            await alice.send(1, toMessageId=bob, message=number)
        for _ in range(20):
            await alice.answered(0)
        async with user(cluster, 1, bob) as later:
            envelopes = [await later.told(2) for _ in range(20)]
        await alice.ask(1, 0, toMessageId=bob, message="last")
        async with user(cluster, 2, bob) as last:
            await last.told(2)
            again = last.tellings(2)

    assert list(range(20)) == sorted(envelope["msg"]["params"]["message"] for envelope in envelopes)
    assert person(later, "Bob", "0") == envelopes[0]["msg"]["params"]["toUser"]
    assert ["last"] == again


async def test_a_name_may_change_in_the_same_breath(cluster: Cluster, name: Name) -> None:
    """A message carries the name that its sender gave before it."""
    async with user(cluster, 0, name("alice"), "Alice") as alice, user(cluster, 1, name("bob")) as bob:
        await alice.send(5, openid=alice.client_id, userName="Ally")
        await alice.send(1, toMessageId=bob.client_id, message=1)
        told = await bob.told(2)

    assert person(alice, "Ally") == told["msg"]["params"]["fromUser"]


async def test_a_repeated_request_is_delivered_once(cluster: Cluster, name: Name) -> None:
    """The same requestId, as after an answer that was lost."""
    async with user(cluster, 0, name("alice")) as alice, user(cluster, 1, name("bob")) as bob:
        await alice.ask(1, 0, toMessageId=bob.client_id, message="once", requestId="same")
        await bob.told(2)
        await alice.ask(1, 0, toMessageId=bob.client_id, message="once", requestId="same")
        await alice.ask(1, 0, toMessageId=bob.client_id, message="last", requestId="other")
        await bob.told(2)

        assert ["once", "last"] == bob.tellings(2)


async def test_the_sender_is_told_that_a_message_was_read(cluster: Cluster, name: Name) -> None:
    """Type 15 is answered by 16, an ack with it; the sender gets a 17, once however often it is said."""
    async with user(cluster, 0, name("alice"), "Alice") as alice, user(cluster, 1, name("bob"), "Bob") as bob:
        await alice.ask(1, 0, toMessageId=bob.client_id, message=1)
        message_id = (await bob.told(2))["messageId"]
        answer = await bob.ask(15, 16, msgid=message_id)
        envelope = await alice.told(17)
        await bob.ask(15, 16, msgid=message_id)
        await bob.ask(1, 0, toMessageId=alice.client_id, message="last")
        await alice.told(2)
        receipts = [frame for frame in alice.client.business if frame["msg"]["type"] == 17]

    assert abs(age_of(answer["date"])) < timedelta(minutes=1)
    assert answer["message"] == message_id
    assert envelope["msg"] == {
        "type": 17,
        "params": {"msgid": message_id, "fromUser": person(bob, "Bob"), "toUser": person(alice, "Alice")},
        "status": 200,
    }
    assert (envelope["from"], envelope["to"]) == (bob.client_id, alice.client_id)
    assert [envelope] == receipts


async def test_reading_is_an_acknowledgement(cluster: Cluster, name: Name) -> None:
    """Of a client that asked to acknowledge: what it has read does not come again, what it has not does."""
    bob = name("bob")
    async with user(cluster, 0, name("alice")) as alice:
        async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={bob}&ack=1") as first:
            reader = User(first, bob)
            for number in range(2):
                await alice.ask(1, 0, toMessageId=bob, message=number)
            ids = [(await reader.told(2))["messageId"] for _ in range(2)]
            await reader.ask(15, 16, msgid=ids[0])
        async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={bob}&ack=1") as second:
            await User(second, bob).told(2)
            again = [frame["messageId"] for frame in second.business]

    assert ids[1:] == again


async def test_a_message_whose_sender_is_not_known_may_be_read(cluster: Cluster, name: Name) -> None:
    """A business system's: type 16, and nobody is told."""
    async with user(cluster, 0, name("alice")) as alice:
        sent = await cluster.send(alice.client_id, {"type": "x"})
        await alice.client.until_business(1)
        answer = await alice.ask(15, 16, msgid=sent.message_id)

    assert answer["message"] == sent.message_id


# -- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "params", "code", "words"),
    [
        (99, {}, "unknown_type", "type: 99"),
        (2, {}, "unknown_type", "type: 2"),
        (1, {"toMessageId": "b c", "message": 1}, "bad_frame", "params.toMessageId: "),
        (1, {"toMessageId": "b"}, "bad_frame", "params.message: required"),
        (7, {"openid": "somebody-else"}, "forbidden", "params.openid: "),
        (7, {"openid": "a", "userName": 1}, "bad_frame", "params.userName: "),
        (3, {"userIdList": ["a", ""]}, "bad_frame", "params.userIdList[1]: "),
        (3, {"userIdList": [], "groupName": "a\u0007"}, "bad_frame", "params.groupName: "),
        (9, {"toMessageId": "gNone", "message": 1}, "unknown_group", "there is no group gNone"),
        (14, {"groupId": "gNone"}, "unknown_group", "there is no group gNone"),
        (14, {"groupId": "gNone", "action": "leave"}, "unknown_group", "there is no group gNone"),
        (15, {"msgid": "1"}, "bad_frame", "params.msgid: "),
    ],
)
async def test_what_is_wrong_is_said_in_the_dialect(
    cluster: Cluster, name: Name, kind: int, params: dict[str, Any], code: str, words: str
) -> None:
    """Type 500 with code and message; the connection is kept."""
    async with user(cluster, 0, name("alice")) as alice:
        error = await alice.refused(kind, **params)
        await alice.ask(11, 12)

    assert code == error["code"]
    assert error["message"].startswith(words)


# -- faults --------------------------------------------------------------------------------------------------


async def test_redis_is_away(private_valkey: Any, shared_rocketmq: Any, name: Name) -> None:
    """Messages are refused in the dialect, names are kept in the end, and the session stays."""
    async with (
        running_cluster(private_valkey.url, shared_rocketmq.url, name("away")) as cluster,
        user(cluster, 0, "alice", "Alice") as alice,
        user(cluster, 0, "bob", "Bob") as bob,
    ):
        private_valkey.kill()
        errors = [
            await alice.refused(1, toMessageId="bob", message=1, requestId="q"),
            await alice.refused(9, toMessageId="g", message=1),
            await alice.refused(3, userIdList=[]),
            await alice.refused(14, groupId="g"),
            await alice.refused(15, msgid="0" * 32),
        ]
        named = await alice.ask(5, 6, openid="alice", userName="Ally")
        await private_valkey.restart()
        async with asyncio.timeout(20):
            sender = person(alice, "Alice")
            while sender["userName"] != "Ally":
                if await alice.tried(1, 0, toMessageId="bob", message=2):
                    sender = (await bob.told(2))["msg"]["params"]["fromUser"]

    assert {"store_unavailable"} == {error["code"] for error in errors}
    assert errors[0]["requestId"] == "q"
    assert named["userName"] == "Ally"
    assert person(alice, "Ally") == sender


async def test_chat_with_authentication(valkey: Any, name: Name) -> None:
    """A token names the client; type 7 may repeat that and give a name, in a zone of the site's choice."""
    secret = "s" * 32
    token = jwt.encode({"sub": "alice"}, secret, algorithm="HS256")
    async with (
        running_cluster(
            valkey.url,
            valkey.url,
            name("auth"),
            dispatchers=0,
            PUSH_AUTH="jwt",
            PUSH_JWT_SECRET=secret,
            PUSH_CHAT_TIMEZONE="UTC",
        ) as cluster,
        connected(cluster.http, f"{cluster.socket_url(0)}?token={token}") as client,
    ):
        alice = User(client, "alice")
        refused = await alice.refused(7, openid="eve")
        await alice.ask(7, 8, openid="alice", userName="Alice", loginStatus="1")
        answer = await alice.ask(1, 0, toMessageId="bob", message=1)

    assert refused["code"] == "forbidden"
    assert answer["date"].split(" ")[4] == "UTC"
    assert answer["message"] == 1
