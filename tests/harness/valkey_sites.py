"""
Several Valkey servers that belong together, and the fixtures over them (registered in tests/conftest.py).

    valkey_cluster   a Redis Cluster of three masters for the whole run; never stop a part of it
    sentinel_site    a master, its replica and three Sentinels of this test's own
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from pushfleet.local_valkey import Fsync, LocalValkey
from tests.harness.valkey import run_apart

SERVICE = "main"
SLOTS = 16384

_DEADLINE_S = 30.0
_POLL_S = 0.02


class Replicated(LocalValkey):
    """A server whose replica has its data at once, not five seconds later."""

    __slots__ = ()

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--repl-diskless-sync-delay", "0"]


class ClusterMember(Replicated):
    """A server of a Redis Cluster."""

    __slots__ = ("_bus_port", "_node_timeout_ms")

    def __init__(self, data_dir: Path, *, node_timeout_ms: int, fsync: Fsync = "always", keep: bool = True) -> None:
        super().__init__(data_dir, fsync=fsync, appendonly=keep)
        self._bus_port = 0
        self._node_timeout_ms = node_timeout_ms

    def arguments(self) -> list[str]:
        # Its own choice would be ten thousand above the port, which may be no port at all.
        self._bus_port = self._bus_port or free_port()
        return [
            *super().arguments(),
            *("--cluster-enabled", "yes"),
            *("--cluster-port", str(self._bus_port)),
            *("--cluster-node-timeout", str(self._node_timeout_ms)),
            *("--cluster-allow-replica-migration", "no"),
        ]

    @property
    def bus_port(self) -> int:
        return self._bus_port


class ValkeyCluster:
    """Three masters, and with `replicas` as many replicas, of the first masters. As LocalValkey otherwise."""

    def __init__(self, folder: Path, *, replicas: int = 0, node_timeout_ms: int = 5000, keep: bool = True) -> None:
        self.masters = [
            ClusterMember(folder / f"master{number}", node_timeout_ms=node_timeout_ms, keep=keep) for number in range(3)
        ]
        self.replicas = [
            ClusterMember(folder / f"replica{number}", node_timeout_ms=node_timeout_ms, keep=keep)
            for number in range(replicas)
        ]
        self._formed = False

    @property
    def members(self) -> list[ClusterMember]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    @property
    def url_of_one(self) -> str:
        """Names the first master alone."""
        return self.url.partition(",")[0]

    async def start(self) -> None:
        """Until every member says that the cluster serves all slots."""
        await asyncio.gather(*(member.start() for member in self.members))
        if not self._formed:
            await self._form()
            self._formed = True
        await asyncio.gather(*(until(partial(self._serves, member)) for member in self.members))

    async def restart(self) -> None:
        """Stop what runs, then start all on the same ports and data."""
        await self.stop()
        await asyncio.gather(*(member.restart() for member in self.members))
        await asyncio.gather(*(until(partial(self._serves, member)) for member in self.members))

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    def kill(self) -> None:
        """SIGKILL for all."""
        for member in self.members:
            member.kill()

    async def owner_of(self, key: str | bytes) -> ClusterMember:
        """The master of the key's slot."""
        slot = await ask(self.masters[0].port, "CLUSTER KEYSLOT", key)
        for first, last, owner, *_ in await ask(self.masters[0].port, "CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(member for member in self.members if member.port == owner[1])
        raise AssertionError(f"nobody has slot {slot}")

    async def move_all(self, owner: ClusterMember, taker: ClusterMember, *, half: bool = False) -> None:
        """All slots of a master, or the upper half of each range, go to another with what they hold."""
        name = await ask(taker.port, "CLUSTER MYID")
        for first, last, *_ in await self._ranges(owner):
            begin = (first + last + 1) // 2 if half else first
            await ask(owner.port, "CLUSTER MIGRATESLOTS", "SLOTSRANGE", begin, last, "NODE", name)
            await until(partial(self._has_moved, owner, begin))
        await asyncio.gather(*(until(partial(self._serves, member)) for member in self.members))

    async def _ranges(self, owner: ClusterMember) -> list[list[Any]]:
        return [part for part in await ask(owner.port, "CLUSTER SLOTS") if part[2][1] == owner.port]

    async def _has_moved(self, owner: ClusterMember, slot: int) -> bool:
        return not any(first <= slot <= last for first, last, *_ in await self._ranges(owner))

    async def _form(self) -> None:
        each = SLOTS // 3
        for number, member in enumerate(self.members):
            await ask(member.port, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            if member in self.masters:
                last = SLOTS - 1 if number == 2 else (number + 1) * each - 1
                await ask(member.port, "CLUSTER ADDSLOTSRANGE", number * each, last)
        for member in self.members[1:]:
            await ask(self.members[0].port, "CLUSTER MEET", "127.0.0.1", member.port, member.bus_port)
        for master, replica in zip(self.masters, self.replicas, strict=False):
            name = (await ask(master.port, "CLUSTER MYID")).decode()
            await until(partial(self._knows, replica, name))
            await ask(replica.port, "CLUSTER REPLICATE", name)
            await until(partial(is_linked, replica.port))

    async def _knows(self, member: ClusterMember, name: str) -> bool:
        return name in str(await ask(member.port, "CLUSTER NODES"))

    async def _serves(self, member: ClusterMember) -> bool:
        info = await ask(member.port, "CLUSTER INFO")
        known = f"cluster_known_nodes:{len(self.members)}\r\n"
        return b"cluster_state:ok" in info and known.encode() in info and f"cluster_slots_ok:{SLOTS}".encode() in info


class SentinelMember(LocalValkey):
    """A Sentinel that watches a master."""

    __slots__ = ("_folder", "_master_port")

    def __init__(self, folder: Path, master_port: int) -> None:
        super().__init__(folder)
        self._folder = folder
        self._master_port = master_port

    def arguments(self) -> list[str]:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self._folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master_port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        config = self._folder / "sentinel.conf"
        config.write_text("\n".join(lines), "utf-8")
        return [str(config), "--sentinel"]


class Replica(Replicated):
    """A replica of a master."""

    __slots__ = ("_master_port",)

    def __init__(self, folder: Path, master_port: int) -> None:
        super().__init__(folder, fsync="always")
        self._master_port = master_port

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--replicaof", f"127.0.0.1 {self._master_port}"]


class SentinelSite:
    """Started with `async with`: a master with its replica, and three Sentinels that know all of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.master = Replicated(folder / "master", fsync="always")
        self.replica: Replicated = self.master
        self.sentinels: list[SentinelMember] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    async def __aenter__(self) -> SentinelSite:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop() for server in (*self.sentinels, self.replica, self.master)))

    async def until_promoted(self) -> None:
        """Until the replica is the master, and a majority of the Sentinels says so."""
        for sentinel in self.sentinels:
            await until(partial(self._names_replica, sentinel))

    async def _start(self) -> None:
        await self.master.start()
        self.replica = Replica(self._folder / "replica", self.master.port)
        await self.replica.start()
        await until(lambda: is_linked(self.replica.port))
        self.sentinels = [SentinelMember(self._folder / f"sentinel{n}", self.master.port) for n in range(3)]
        await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
        await asyncio.gather(*(until(partial(self._is_complete, sentinel)) for sentinel in self.sentinels))

    async def _is_complete(self, sentinel: SentinelMember) -> bool:
        """Whether it knows the other two and a replica that is well."""
        state = pairs(await ask(sentinel.port, "SENTINEL MASTER", SERVICE))
        replicas = await ask(sentinel.port, "SENTINEL REPLICAS", SERVICE)
        return state[b"num-other-sentinels"] == b"2" and [b"ok"] == [
            pairs(replica)[b"master-link-status"] for replica in replicas
        ]

    async def _names_replica(self, sentinel: SentinelMember) -> bool:
        place = await ask(sentinel.port, "SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return bool(place[1] == str(self.replica.port).encode())


def pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def is_linked(port: int) -> bool:
    """Whether a replica has what its master has."""
    return b"master_link_status:up" in await ask(port, "INFO", "replication")


async def ask(port: int, command: str, *arguments: object) -> Any:
    """The raw reply of a server; it is known only to this call."""
    client = Redis(port=port, protocol=2)
    client.response_callbacks.clear()
    try:
        return await client.execute_command(*command.split(), *arguments)  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()


async def until(holds: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Until it holds; an error of the server counts as no."""
    deadline = time.monotonic() + _DEADLINE_S
    while not await holds():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(_POLL_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """The cluster of the whole run; its data is not kept."""
    cluster = ValkeyCluster(tmp_path_factory.mktemp("valkey-cluster"), keep=False)
    try:
        run_apart(cluster.start())
        yield cluster
    finally:
        run_apart(cluster.stop())


@pytest.fixture
async def sentinel_site(tmp_path: Path) -> AsyncIterator[SentinelSite]:
    """A site whose master this test may kill."""
    async with SentinelSite(tmp_path) as site:
        yield site
