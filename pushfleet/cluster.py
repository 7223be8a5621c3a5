"""
A whole cluster on this machine, as `pushfleet dev` runs it: Valkey, the bus, the nodes and a dispatcher.

The roles are the processes of production (`python -m gateway_node`, `python -m dispatcher`), told their ports and
stores by the environment; further PUSH_ variables pass through to them. What stands below starts first and stops
last: Valkey, the bus, then the roles; nodes drain, the dispatcher finishes, the bus goes, Valkey goes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from pushfleet.child import Child, DeathCount
from pushfleet.lifeline import end_with_parent
from pushfleet.local_rocketmq import LocalRocketMQ, LocalRocketMQError
from pushfleet.local_valkey import LocalValkey, LocalValkeyError
from pushfleet.ports import PortPicker, bindable
from pushfleet.rocketmq import NAME_SERVER_PORT
from shared.backoff import Backoff

HOST = "127.0.0.1"
STREAMS = "streams"
EMBEDDED_ROCKETMQ = "rocketmq"

_NOT_PASSED = ("PUSH_NODE_URL", "PUSH_TLS_CERT", "PUSH_TLS_KEY", "PUSH_PROXY_PROTOCOL")  # loopback, in plain
_ADMIN_PORT = 9100
_DRAIN_S = "1"  # a developer who presses Ctrl-C waits for it
_NODE_GRACE_S = 20.0
_DISPATCHER_GRACE_S = 15.0
_HEALTHY_WITHIN_S = 60.0
_POLL_S = 0.1
_TELL_EACH_S = 5.0
_WATCH_S = 0.25


class ClusterFailed(Exception):
    """It did not come up, or a part of it cannot be kept alive; the text says which and where to look."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """`bus` is STREAMS, EMBEDDED_ROCKETMQ, or the URL of a bus that runs already."""

    data: Path
    bus: str = STREAMS
    nodes: int = 2
    http_port: int = 8080
    node_port: int = 9000


@dataclass(slots=True)
class _Role:
    """One child and where it listens."""

    child: Child
    ports: dict[str, int] = field(default_factory=dict)
    health_port: str = ""


class Cluster:
    """`await start()`, then `failed` tells when it is over by itself; `await stop()`, or `kill()` at once."""

    def __init__(self, options: ClusterOptions, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._picker = PortPicker(say)
        self._valkey = LocalValkey(options.data / "valkey", end_with_parent=True)
        self._rocketmq: LocalRocketMQ | None = None
        self._fetch: asyncio.subprocess.Process | None = None
        self._bus_url = ""
        self._nodes: list[_Role] = []
        self._dispatcher: _Role | None = None
        self._watches: list[asyncio.Task[None]] = []
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def logs(self) -> Path:
        return self._options.data / "logs"

    @property
    def node_ids(self) -> list[str]:
        return [f"{HOST}:{role.ports['PUSH_NODE_PORT']}" for role in self._nodes]

    @property
    def dispatcher_url(self) -> str:
        port = self._dispatcher.ports["PUSH_HTTP_PORT"] if self._dispatcher else 0
        return f"http://{HOST}:{port}"

    @property
    def bus(self) -> str:
        """For a person; what follows `?` may hold a secret."""
        return "Valkey streams" if self._options.bus == STREAMS else self._bus_url.partition("?")[0]

    @property
    def redis_url(self) -> str:
        return self._valkey.url

    @property
    def pids(self) -> dict[str, int]:
        """Of the parts that run now, by name; the broker's parts are numbered."""
        pids = {role.child.name: role.child.pid for role in self._roles()}
        pids["valkey"] = self._valkey.pid if self._valkey.running else 0
        pids |= {f"rocketmq-{n}": pid for n, pid in enumerate(self._rocketmq.pids if self._rocketmq else [])}
        return {name: pid for name, pid in pids.items() if pid}

    # -- start -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when every part is healthy. Raises ClusterFailed; whatever was started is stopped by `stop`."""
        try:
            await self._valkey.start()
            self._watch("Valkey", self._valkey_runs, self._valkey.restart, self._valkey.log_tail)
            self._bus_url = await self._start_bus()
        except (LocalValkeyError, LocalRocketMQError) as error:
            raise ClusterFailed(str(error)) from None
        self._start_roles()
        self._say(f"starting {len(self._nodes)} nodes and a dispatcher")
        await self._until_healthy()

    async def _start_bus(self) -> str:
        if self._options.bus == STREAMS:
            return self._valkey.url
        if self._options.bus != EMBEDDED_ROCKETMQ:
            return self._options.bus
        if await _answers(NAME_SERVER_PORT):
            self._say(f"using the RocketMQ name server that answers at {HOST}:{NAME_SERVER_PORT}")
            return f"rocketmq://{HOST}:{NAME_SERVER_PORT}"
        self._say(f"no RocketMQ answers at {HOST}:{NAME_SERVER_PORT}, so one is started here")
        await self._fetch_rocketmq()
        port = self._picker.pick(NAME_SERVER_PORT, "the name server")
        broker = self._rocketmq = LocalRocketMQ(self._options.data / "rocketmq", name_server_port=port, say=self._say)
        self._say("starting RocketMQ")
        await broker.start()
        whole = len(broker.pids)
        self._watch("RocketMQ", lambda: len(broker.pids) == whole, _restarted(broker), lambda: f"see {broker.data_dir}")
        return broker.url

    async def _fetch_rocketmq(self) -> None:
        """In a process of its own, which can be ended half way through, as a thread could not."""
        command = [sys.executable, "-m", "pushfleet", "rocketmq", "--fetch-only"]
        self._fetch = await asyncio.create_subprocess_exec(
            *command, preexec_fn=end_with_parent(), start_new_session=True
        )
        if await self._fetch.wait():
            raise ClusterFailed("RocketMQ could not be fetched")
        self._fetch = None

    def _start_roles(self) -> None:
        options = self._options
        for number in range(options.nodes):
            wanted = {"PUSH_NODE_PORT": options.node_port, "PUSH_ADMIN_PORT": _ADMIN_PORT}
            wanted = {name: port + number if port else 0 for name, port in wanted.items()}
            self._nodes.append(self._role(f"node-{number + 1}", "gateway_node", wanted, "PUSH_NODE_PORT"))
        wanted = {"PUSH_HTTP_PORT": options.http_port}
        self._dispatcher = self._role("dispatcher", "dispatcher", wanted, "PUSH_HTTP_PORT")
        for role in self._roles():
            role.child.start()

    def _role(self, name: str, package: str, wanted: Mapping[str, int], health_port: str) -> _Role:
        ports: dict[str, int] = {}

        def take_ports() -> bool:
            taken = {variable: port for variable, port in wanted.items() if not bindable(ports[variable])}
            ports.update({variable: self._picker.pick(port, name) for variable, port in taken.items()})
            return bool(taken)

        def launch() -> tuple[Sequence[str], Mapping[str, str]]:
            return [sys.executable, "-m", package], self._environment(ports)

        ports.update({variable: self._picker.pick(port, name) for variable, port in wanted.items()})
        log = self.logs / f"{name}.log"
        child = Child(name, launch, log, say=self._say, give_up=self._fail, refit=take_ports)
        return _Role(child, ports, health_port)

    def _environment(self, ports: Mapping[str, int]) -> dict[str, str]:
        told = {
            "PUSH_REDIS_URL": self._valkey.url,
            "PUSH_BUS_URL": self._bus_url,
            "PUSH_AUTH": "off",
            "PUSH_NODE_HOST": HOST,
            "PUSH_ADMIN_HOST": HOST,
            "PUSH_HTTP_HOST": HOST,
            **{variable: str(port) for variable, port in ports.items()},
        }
        if "PUSH_NODE_PORT" in ports:
            told["PUSH_NODE_ADVERTISE"] = f"{HOST}:{ports['PUSH_NODE_PORT']}"
        passed = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
        return {"PUSH_DRAIN_SECONDS": _DRAIN_S, **passed, **told}

    async def _until_healthy(self) -> None:
        loop = asyncio.get_running_loop()
        deadline, tell_at = loop.time() + _HEALTHY_WITHIN_S, loop.time() + _TELL_EACH_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while reasons := await self._unhealthy(session):
                now = loop.time()
                if now > deadline:
                    raise ClusterFailed(f"not healthy after {_HEALTHY_WITHIN_S:g} s: {reasons}; the logs: {self.logs}")
                if now > tell_at:
                    self._say(f"waiting for {reasons}")
                    tell_at = now + _TELL_EACH_S
                await asyncio.sleep(_POLL_S)

    async def _unhealthy(self, session: aiohttp.ClientSession) -> str:
        """`node-1 (why), dispatcher (why)`; empty when all is well."""
        reasons = []
        for role in self._roles():
            # The ready line is our own child's; what answers on its port might be somebody else.
            why = await _health(session, role) if role.child.ready.is_set() else "starting"
            if why:
                reasons.append(f"{role.child.name} ({why})")
        return ", ".join(reasons)

    # -- while it runs ---------------------------------------------------------------------------------------

    def _roles(self) -> list[_Role]:
        return [*self._nodes, *([self._dispatcher] if self._dispatcher else [])]

    def _fail(self, text: str) -> None:
        if not self.failed.done():
            self.failed.set_result(text)

    def _valkey_runs(self) -> bool:
        return self._valkey.running

    def _watch(
        self, what: str, runs: Callable[[], bool], restart: Callable[[], Awaitable[None]], tail: Callable[[], str]
    ) -> None:
        self._watches.append(asyncio.create_task(self._keep_up(what, runs, restart, tail), name=f"watch {what}"))

    async def _keep_up(
        self, what: str, runs: Callable[[], bool], restart: Callable[[], Awaitable[None]], tail: Callable[[], str]
    ) -> None:
        deaths, backoff = DeathCount(), Backoff(0.2, 5.0)
        while True:
            await asyncio.sleep(_WATCH_S)
            if runs():
                continue
            self._say(f"{what} has ended by itself; its last lines:\n{tail()}")
            if deaths.too_many():
                self._fail(f"{what} does not stay up")
                return
            await asyncio.sleep(backoff.next_s())
            try:
                await restart()
                self._say(f"{what} runs again")
            except (LocalValkeyError, LocalRocketMQError) as error:
                self._say(str(error))

    # -- stop ------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """In order, each part with time to finish."""
        if self._fetch is not None and self._fetch.returncode is None:
            os.killpg(self._fetch.pid, signal.SIGKILL)  # Maven too
            await self._fetch.wait()
        await asyncio.gather(*(role.child.stop(_NODE_GRACE_S) for role in self._nodes))
        if self._dispatcher is not None:
            await self._dispatcher.child.stop(_DISPATCHER_GRACE_S)
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._rocketmq is not None:
            await self._rocketmq.stop()
        await self._valkey.stop()
        self._picker.close()

    def kill(self) -> None:
        """SIGKILL to everything, now."""
        for role in self._roles():
            role.child.kill()
        if self._rocketmq is not None:
            self._rocketmq.kill()
            self._rocketmq.kill_name_server()
        self._valkey.kill()


def _restarted(broker: LocalRocketMQ) -> Callable[[], Awaitable[None]]:
    async def restart() -> None:
        broker.kill()
        broker.kill_name_server()
        await broker.restart()

    return restart


async def _answers(port: int) -> bool:
    try:
        async with asyncio.timeout(2.0):
            _, writer = await asyncio.open_connection(HOST, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _health(session: aiohttp.ClientSession, role: _Role) -> str:
    """Why it is not healthy; empty when it is."""
    try:
        async with session.get(f"http://{HOST}:{role.ports[role.health_port]}/healthz") as response:
            return "" if response.status == 200 else _reason(await response.read())
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return str(error) or "no answer"


def _reason(body: bytes) -> str:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "not healthy"
    return str(fields.get("reason", fields)) if isinstance(fields, dict) else str(fields)
