"""
A role as a child process, watched: its output is kept, its death is told and mended, its end is orderly.

A child that dies is started again with a growing delay. One that dies too often is given up, and so is the
whole: whoever runs it hears of it through `give_up`. Children stand in a session of their own, so that a Ctrl-C in
the terminal reaches the parent alone, which then ends them in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pushfleet.child_log import ChildLog
from pushfleet.lifeline import end_with_parent
from shared.backoff import Backoff

DEATHS_AT_MOST = 5
DEATHS_WITHIN_S = 60.0
WRONG_SETTINGS = 2  # the exit code of a role that says what is wrong; another start would say the same
_PUMP_END_S = 2.0
_TOLD = frozenset({"authentication_is_off"})  # said once for all of them


class DeathCount:
    """Whether something dies too often: more than five times in a minute."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=DEATHS_AT_MOST)

    def too_many(self) -> bool:
        """Count one death."""
        now = time.monotonic()
        full = len(self._times) == DEATHS_AT_MOST and now - self._times[0] < DEATHS_WITHIN_S
        self._times.append(now)
        return full


class Child:
    """
    One child process. `launch` gives its command and environment at each start. `refit` is asked before a start again
    if it had never been ready: whether something about its start was changed (its port had been taken by somebody).
    """

    __slots__ = (
        "_backoff",
        "_deaths",
        "_give_up",
        "_launch",
        "_log",
        "_log_path",
        "_process",
        "_ready",
        "_refit",
        "_say",
        "_stopping",
        "_watch",
        "name",
    )

    def __init__(
        self,
        name: str,
        launch: Callable[[], tuple[Sequence[str], Mapping[str, str]]],
        log_path: Path,
        *,
        say: Callable[[str], None],
        give_up: Callable[[str], None],
        refit: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self._launch = launch
        self._log_path = log_path
        self._say = say
        self._give_up = give_up
        self._refit = refit
        self._ready = asyncio.Event()
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._backoff = Backoff(0.2, 5.0)
        self._deaths = DeathCount()
        self._log: ChildLog | None = None

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def ready(self) -> asyncio.Event:
        """Set from its `ready` log line on; cleared when it dies."""
        return self._ready

    def start(self) -> None:
        """Start it and keep it running from now on."""
        self._watch = asyncio.create_task(self._keep_running(), name=f"watch {self.name}")

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, SIGKILL if it has not ended after `grace_s`. It is not started again."""
        self._stopping = True
        if self._watch is None:
            return
        if self.pid:
            self._signal(signal.SIGTERM)
        else:
            self._watch.cancel()
        done, _ = await asyncio.wait({self._watch}, timeout=grace_s)
        if not done:
            self._say(f"{self.name} has not ended after {grace_s:g} s: killed")
            self.kill()
            await asyncio.wait({self._watch}, timeout=grace_s)
        self._watch.cancel()

    def kill(self) -> None:
        """SIGKILL, and no start again."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)

    async def _keep_running(self) -> None:
        self._log = ChildLog(self._log_path, show=self._show, on_event=self._take_event, told=_TOLD)
        try:
            while not self._stopping:
                status = await self._run_once(self._log)
                if self._stopping or not await self._after_death(status, self._log):
                    return
        except Exception as error:
            self._give_up(f"{self.name} cannot be kept running: {error!r}")
        finally:
            self._log.close()

    async def _run_once(self, log: ChildLog) -> int:
        command, environment = self._launch()
        process = self._process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        if self._stopping:  # asked to while it was being started
            process.terminate()
        try:
            pump = asyncio.create_task(self._pump(process, log))
            status = await process.wait()
            # A grandchild may hold the pipe open: what is there is read, the rest is not waited for.
            await asyncio.wait({pump}, timeout=_PUMP_END_S)
            pump.cancel()
            log.end_of_output()
        finally:
            if process.returncode is None:
                process.kill()
        return status

    async def _pump(self, process: asyncio.subprocess.Process, log: ChildLog) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(1 << 16):
            log.feed(data)

    async def _after_death(self, status: int, log: ChildLog) -> bool:
        """Whether to start it again, after a pause."""
        was_ready = self._ready.is_set()
        self._ready.clear()
        how = f"was ended by {_signal_name(-status)}" if status < 0 else f"ended with exit code {status}"
        self._say(f"{self.name} {how}; the last lines of {log.path}:\n{log.tail() or '    (nothing)'}")
        if was_ready:
            self._backoff.reset()
        elif not self._refit() and status == WRONG_SETTINGS:
            self._give_up(f"{self.name} does not take its settings")
            return False
        if self._deaths.too_many():
            self._give_up(f"{self.name} died more than {DEATHS_AT_MOST} times within {DEATHS_WITHIN_S:g} s")
            return False
        delay_s = self._backoff.next_s()
        self._say(f"{self.name} is started again in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)
        return True

    def _show(self, text: str) -> None:
        self._say(f"{self.name}: {text}")

    def _take_event(self, event: str) -> None:
        if event == "ready":
            self._ready.set()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
