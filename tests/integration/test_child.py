"""The watcher of child processes under `pushfleet dev`, with small programs as children."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pushfleet.child import DEATHS_AT_MOST, Child
from tests.harness.processes import Watch

DEADLINE_S = 20.0
READY = """
import json, os, sys
def log(event, **fields): print(json.dumps({"level": "info", "event": event, **fields}), file=sys.stderr, flush=True)
log("ready", pid=os.getpid())
"""
POLITE = (
    """
import signal
signal.signal(signal.SIGTERM, lambda *_: (log("bye"), sys.exit(0)))
"""
    + READY
    + """
while True: signal.pause()
"""
)
DEAF = POLITE.replace('lambda *_: (log("bye"), sys.exit(0))', "signal.SIG_IGN")


class Watched:
    """A child that runs a program, and everything that was said about it."""

    def __init__(self, program: str, folder: Path, refit: Callable[[], bool] = lambda: False) -> None:
        self.said: list[str] = []
        self.between_lives = asyncio.Event()
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.log = folder / "logs" / "child.log"
        command = [sys.executable, "-c", program]
        self.child = Child(
            "child",
            lambda: (command, os.environ),
            self.log,
            say=self._take,
            give_up=self.gave_up.set_result,
            refit=refit,
        )

    def _take(self, line: str) -> None:
        self.said.append(line)
        if "started again" in line:
            self.between_lives.set()

    async def until_ready(self) -> int:
        """Its pid."""
        async with asyncio.timeout(DEADLINE_S):
            await self.child.ready.wait()
        return self.child.pid


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_that_is_stopped_ends_by_itself_and_stays_ended(tmp_path: Path) -> None:
    """SIGTERM is enough for a polite one; its last words are kept; nothing is said."""
    watched = Watched(POLITE, tmp_path)
    watched.child.start()
    pid = await watched.until_ready()
    await watched.child.stop(DEADLINE_S)
    assert not runs(pid)
    assert [] == watched.said
    assert '"bye"' in watched.log.read_text()


async def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """After the grace SIGKILL, which is said."""
    watched = Watched(DEAF, tmp_path)
    watched.child.start()
    pid = await watched.until_ready()
    await watched.child.stop(0.2)
    assert not runs(pid)
    assert any("killed" in line for line in watched.said)


async def test_a_child_that_dies_is_started_again_and_its_last_lines_are_told(tmp_path: Path) -> None:
    """The message names the signal and holds the end of the log."""
    watched = Watched(POLITE, tmp_path)
    watched.child.start()
    first = await watched.until_ready()
    watched.child.ready.clear()
    os.kill(first, signal.SIGKILL)
    second = await watched.until_ready()
    assert second not in (0, first)
    assert "child was ended by SIGKILL" in watched.said[0]
    assert f"info: ready (pid={first})" in watched.said[0]
    await watched.child.stop(DEADLINE_S)


async def test_a_child_that_cannot_live_is_given_up(tmp_path: Path) -> None:
    """A bounded number of starts, then one clear message; before each next one it may take other ports."""
    refits: list[bool] = []

    def refit() -> bool:
        refits.append(True)
        return True

    watched = Watched("import sys; sys.exit('no such port')", tmp_path, refit)
    watched.child.start()
    async with asyncio.timeout(60):
        reason = await watched.gave_up
    assert f"child died more than {DEATHS_AT_MOST} times" in reason
    assert len(refits) == DEATHS_AT_MOST + 1
    assert "no such port" in watched.said[0]
    await watched.child.stop(DEADLINE_S)


async def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    """Exit code 2 is a role's word for them: given up at the first time, with what it said."""
    watched = Watched("import sys; print('PUSH_X: expected y'); sys.exit(2)", tmp_path)
    watched.child.start()
    async with asyncio.timeout(DEADLINE_S):
        await watched.gave_up
    assert "PUSH_X: expected y" in watched.said[0]
    assert not watched.between_lives.is_set()
    await watched.child.stop(DEADLINE_S)


async def test_a_child_between_two_lives_can_be_stopped(tmp_path: Path) -> None:
    """Stopping while it waits to be started again ends the waiting."""
    watched = Watched("import sys; sys.exit(3)", tmp_path)
    watched.child.start()
    async with asyncio.timeout(DEADLINE_S):
        await watched.between_lives.wait()
    await watched.child.stop(DEADLINE_S)
    assert watched.child.pid == 0


async def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL to the parent leaves no orphan."""
    parent_program = f"""
import asyncio, os, sys
from pathlib import Path
from pushfleet.child import Child
async def run():
    child = Child("child", lambda: ([sys.executable, "-c", {DEAF!r}], os.environ), Path({str(tmp_path / "log")!r}),
                  say=print, give_up=print)
    child.start()
    await child.ready.wait()
    print(child.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(run())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent_program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        pid = int(await parent.stdout.readline())
    child = Watch(pid)
    parent.kill()
    await parent.wait()
    await child.until_all_ended()
