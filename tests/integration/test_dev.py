"""`pushfleet dev` as a process: it comes up, says what to do, works, mends itself, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from tests.harness.processes import Watch

DEADLINE_S = 90.0
TOP = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PUSH_")}


class Dev:
    """One run. `text` is all it has written so far, stdout and stderr together."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""
        self._grown = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(1 << 16):
            async with self._grown:
                self.text += data.decode()
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()

    async def until_said(self, pattern: str) -> re.Match[str]:
        """The first match in what it wrote."""
        async with asyncio.timeout(DEADLINE_S), self._grown:
            while not (match := re.search(pattern, self.text)):
                assert not self._reading.done(), f"ended without saying {pattern!r}:\n{self.text}"
                await self._grown.wait()
            return match

    async def until_up(self) -> None:
        await self.until_said("Ctrl-C stops everything")

    @property
    def dispatcher(self) -> str:
        match = re.search(r"dispatcher +(http://\S+)", self.text)
        assert match is not None
        return match[1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """Its exit code, once it has ended and its output was read."""
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await self._reading
        return code

    async def descendants(self) -> dict[int, str]:
        """The processes below it by pid, with their command lines."""
        return {pid: command for pid, command in _below(self.process.pid)}


def _below(parent: int) -> list[tuple[int, str]]:
    """From /proc, children's children too."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        found += [(int(pid), command), *_below(int(pid))]
    return found


@asynccontextmanager
async def running(data: Path, *arguments: str, **variables: str) -> AsyncIterator[Dev]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushfleet", "dev", "--data", str(data), "--http-port", "0", "--node-port", "0"),
        *arguments,
        env={**CLEAN, **variables},
        cwd=TOP,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    dev = Dev(process)
    try:
        yield dev
    finally:
        if process.returncode is None:
            process.kill()
        await dev.end()


async def run(*arguments: str) -> str:
    """A command's stdout."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushfleet", *arguments), env=CLEAN, cwd=TOP, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    return out.decode()


async def first_message(dispatcher: str, client: str) -> object:
    """What a `pushfleet tail` shows first."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushfleet", "tail", client, "--dispatcher", dispatcher),
        env=CLEAN,
        cwd=TOP,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for line in process.stdout:
                envelope = orjson.loads(line)
                if envelope["msgType"] == 1:
                    return envelope["msg"]
        raise AssertionError("tail ended before a message came")
    finally:
        process.terminate()
        await process.communicate()


async def test_a_cluster_comes_up_works_and_leaves_no_process_behind(tmp_path: Path) -> None:
    """Send and tail through it; Ctrl-C ends it with 0 and every process that it had started with it."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        processes = await dev.descendants()
        answer = orjson.loads(await run("send", "alice", '{"hello":1}', "--dispatcher", dev.dispatcher))
        shown = await first_message(dev.dispatcher, "alice")
        watch = Watch(*processes)
        dev.signal(signal.SIGINT)
        code = await dev.end()
        await watch.until_all_ended()
    assert (True, ["alice"]) == (answer["success"], answer["content"])
    assert {"hello": 1} == shown
    commands = " ".join(processes.values())
    assert (2, 1, 1) == tuple(commands.count(word) for word in ("-m gateway_node", "-m dispatcher", "valkey-server"))
    assert code == 0, dev.text
    assert "killed" not in dev.text


async def test_it_tells_what_to_do_next(tmp_path: Path) -> None:
    """Each command that it shows works as it stands, the curl line too."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        match = re.search(r"^  (curl .*)$", dev.text, re.MULTILINE)
        assert match is not None
        shell = await asyncio.create_subprocess_exec("sh", "-c", match[1], stdout=asyncio.subprocess.PIPE)
        answer, _ = await shell.communicate()
    assert orjson.loads(answer)["success"] is True
    for command in ("tail alice", "send alice '{\"hello\":1}'"):
        assert f"pushfleet {command} --dispatcher {dev.dispatcher}" in dev.text


async def test_what_was_sent_is_still_there_the_next_time(tmp_path: Path) -> None:
    """The data folder keeps the inboxes."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        await run("send", "alice", '"kept"', "--dispatcher", dev.dispatcher)
        dev.signal(signal.SIGTERM)
        assert await dev.end() == 0
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        assert await first_message(dev.dispatcher, "alice") == "kept"


async def test_no_orphan_is_left_when_it_is_killed(tmp_path: Path) -> None:
    """SIGKILL, so that it can do nothing more: the kernel ends its children."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        watch = Watch(*await dev.descendants())
        dev.signal(signal.SIGKILL)
        await watch.until_all_ended()


@pytest.mark.parametrize("part", ["gateway_node", "dispatcher", "valkey-server"])
async def test_a_part_that_dies_comes_back(tmp_path: Path, part: str) -> None:
    """It is said, and sends work again."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        pid = next(pid for pid, command in (await dev.descendants()).items() if part in command)
        os.kill(pid, signal.SIGKILL)
        await dev.until_said("was ended by SIGKILL|Valkey has ended by itself")
        await _until_accepted(f"{dev.dispatcher}/message/send", {"to": "alice", "msg": 1})
        assert await first_message(dev.dispatcher, "alice") == 1
        dev.signal(signal.SIGINT)
        assert await dev.end() == 0


async def _until_accepted(url: str, body: object) -> None:
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.post(url, json=body) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)  # nobody listens there yet


async def test_two_stand_side_by_side_but_not_on_one_folder(tmp_path: Path) -> None:
    """With the same wanted ports the second takes others and says so; one folder has one owner."""
    async with running(tmp_path / "a") as first:
        await first.until_up()
        port = first.dispatcher.rpartition(":")[2]
        async with running(tmp_path / "b", "--http-port", port) as second:
            await second.until_up()
            assert f"port {port} is taken: dispatcher gets" in second.text
            await run("send", "alice", '"to the second"', "--dispatcher", second.dispatcher)
            await run("send", "alice", '"to the first"', "--dispatcher", first.dispatcher)
            assert await first_message(first.dispatcher, "alice") == "to the first"
        async with running(tmp_path / "a") as third:
            assert await third.end() == 1
            assert f"in use by process {first.process.pid}" in third.text


async def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    """Even parts that do not answer are gone at once."""
    async with running(tmp_path / "d") as dev:
        await dev.until_up()
        processes = await dev.descendants()
        watch = Watch(*processes)
        stuck = next(pid for pid, command in processes.items() if "gateway_node" in command)
        os.kill(stuck, signal.SIGSTOP)
        dev.signal(signal.SIGINT)
        await dev.until_said("stopping")
        dev.signal(signal.SIGINT)
        assert await dev.end() == 130
        await watch.until_all_ended()


async def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """Stopped half way through: exit 0, no process left."""
    async with running(tmp_path / "d") as dev:
        await dev.until_said("starting 2 nodes")
        watch = Watch(*await dev.descendants())
        dev.signal(signal.SIGINT)
        assert await dev.end() == 0
        await watch.until_all_ended()
    assert "Ctrl-C stops everything" not in dev.text


async def test_settings_that_the_roles_refuse_end_it_with_the_reason(tmp_path: Path) -> None:
    """A wrong PUSH_ variable is passed on; the role says which, and it is not tried again."""
    async with running(tmp_path / "d", PUSH_LEASE="soon") as dev:
        assert await dev.end() == 1
    assert "PUSH_LEASE='soon'" in dev.text
    assert "started again" not in dev.text


async def test_the_word_rocketmq_is_enough(tmp_path: Path, namespace: str) -> None:
    """It uses the broker at the usual port, or starts one of its own, which then ends with it."""
    async with running(tmp_path / "d", "--bus", "rocketmq", "--nodes", "1", PUSH_NAMESPACE=namespace) as dev:
        await dev.until_up()
        await run("send", "alice", "1", "--dispatcher", dev.dispatcher)
        assert await first_message(dev.dispatcher, "alice") == 1
        processes = await dev.descendants()
        assert any("java" in command for command in processes.values()) == ("starting RocketMQ" in dev.text)
        watch = Watch(*processes)
        dev.signal(signal.SIGINT)
        assert await dev.end() == 0
        await watch.until_all_ended()


async def test_it_runs_on_a_rocketmq_that_is_there(tmp_path: Path, shared_rocketmq: LocalRocketMQ) -> None:
    """`--bus URL`: the same cluster on a real broker, which it leaves alone when it stops."""
    async with running(tmp_path / "d", "--bus", shared_rocketmq.url, "--nodes", "1") as dev:
        await dev.until_up()
        await run("send", "alice", '"through a broker"', "--dispatcher", dev.dispatcher)
        assert await first_message(dev.dispatcher, "alice") == "through a broker"
        assert not any("java" in command for command in (await dev.descendants()).values())
        dev.signal(signal.SIGINT)
        assert await dev.end() == 0
    assert len(shared_rocketmq.pids) == 2
