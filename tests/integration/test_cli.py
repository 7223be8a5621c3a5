"""The commands as processes, on a real cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEADLINE_S = 30.0
Name = Callable[[str], str]
TOP = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pushfleet", *arguments]


def environment(cluster: Cluster) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PUSH_")}
    return {**clean, "PUSH_DISPATCHER_URL": cluster.dispatcher_url}


async def run(cluster: Cluster, *arguments: str) -> Done:
    """To the end."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        env=environment(cluster),
        cwd=TOP,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


class Tailing:
    """A `pushfleet tail` that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def next(self, kind: int = 1) -> dict[str, Any]:
        """The next envelope of this msgType on stdout."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            async for line in self._process.stdout:
                envelope: dict[str, Any] = orjson.loads(line)
                if envelope["msgType"] == kind:
                    return envelope
        raise AssertionError("tail has ended")

    async def until_said(self, word: str) -> str:
        """The line of stderr that holds the word."""
        assert self._process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            async for line in self._process.stderr:
                if word in line.decode():
                    return line.decode()
        raise AssertionError(f"tail has ended and never said {word!r}")

    async def stop(self) -> int:
        """Ctrl-C; the exit code."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE_S):
            await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode


@asynccontextmanager
async def tailing(cluster: Cluster, *arguments: str) -> AsyncIterator[Tailing]:
    """Connected when entered."""
    process = await asyncio.create_subprocess_exec(
        *command("tail", *arguments),
        env=environment(cluster),
        cwd=TOP,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    tail = Tailing(process)
    try:
        await tail.until_said("connected as")
        yield tail
    finally:
        await tail.stop()


async def test_what_is_sent_is_shown(cluster: Cluster, name: Name) -> None:
    """`send` says that the client is online, `tail` shows the envelope, and Ctrl-C ends it with 0."""
    who = name("alice")
    async with tailing(cluster, who) as alice:
        sent = await run(cluster, "send", who, '{"hello": 1.10}', "--from", "billing")
        envelope = await alice.next()
        code = await alice.stop()
    assert (0, f"{who} is online" in sent.err) == (sent.code, True)
    assert {"success": True, "statusCode": 200, "content": None, "msg": "操作成功"} == orjson.loads(sent.out)
    assert ("billing", who, {"hello": 1.10}) == (envelope["from"], envelope["to"], envelope["msg"])
    assert code == 0


async def test_a_message_to_an_absent_client_is_told_and_waits(cluster: Cluster, name: Name) -> None:
    """`send` says that it is stored for later; the client's next `tail` shows it."""
    bob = name("bob")
    sent = await run(cluster, "send", bob, "1", "--ttl", "1h")
    async with tailing(cluster, bob) as tail:
        pending = (await tail.next(kind=0))["msg"]["pending"]
        envelope = await tail.next()
    assert f"{bob} is not online now; stored for later" in sent.err
    assert (1, 1) == (pending, envelope["msg"])


async def test_a_node_can_be_named(cluster: Cluster, name: Name) -> None:
    """`--url` goes there, whatever the dispatcher would say."""
    async with tailing(cluster, name("carol"), "--url", cluster.socket_url(1), "--no-ack", "--json") as tail:
        session_id = (await tail.next(kind=0))["sessionId"]
    assert cluster.socket_url(1).split("/")[2] == session_id.split("_")[0]


async def test_tail_finds_another_node_when_its_own_drains(valkey: LocalValkey, namespace: str) -> None:
    """The node goes, the command reconnects by itself, and what was sent arrives once."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, nodes=2) as cluster,
        tailing(cluster, "alice") as alice,
    ):
        here = (await alice.next(kind=0))["sessionId"].split("_")[0]
        node = next(node for node in cluster.nodes if f"127.0.0.1:{node.ready['port']}" == here)
        assert await node.stop() == 0
        await run(cluster, "send", "alice", '"after"')
        again = await alice.next(kind=0)
        envelope = await alice.next()
    assert here != again["sessionId"].split("_")[0]
    assert envelope["msg"] == "after"


async def test_the_curl_line_sends_the_same(cluster: Cluster, name: Name) -> None:
    """What `--show-curl` prints, run by a shell, is a send."""
    who = name("alice")
    shown = await run(cluster, "send", who, '{"it\'s":"$HOME"}', "--show-curl")
    async with tailing(cluster, who) as alice:
        shell = await asyncio.create_subprocess_exec("sh", "-c", shown.out, stdout=asyncio.subprocess.PIPE)
        answer, _ = await shell.communicate()
        envelope = await alice.next()
    assert orjson.loads(answer)["success"] is True
    assert envelope["msg"] == {"it's": "$HOME"}


async def test_a_refused_send_fails(cluster: Cluster, name: Name) -> None:
    """Exit code 1, the four fields on stdout and the reason in words on stderr."""
    done = await run(cluster, "send", name("alice"), "1", "--request-id", "x" * 65)
    assert done.code == 1
    assert orjson.loads(done.out)["success"] is False
    assert "Nothing was sent" in done.err


async def test_a_reader_that_goes_away_ends_tail_quietly(cluster: Cluster, name: Name) -> None:
    """`pushfleet tail alice | head -1` leaves no traceback."""
    who = name("alice")
    line = f"{sys.executable} -m pushfleet tail {who} | head -1"
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", line, env=environment(cluster), cwd=TOP, stdout=-1, stderr=-1
    )
    ended = asyncio.create_task(process.communicate())
    async with asyncio.timeout(2 * DEADLINE_S):
        while not ended.done():  # tail hears that the reader is gone when it next writes
            await run(cluster, "send", who, "1")
    assert "Traceback" not in (await ended)[1].decode()
