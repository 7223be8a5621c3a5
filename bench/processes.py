"""
Processes of a run: started on chosen cores, watched through /proc, ended by their own pid.

The server under test has core 0 and the load core 1, so that the one cannot take time from the other. CPU seconds
come from /proc/<pid>/stat, memory from /proc/<pid>/statm.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Cores = frozenset[int]

SERVER_CORE: Cores = frozenset({0})
LOAD_CORE: Cores = frozenset({1})
BOTH_CORES: Cores = SERVER_CORE | LOAD_CORE

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOP_S = 20.0
_POLL_S = 0.05


class BenchError(Exception):
    """A part did not start or did not do what it was asked; the text says which and shows the end of its log."""


@dataclass(slots=True)
class Child:
    """A process of the run."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def fault(self, what: str) -> BenchError:
        tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-12:])
        return BenchError(f"{self.name}: {what}\n{tail}")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after twenty seconds."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def spawn(
    name: str,
    command: Sequence[str],
    folder: Path,
    cores: Cores,
    *,
    environment: Mapping[str, str] | None = None,
    piped: bool = False,
) -> Child:
    """Start `command` on `cores`. Its stderr (and stdout, unless `piped`) goes into a log in `folder`."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise BenchError("taskset (util-linux) is not installed: without pinning no figure can be repeated")
    log = folder / f"{name}-{random.randrange(10**6):06d}.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            taskset,
            "-c",
            ",".join(map(str, sorted(cores))),
            *command,
            stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if piped else sink,
            stderr=sink,
            env={**os.environ, **(environment or {})},
        )
    return Child(name, process, log)


def pin(pid: int, cores: Cores) -> None:
    """Move a process that runs already, with all its threads (a JVM has dozens)."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # the thread ended meanwhile


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def fine_cpu_seconds(pid: int) -> float:
    """As `cpu_seconds` for processes of few threads that stay: to the ns (schedstat), where ticks are too coarse."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


class CpuMeter:
    """
    CPU seconds of several processes over a span of time.

    `others` is what the rest of the machine used meanwhile, by /proc/stat: when it is not near 0, somebody else took
    part in the benchmark.
    """

    __slots__ = ("_pids", "_start")

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = {**pids, "runner": [os.getpid()]}
        self._start = self._now()

    def _now(self) -> dict[str, float]:
        seconds = {name: sum(map(cpu_seconds, pids)) for name, pids in self._pids.items()}
        return {**seconds, "others": busy_seconds() - sum(seconds.values())}

    def spent(self) -> dict[str, float]:
        """By name, since the meter was made."""
        return {name: max(0.0, seconds - self._start[name]) for name, seconds in self._now().items()}


def busy_seconds() -> float:
    """CPU seconds that processes (not interrupts) have taken on this machine since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, fields[:3])) / _TICKS  # user, nice, system


def peak_bytes(pid: int) -> int:
    """The most that was resident so far (VmHWM in proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """A free port below the range that the kernel takes for outgoing connections."""
    for _ in range(200):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BenchError("no free port between 15000 and 32000")


async def wait_healthy(child: Child, port: int, deadline_s: float = 30.0) -> None:
    """Poll `GET /healthz` until it is 200. Raises BenchError."""
    status = 0
    try:
        async with asyncio.timeout(deadline_s):
            while status != 200:
                if child.process.returncode is not None:
                    raise child.fault(f"ended with {child.process.returncode}")
                status = await http_status(port, "/healthz")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise child.fault(f"/healthz says {status} after {deadline_s:.0f} s") from None


async def http_status(port: int, path: str) -> int:
    """The status of a GET, 0 when nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            words = (await reader.readline()).split()
            return int(words[1]) if len(words) > 1 else 0
        finally:
            writer.close()
    except (OSError, ValueError):
        return 0
