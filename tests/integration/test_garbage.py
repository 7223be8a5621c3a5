"""Garbage over real sockets; `python -m tests.fuzz.live` does it for longer."""

from __future__ import annotations

from functools import partial

from pushfleet.local_valkey import LocalValkey
from tests.fuzz.live import Storm, resident_mib
from tests.harness.client import Client, connected
from tests.harness.cluster import running_cluster

_ROUNDS = 4
_MOST_MORE_MIB = 48


def _has(client: Client, msg: object) -> bool:
    """Among what others send to everyone."""
    return any(msg == frame["msg"] for frame in client.business)


async def test_no_input_ends_a_role_or_fails_inside(valkey: LocalValkey, namespace: str) -> None:
    """
    Bytes at random, broken heads, frames, bodies and chunks, on a node and a dispatcher: who was there before is served
    all the while, nothing fails inside, and memory does not follow what was sent.
    """
    async with (
        running_cluster(valkey.url, valkey.url, namespace) as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=calm") as client,
    ):
        storm = Storm(cluster, seed=1)
        await storm.round(0)
        before = {name: resident_mib(role.pid) for name, role in storm.roles.items()}
        for number in range(1, _ROUNDS):
            await storm.round(number)
            await cluster.send("calm", {"round": number})
            await client.until(partial(_has, client, {"round": number}))
        for name, role in storm.roles.items():
            await role.until_healthy(cluster.http)
            assert resident_mib(role.pid) < before[name] + _MOST_MORE_MIB
        assert [] == storm.faults_inside()
