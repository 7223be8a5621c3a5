"""`pushfleet drain` on a real cluster."""

from __future__ import annotations

import asyncio

import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.cluster import running_cluster
from tests.harness.drain import FOREVER, clients_on, draining, open_ones, until_seen
from tests.integration.test_cli import run

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_command_shows_how_far_it_is(valkey: LocalValkey, namespace: str) -> None:
    """From the request to the node's end: exit 0."""
    async with running_cluster(valkey.url, valkey.url, namespace, nodes=2) as cluster, clients_on(cluster, 10):
        node = cluster.nodes[0]
        done = await run(cluster, "drain", node.node_id, "--seconds", "3")
        code = await node.ended()
        gone = await run(cluster, "drain", node.node_id)

    assert (0, 0) == (done.code, code)
    lines = done.out.splitlines()
    assert all(line.startswith(f"{node.node_id}: ") for line in lines)
    assert "asked to drain" in lines[0]
    assert any("10 sessions, closed over 3 s" in line for line in lines)
    assert any("of 10 sessions left" in line for line in lines)
    assert "has left" in lines[-1]
    assert 1 == gone.code
    assert f"no node {node.node_id} lives" in gone.err


async def test_the_command_takes_it_back(valkey: LocalValkey, namespace: str) -> None:
    """`--no-wait` only asks; `--abort` waits until the node serves; who was watching is told."""
    async with running_cluster(valkey.url, valkey.url, namespace) as cluster, clients_on(cluster, 3) as clients:
        node = cluster.nodes[0]
        asked = await run(cluster, "drain", node.node_id, "--seconds", str(FOREVER), "--no-wait")
        watching = asyncio.create_task(run(cluster, "drain", node.node_id))
        await until_seen(cluster, node, draining)
        await node.until_logged("drain_progress")
        aborted = await run(cluster, "drain", node.node_id, "--abort")
        watched = await watching
        idle = await run(cluster, "drain", node.node_id, "--abort")
        stayed = open_ones(clients)

    assert (0, 0, 0, 1) == (asked.code, aborted.code, idle.code, watched.code)
    assert "asked to drain" in asked.out
    assert "asked to serve again" in aborted.out
    assert "serves, " in aborted.out.splitlines()[-1]
    assert "asked to serve again" not in idle.out
    assert f"the drain of {node.node_id} was aborted" in watched.err
    assert len(stayed) >= 2
