"""
What a scenario runs on: a Valkey of its own, RocketMQ where it is asked for, and the roles as processes.

Valkey keeps an append-only file, synced each second, as a production store would. Each cluster has a namespace of
its own, so that several may follow each other on the one RocketMQ of a run.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import (
    LOAD_CORE,
    SERVER_CORE,
    Child,
    Cores,
    CpuMeter,
    free_port,
    pin,
    spawn,
    wait_healthy,
)
from bench.tools import Numbers, Wsload
from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.envelope import Trigger, business_template
from shared.ids import MessageIdMint, mint_request_id
from shared.tokens import mint_token

FRAME_BYTES = 320
_ROOT = Path(__file__).parent.parent
_TOKEN_LIFE_S = 3600


@dataclass(slots=True)
class Bench:
    """A run of the benchmarks: where files go, how long things take, and the RocketMQ that all share."""

    folder: Path
    quick: bool
    buses: tuple[str, ...]
    rocketmq: LocalRocketMQ | None = None

    @property
    def repetitions(self) -> int:
        return 1 if self.quick else 3

    @property
    def measured_s(self) -> float:
        return 2.0 if self.quick else 5.0

    def warm_s(self, bus: str) -> float:
        """How long a load runs before it counts; a JVM goes on compiling for seconds."""
        seconds = 4.0 if bus == "rocketmq" else 2.0
        return seconds / 2 if self.quick else seconds

    def load_s(self, bus: str) -> float:
        """How long a publisher has to run for the warm-up and every repetition, which a busy machine draws out."""
        return self.warm_s(bus) + self.repetitions * (1.2 * self.measured_s + 0.5)

    async def running_rocketmq(self) -> LocalRocketMQ:
        """Started at the first call (it takes seconds), stopped by `close`."""
        if self.rocketmq is None:
            rocketmq = LocalRocketMQ(self.folder / "rocketmq")
            await rocketmq.start()
            self.rocketmq = rocketmq
        return self.rocketmq

    async def close(self) -> None:
        if self.rocketmq is not None:
            await self.rocketmq.stop()
            self.rocketmq = None


@dataclass(frozen=True, slots=True)
class Role:
    """A gateway node or a dispatcher that runs and is healthy."""

    child: Child
    port: int

    @property
    def node_id(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(slots=True)
class Cluster:
    """Valkey and a bus, and the roles that were started on them."""

    bench: Bench
    bus: str
    auth: str
    namespace: str
    bus_url: str
    redis_url: str
    secret: str
    pids: dict[str, list[int]]
    stack: AsyncExitStack
    folder: Path
    roles: list[Role] = field(default_factory=list)

    async def gateway(self, cores: Cores = SERVER_CORE, **more: str) -> Role:
        port = free_port()
        variables = {
            "PUSH_NODE_HOST": "127.0.0.1",
            "PUSH_NODE_PORT": str(port),
            "PUSH_NODE_ADVERTISE": f"127.0.0.1:{port}",
            "PUSH_ADMIN_PORT": str(free_port()),
            "PUSH_HEARTBEAT_TIMEOUT": "600",  # load clients send no heartbeats
            "PUSH_DRAIN_SECONDS": "0.1",
            "PUSH_ADDRESS_CONNECTIONS": "0",  # all clients have one address
            "PUSH_ADDRESS_CONNECT_RATE": "0",
            **more,
        }
        return await self._role("gateway", "gateway_node", port, cores, variables)

    async def dispatcher(self, cores: Cores = SERVER_CORE, **more: str) -> Role:
        port = free_port()
        variables = {"PUSH_HTTP_HOST": "127.0.0.1", "PUSH_HTTP_PORT": str(port), **more}
        return await self._role("dispatcher", "dispatcher", port, cores, variables)

    async def _role(self, name: str, module: str, port: int, cores: Cores, variables: dict[str, str]) -> Role:
        environment = {
            "PYTHONPATH": str(_ROOT),
            "PUSH_REDIS_URL": self.redis_url,
            "PUSH_BUS_URL": self.bus_url,
            "PUSH_NAMESPACE": self.namespace,
            "PUSH_AUTH": self.auth,
            "PUSH_JWT_SECRET": self.secret,
            "PUSH_LEASE": "30",  # a starved node must not be taken for dead in the middle of a run
            "PUSH_LOG_LEVEL": "warning",
            **variables,
        }
        command = [sys.executable, "-m", module]
        child = await spawn(name, command, self.folder, cores, environment=environment)
        self.stack.push_async_callback(child.stop)
        await wait_healthy(child, port)
        role = Role(child, port)
        self.roles.append(role)
        self.pids.setdefault(name, []).append(child.pid)
        return role

    def meter(self, **others: Child) -> CpuMeter:
        """A CPU meter over every part of the cluster, and over `others`."""
        return CpuMeter(self.pids | {name: [child.pid] for name, child in others.items()})

    def client_options(self, *, tokens: int = 0, acks: bool = False) -> list[str]:
        """Options of wsload with which client k is `c<k>`; where auth is on, with so many tokens."""
        ack = "1" if acks else "0"
        options = ["-R", "-S", "4", *(["-a"] if acks else ["-m", '"msgType":1}'])]
        if self.auth == "off":
            return [*options, "-P", f"/websocket?clientId=c%d&ack={ack}"]
        path = self.folder / "tokens"
        path.write_text("".join(f"{mint_token(self.secret, f'c{k}', life_s=_TOKEN_LIFE_S)}\n" for k in range(tokens)))
        return [*options, "-T", str(path), "-H", "Authorization: Bearer %s", "-P", f"/websocket?ack={ack}"]

    def padding(self, msg: str, session_id: str = "127.0.0.1:20000_c500_20201204191140123") -> int:
        """How many bytes `msg` lacks for an envelope of 320 bytes."""
        bare = business_template(
            active_time_ms=1_700_000_000_000,
            sender="system",
            message_id=MessageIdMint().mint(),
            msg=msg.encode(),
            request_id=mint_request_id(),
            trigger=Trigger.HTTP,
        )
        return max(0, FRAME_BYTES - len(bare) - len(session_id) - len("c500"))


@asynccontextmanager
async def cluster(
    bench: Bench, *, bus: str = "streams", auth: str = "off", store_cores: Cores = LOAD_CORE
) -> AsyncIterator[Cluster]:
    """Start the store (and the bus) on `store_cores`; stop everything that was started on it at the end."""
    name = f"b{secrets.token_hex(4)}"
    folder = bench.folder / name
    folder.mkdir()
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(LocalValkey(folder / "valkey"))
        pin(valkey.pid, store_cores)
        pids = {"valkey": [valkey.pid]}
        bus_url = valkey.url
        if bus == "rocketmq":
            rocketmq = await bench.running_rocketmq()
            bus_url = rocketmq.url
            pids["rocketmq"] = rocketmq.pids
            for pid in rocketmq.pids:
                pin(pid, store_cores)
        yield Cluster(bench, bus, auth, name, bus_url, valkey.url, secrets.token_hex(32), pids, stack, folder)


async def measure(parts: Cluster, clients: Wsload, seconds: float, **others: Child) -> tuple[Numbers, dict[str, float]]:
    """Receive for `seconds`: the client's numbers, and the CPU seconds of each part in that time."""
    meter = parts.meter(wsload=clients.child, **others)
    numbers = await clients.ask(f"run {seconds}")
    return numbers, meter.spent()


def cpu_each(spent: dict[str, float], deliveries: float) -> dict[str, float]:
    """CPU us of each part for one delivery (CPU seconds for a thousand, in ms)."""
    return {f"{name} CPU us each": seconds / max(deliveries, 1) * 1e6 for name, seconds in spent.items()}
