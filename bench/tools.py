"""The C tools under `load/`, built by make, as Python objects that ask them over pipes and sockets."""

from __future__ import annotations

import asyncio
import json
import mmap
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CORE, SERVER_CORE, BenchError, Child, Cores, free_port, spawn

_BENCH = Path(__file__).parent
_BUILD = _BENCH / "build"
_PATIENCE_S = 60.0

Numbers = dict[str, float]


def build_tools() -> None:
    """Run make. Raises BenchError with the compiler's words."""
    done = subprocess.run(["make", "-s", "-C", str(_BENCH)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"make -C bench failed:\n{done.stdout}{done.stderr}")


@dataclass(slots=True)
class Wsload:
    """A WebSocket load client that obeys commands (load/wsload.c names them)."""

    child: Child

    async def ask(self, command: str, deadline_s: float = _PATIENCE_S) -> Numbers:
        """Send a command and read its answer. Raises BenchError."""
        stdin = self.child.process.stdin
        if stdin is None:
            raise self.child.fault("has no pipe")
        stdin.write(command.encode() + b"\n")
        return await self.answer(deadline_s)

    async def answer(self, deadline_s: float = _PATIENCE_S) -> Numbers:
        return _numbers(self.child, await _line(self.child, deadline_s))

    async def connect(self, clients: int) -> Numbers:
        """Connect so many more; raises BenchError if not all of them came through."""
        numbers = await self.ask(f"connect {clients}", 90)
        if numbers["connected"] < clients:
            raise self.child.fault(f"only {numbers['connected']:.0f} of {clients} clients connected")
        return numbers


@asynccontextmanager
async def wsload(folder: Path, port: int, *options: str, cores: Cores = LOAD_CORE) -> AsyncIterator[Wsload]:
    """A load client against 127.0.0.1:port, without connections yet."""
    command = [str(_BUILD / "wsload"), "-p", str(port), "-D", "1800", *options]
    child = await spawn("wsload", command, folder, cores, piped=True)
    try:
        yield Wsload(child)
    finally:
        await child.stop()


def httppub(folder: Path, port: int, *options: str, cores: Cores = LOAD_CORE) -> AbstractAsyncContextManager[Child]:
    """A publisher that runs beside the block; `finish` reads its numbers."""
    return _beside("httppub", folder, port, options, cores)


def abuse(folder: Path, port: int, *options: str, cores: Cores = LOAD_CORE) -> AbstractAsyncContextManager[Child]:
    """Hostile connections of every kind (load/abuse.c) beside the block; `finish` reads its numbers."""
    return _beside("abuse", folder, port, options, cores)


@asynccontextmanager
async def _beside(name: str, folder: Path, port: int, options: Sequence[str], cores: Cores) -> AsyncIterator[Child]:
    child = await spawn(name, [str(_BUILD / name), "-p", str(port), *options], folder, cores, piped=True)
    try:
        yield child
    finally:
        await child.stop()


async def finish(publisher: Child, deadline_s: float = _PATIENCE_S, *, refusals: bool = False) -> Numbers:
    """Wait for a publisher's end. Raises BenchError when it failed or, without `refusals`, an answer was not 200."""
    numbers = _numbers(publisher, await _line(publisher, deadline_s))
    if refusals:
        return numbers
    if numbers["non200"] or numbers["unanswered"]:
        raise publisher.fault(f"{numbers['non200']:.0f} answers were not 200, {numbers['unanswered']:.0f} never came")
    return numbers


@dataclass(slots=True)
class CServer:
    """The C server: the physical limit. `port` for clients; commands are in load/csrv.c."""

    child: Child
    port: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, command: str) -> Numbers:
        self.writer.write(command.encode() + b"\n")
        line = await asyncio.wait_for(self.reader.readline(), _PATIENCE_S)
        return _numbers(self.child, line)


@asynccontextmanager
async def cserver(folder: Path) -> AsyncIterator[CServer]:
    """A C server on the server's core."""
    port, control = free_port(), free_port()
    child = await spawn("csrv", [str(_BUILD / "csrv"), str(port), str(control)], folder, SERVER_CORE)
    try:
        reader, writer = await _connect(child, control)
        try:
            yield CServer(child, port, reader, writer)
        finally:
            writer.close()
    finally:
        await child.stop()


class Counter:
    """The counter file of `wsload -s`, read: messages received since it started."""

    __slots__ = ("_map", "path")

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    @property
    def count(self) -> int:
        return int.from_bytes(self._map[:8], "little")


async def _connect(child: Child, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for _ in range(100):
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
    raise child.fault("does not listen")


async def _line(child: Child, deadline_s: float) -> bytes:
    if child.process.stdout is None:
        raise child.fault("has no pipe")
    try:
        return await asyncio.wait_for(child.process.stdout.readline(), deadline_s)
    except TimeoutError:
        raise child.fault(f"no answer in {deadline_s:.0f} s") from None


def _numbers(child: Child, line: bytes) -> Numbers:
    try:
        answer = json.loads(line)
    except ValueError:
        raise child.fault(f"answered {line!r}") from None
    if "error" in answer:
        raise child.fault(str(answer["error"]))
    return {name: float(value) for name, value in answer.items()}
