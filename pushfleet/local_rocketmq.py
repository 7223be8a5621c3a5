"""
A real RocketMQ on this machine without Docker: for `pushfleet dev --bus rocketmq`, `make rocketmq` and the tests.

The jars come from `pushfleet.jars`. One name server and one or more broker masters run as child processes with their
own store folder, small heaps, and ports below the range that the kernel takes for outgoing connections, so that a
broker that was killed finds its ports again.

A broker counts as up when it answers over its own protocol and the name server lists it. The children are
told by the kernel (where `setpriv` is to be had) to end when their parent does.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from pushfleet.jars import VERSION, LocalRocketMQError, fetch_jars
from shared.bus.rocketmq.wire import Frame, WireError, decode_frame, decode_json, encode_frame, frame_size

__all__ = ["VERSION", "Credentials", "LocalRocketMQ", "LocalRocketMQError", "ServerTls"]

_NAME_SERVER_CLASS = "org.apache.rocketmq.namesrv.NamesrvStartup"
_BROKER_CLASS = "org.apache.rocketmq.broker.BrokerStartup"
_AUTH_PROVIDERS = "org.apache.rocketmq.auth.authentication.provider"
_TOOLS_CLASS = "org.apache.rocketmq.tools.command.MQAdminStartup"
_CLUSTER_INFO = 106
_BROKER_STATE = 28

# RocketMQ reaches into the JDK; from Java 16 on that has to be opened for it.
_JAVA_FLAGS = [
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The access and secret key that a broker with ACL asks for. The user they name may do everything."""

    access_key: str
    secret_key: str


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files of the servers' certificate and its key (PKCS #8). With them plain connections are refused."""

    certificate: Path
    key: Path


@dataclass(slots=True)
class _Broker:
    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None


# -- processes --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LocalRocketMQ:
    """
    A name server and `brokers` broker masters (`broker-a`, `broker-b`, ...) under `data_dir`.

    A port of 0 means any free one. A broker takes its port, the one two below and the one above; the next
    broker's port is 10 further. `broker_options` go into broker.conf as they are, `variables` into the environment of
    all processes.
    """

    data_dir: Path
    name_server_port: int = 0
    broker_port: int = 0
    brokers: int = 1
    credentials: Credentials | None = None
    tls: ServerTls | None = None
    broker_options: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    broker_heap: str = "512m"
    say: Callable[[str], None] = lambda line: None
    _jars: Path | None = None
    _name_server: subprocess.Popen[bytes] | None = None
    _brokers: list[_Broker] = field(default_factory=list)

    @property
    def name_server(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.name_server_port}"

    def broker_address(self, broker: int = 0) -> str:
        """`host:port` of one broker (by index)."""
        return f"127.0.0.1:{self._brokers[broker].port}"

    @property
    def url(self) -> str:
        """For the bus. Holds the secret key if there is one."""
        options: dict[str, str] = {}
        if self.credentials is not None:
            options |= {"accessKey": self.credentials.access_key, "secretKey": self.credentials.secret_key}
        if self.tls is not None:
            options |= {"tls": "1", "tlsCa": str(self.tls.certificate)}
        return f"rocketmq://{self.name_server}" + ("?" + urlencode(options) if options else "")

    @property
    def pids(self) -> list[int]:
        """Of the processes that run, the name server's first."""
        processes = [self._name_server, *(broker.process for broker in self._brokers)]
        return [process.pid for process in processes if process is not None and process.poll() is None]

    async def start(self, deadline_s: float = 90.0) -> None:
        """Fetch what is missing, start everything and wait until it is up. Raises LocalRocketMQError."""
        self._jars = await asyncio.to_thread(fetch_jars, self.say)
        if shutil.which("java") is None:
            raise LocalRocketMQError("Java (17 or later) is not installed")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.name_server_port = self.name_server_port or _free_port([0])
        if not self._brokers:
            first = self.broker_port or _free_port([10 * n + k for n in range(self.brokers) for k in (-2, 0, 1)])
            self.broker_port = first
            self._brokers = [_Broker(f"broker-{chr(97 + n)}", first + 10 * n) for n in range(self.brokers)]
        try:
            self._start_name_server()
            for broker in self._brokers:
                self._start_broker(broker)
            await self.wait_until_up(deadline_s)
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, brokers first; SIGKILL to what has not ended after `grace_s`."""
        for broker in self._brokers:
            if broker.process is not None:
                await _end(broker.process, grace_s)
                broker.process = None
        if self._name_server is not None:
            await _end(self._name_server, grace_s)
            self._name_server = None

    def kill(self, broker: int | None = None) -> None:
        """SIGKILL to one broker (by index), or to all of them. The name server goes on."""
        for number, part in enumerate(self._brokers):
            if part.process is not None and broker in (None, number):
                part.process.kill()
                part.process.wait()
                part.process = None

    def kill_name_server(self) -> None:
        """SIGKILL."""
        if self._name_server is not None:
            self._name_server.kill()
            self._name_server.wait()
            self._name_server = None

    def pause(self, broker: int = 0) -> None:
        """SIGSTOP: the broker keeps its connections and answers nothing."""
        process = self._brokers[broker].process
        if process is not None:
            process.send_signal(signal.SIGSTOP)

    def resume(self, broker: int = 0) -> None:
        """SIGCONT."""
        process = self._brokers[broker].process
        if process is not None:
            process.send_signal(signal.SIGCONT)

    async def restart(self, deadline_s: float = 90.0) -> None:
        """Start whatever does not run, on the same ports and the same store, and wait until all is up."""
        if self._name_server is None:
            self._start_name_server()
        for broker in self._brokers:
            if broker.process is None:
                self._start_broker(broker)
        await self.wait_until_up(deadline_s)

    async def wait_until_up(self, deadline_s: float) -> None:
        """Return when the name server lists every broker. Raises LocalRocketMQError."""
        wanted = {broker.name for broker in self._brokers}
        seen: set[str] = set()
        try:
            async with asyncio.timeout(deadline_s):
                while not wanted <= seen:
                    self._check_alive()
                    seen = await self._answering()
                    if not wanted <= seen:
                        await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise LocalRocketMQError(f"only {sorted(seen)} up after {deadline_s} s; see {self.data_dir}") from error

    def admin_command(self, *arguments: str) -> list[str]:
        """The command line of RocketMQ's own `mqadmin` with these arguments, for operators and for tests."""
        return ["java", *self._flags("256m", self.data_dir), _TOOLS_CLASS, *arguments]

    def environment(self) -> dict[str, str]:
        """What the processes are given besides."""
        own = {"ROCKETMQ_HOME": str(self.data_dir), "NAMESRV_ADDR": self.name_server}
        return {**os.environ, **self.variables, **own}

    # -- inside

    def _check_alive(self) -> None:
        for name, process in [
            ("name server", self._name_server),
            *((part.name, part.process) for part in self._brokers),
        ]:
            if process is not None and process.poll() is not None:
                log = self.data_dir / f"{name.replace(' ', '-')}.log"
                tail = log.read_text(errors="replace")[-1500:] if log.exists() else ""
                raise LocalRocketMQError(f"the {name} ended with {process.returncode}; its output ends: {tail}")

    async def _answering(self) -> set[str]:
        """The names of the brokers that answer themselves and that the name server lists."""
        listed = set()
        try:
            answer = await self._ask(self.name_server_port, _CLUSTER_INFO)
            listed = set(decode_json(answer.body)["brokerAddrTable"])
            for broker in self._brokers:
                if broker.name in listed:
                    # Any answer will do; with ACL it is a refusal.
                    await self._ask(broker.port, _BROKER_STATE)
        except (OSError, TimeoutError, EOFError, WireError, KeyError):
            return set()
        return listed

    async def _ask(self, port: int, code: int) -> Frame:
        context = None
        if self.tls is not None:
            context = ssl.create_default_context(cafile=str(self.tls.certificate))
            context.check_hostname = False
        async with asyncio.timeout(3.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                writer.write(encode_frame(code, 1, {}))
                prefix = await reader.readexactly(4)
                return decode_frame(prefix + await reader.readexactly(frame_size(prefix, 0) - 4))
            finally:
                writer.close()

    def _flags(self, heap: str, home: Path) -> list[str]:
        flags = [f"-Xms{heap}", f"-Xmx{heap}", *_JAVA_FLAGS, f"-Duser.home={home}", "-cp", f"{self._jars}/*"]
        if self.tls is not None:
            flags += ["-Dtls.server.mode=enforcing", "-Dtls.test.mode.enable=false", "-Dtls.enable=true"]
            flags += [f"-Dtls.config.file={self.data_dir / 'tls.properties'}"]
        return flags

    def _start_name_server(self) -> None:
        if self.tls is not None:
            lines = {"tls.server.keyPath": self.tls.key, "tls.server.certPath": self.tls.certificate}
            lines |= {"tls.client.trustCertPath": self.tls.certificate}
            _write_properties(self.data_dir / "tls.properties", {**lines, "tls.client.authServer": "false"})
        config = self.data_dir / "name-server.conf"
        _write_properties(config, {"listenPort": self.name_server_port, "bindAddress": "127.0.0.1"})
        flags = self._flags("256m", self.data_dir / "name-server")
        self._name_server = self._spawn("name-server", [*flags, _NAME_SERVER_CLASS, "-c", str(config)])

    def _start_broker(self, broker: _Broker) -> None:
        home = self.data_dir / broker.name
        config = self.data_dir / f"{broker.name}.conf"
        _write_properties(config, self._broker_config(broker, home))
        flags = [*self._flags(self.broker_heap, home), "-XX:MaxDirectMemorySize=512m"]
        command = [*flags, _BROKER_CLASS, "-n", self.name_server, "-c", str(config)]
        broker.process = self._spawn(broker.name, command)

    def _broker_config(self, broker: _Broker, home: Path) -> dict[str, object]:
        config: dict[str, object] = {
            "brokerClusterName": "local",
            "brokerName": broker.name,
            "brokerId": 0,
            "brokerIP1": "127.0.0.1",
            "bindAddress": "127.0.0.1",
            "listenPort": broker.port,
            "storePathRootDir": home / "store",
            "autoCreateTopicEnable": "false",
            "mappedFileSizeCommitLog": 64 * 1024 * 1024,
            "diskMaxUsedSpaceRatio": 95,
            "registerNameServerPeriod": 10_000,  # the least it takes: how long a new name server stays ignorant
            "flushDiskType": "ASYNC_FLUSH",
        }
        if self.credentials is not None:
            access_key, secret_key = self.credentials.access_key, self.credentials.secret_key
            config |= {
                "authenticationEnabled": "true",
                "authenticationProvider": f"{_AUTH_PROVIDERS}.DefaultAuthenticationProvider",
                "authenticationMetadataProvider": f"{_AUTH_PROVIDERS}.LocalAuthenticationMetadataProvider",
                "initAuthenticationUser": f'{{"username":"{access_key}","password":"{secret_key}"}}',
                "innerClientAuthenticationCredentials": f'{{"accessKey":"{access_key}","secretKey":"{secret_key}"}}',
                "authConfigPath": home / "auth",
            }
        return config | dict(self.broker_options)

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        command = ["java", *arguments]
        setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
        # The kernel means the thread that started a child when it speaks of its parent.
        if setpriv is not None and threading.current_thread() is threading.main_thread():
            command = [setpriv, "--pdeathsig", "KILL", *command]
        (self.data_dir / name).mkdir(exist_ok=True)
        with open(self.data_dir / f"{name}.log", "ab") as log:
            # A session of its own: Ctrl-C in a terminal must reach the parent alone, which then stops these in order.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data_dir,
                env=self.environment(),
                start_new_session=True,
            )


async def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    process.terminate()
    try:
        await asyncio.to_thread(process.wait, grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)


def _write_properties(path: Path, lines: Mapping[str, object]) -> None:
    path.touch(mode=0o600)  # a broker's has the credentials
    path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))


def _free_port(offsets: list[int]) -> int:
    """A port such that it plus each offset is free now."""
    for _ in range(200):
        base = random.randrange(15_000, 32_000)
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise LocalRocketMQError("no free ports between 15000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
