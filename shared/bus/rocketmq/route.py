"""
Where topics are: which broker masters hold which queues, asked from the name servers and kept for a while.

A name server knows the brokers that registered with it, and of those their topics. So its "no such topic" says
something only if brokers are registered: a name server that was just started, and one whose only broker is down,
say it of every topic. `lookup` tells the two apart (TopicMissing, BusUnavailable).

A cached route older than `FRESH_S` is still handed out once while a new one is fetched behind it, so a dropped
topic looks alive for little longer than that to somebody who only counts queues; a publish or a pull hears from
the broker itself at once. That a topic is missing is never cached.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from shared.bus.rocketmq import codes
from shared.bus.rocketmq.connection import Connection, ConnectionSettings
from shared.bus.rocketmq.health import Health
from shared.bus.rocketmq.wire import Frame, WireError, decode_json
from shared.errors import BusUnavailable, TopicMissing

FRESH_S = 10.0
_MOST_CACHED = 10_000
_READ, _WRITE = 4, 2  # PermName.PERM_READ, PERM_WRITE
_MASTER = "0"
_MOST_QUEUES = 65_536
"""Of a topic: more is no topic of ours, and would take the memory."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of a topic: on which broker (by name), and its number there."""

    broker: str
    queue_id: int


@dataclass(frozen=True, slots=True)
class Route:
    """`masters` maps a broker's name to its address, for those with a master that is up."""

    masters: dict[str, str]
    writable: tuple[Queue, ...]
    readable: tuple[Queue, ...]
    fetched_at: float = field(default_factory=time.monotonic, compare=False)


class Routes:
    """One for each bus. `name_servers` are `host:port`; the first that answers is kept until it fails."""

    def __init__(self, name_servers: list[str], settings: ConnectionSettings, health: Health) -> None:
        self._servers = [Connection(address, settings) for address in name_servers]
        self._health = health
        self._cache: OrderedDict[str, Route] = OrderedDict()
        self._refreshes: dict[str, asyncio.Task[Route]] = {}

    async def get(self, topic: str) -> Route:
        """The cached route, or a new one. Raises TopicMissing, BusUnavailable."""
        route = self._cache.get(topic)
        if route is None:
            return await self.refresh(topic)
        if time.monotonic() - route.fetched_at > FRESH_S:
            self._refresh_task(topic)
        return route

    async def refresh(self, topic: str) -> Route:
        """A new route; callers at one time share one question. Raises as `get`."""
        return await asyncio.shield(self._refresh_task(topic))

    async def refresh_if_possible(self, topic: str) -> None:
        """Like `refresh`, for somebody who goes on with the old route if no name server answers."""
        with contextlib.suppress(BusUnavailable):
            await self.refresh(topic)

    def forget(self, topic: str) -> None:
        self._cache.pop(topic, None)

    async def lookup_everywhere(self, topic: str) -> list[Route | None]:
        """What each name server that answers says of a topic; None is "no such topic". Raises BusUnavailable."""
        answers = await self.ask_all(codes.ROUTE, {"topic": topic, "acceptStandardJsonOnly": "true"})
        return [None if frame.code == codes.TOPIC_NOT_EXIST else _parse_route(frame) for frame in answers]

    async def cluster(self) -> dict[str, str]:
        """The name and address of every broker master that is registered. Raises BusUnavailable if there is none."""
        for server in list(self._servers):
            try:
                masters = _parse_cluster(await server.call(codes.CLUSTER, {}))
            except BusUnavailable:
                continue
            if masters:
                self._prefer(server)
                return masters
        self._health.note_name_servers(False)
        raise BusUnavailable("no name server knows a broker")

    async def ask_all(self, code: int, fields: dict[str, str]) -> list[Frame]:
        """The responses of those that answer. Raises BusUnavailable if none does."""
        calls = (server.call(code, fields) for server in self._servers)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, BusUnavailable):
                raise answer
        frames = [answer for answer in answers if isinstance(answer, Frame)]
        if not frames:
            self._health.note_name_servers(False)
            raise BusUnavailable("no name server answers")
        return frames

    async def close(self) -> None:
        for task in list(self._refreshes.values()):
            task.cancel()
        await asyncio.gather(*self._refreshes.values(), return_exceptions=True)
        for server in self._servers:
            await server.close()

    # -- inside

    def _refresh_task(self, topic: str) -> asyncio.Task[Route]:
        task = self._refreshes.get(topic)
        if task is None:
            task = asyncio.create_task(self._refresh(topic), name=f"route of {topic}")
            task.add_done_callback(_retrieve)
            self._refreshes[topic] = task
        return task

    async def _refresh(self, topic: str) -> Route:
        try:
            route = await self._lookup(topic)
        except TopicMissing:
            self.forget(topic)
            raise
        finally:
            self._refreshes.pop(topic, None)
        self._cache[topic] = route
        self._cache.move_to_end(topic)
        if len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)
        return route

    async def _lookup(self, topic: str) -> Route:
        """Ask one name server after the other until one knows."""
        reason = "no name server answers"
        for server in list(self._servers):
            try:
                frame = await _ask_route(server, topic)
                if frame.code == codes.TOPIC_NOT_EXIST:
                    if not self._is_believable(topic, await self._masters_of(server)):
                        reason = f"the brokers that hold {topic} are down"
                        continue
                    frame = await _ask_route(server, topic)  # a broker may have come back between the two answers
                if frame.code == codes.TOPIC_NOT_EXIST:
                    self._prefer(server)
                    raise TopicMissing(f"there is no topic {topic}")
                route = _parse_route(frame)
            except BusUnavailable as error:
                reason = str(error)
                continue
            self._prefer(server)
            return route
        self._health.note_name_servers(False)
        raise BusUnavailable(reason)

    async def _masters_of(self, server: Connection) -> dict[str, str]:
        return _parse_cluster(await server.call(codes.CLUSTER, {}))

    def _is_believable(self, topic: str, masters: dict[str, str]) -> bool:
        """That the topic is missing: a broker that held it (as far as known) is registered and does not name it."""
        known = self._cache.get(topic)
        return bool(masters if known is None else masters.keys() & known.masters.keys())

    def _prefer(self, server: Connection) -> None:
        self._health.note_name_servers(True)
        if self._servers[0] is not server:
            self._servers.remove(server)
            self._servers.insert(0, server)


async def _ask_route(server: Connection, topic: str) -> Frame:
    return await server.call(codes.ROUTE, {"topic": topic, "acceptStandardJsonOnly": "true"})


def _retrieve(task: asyncio.Task[Route]) -> None:
    """Nobody may be waiting for a refresh in the background: its failure is not news."""
    if not task.cancelled():
        task.exception()


def _parse_route(frame: Frame) -> Route:
    parsed = _body_of(frame)
    try:
        masters = _masters(parsed["brokerDatas"])
        writable: list[Queue] = []
        readable: list[Queue] = []
        for data in parsed["queueDatas"]:
            broker, perm = data["brokerName"], data["perm"]
            if broker not in masters:
                continue
            if perm & _WRITE:
                _add_queues(writable, broker, data["writeQueueNums"])
            if perm & _READ:
                _add_queues(readable, broker, data["readQueueNums"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BusUnavailable("a name server answered with a route of another form") from error
    order = sorted(writable, key=_place), sorted(readable, key=_place)
    return Route(masters, tuple(order[0]), tuple(order[1]))


def _add_queues(queues: list[Queue], broker: str, count: int) -> None:
    """Raises ValueError, TypeError."""
    if len(queues) + count > _MOST_QUEUES:
        raise ValueError(f"{count} queues more")
    queues += [Queue(broker, queue_id) for queue_id in range(count)]


def _place(queue: Queue) -> tuple[str, int]:
    return queue.broker, queue.queue_id


def _parse_cluster(frame: Frame) -> dict[str, str]:
    parsed = _body_of(frame)
    try:
        return _masters(parsed["brokerAddrTable"].values())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BusUnavailable("a name server answered with a cluster of another form") from error


def _body_of(frame: Frame) -> Any:
    if frame.code != codes.SUCCESS:
        raise BusUnavailable(f"a name server answered {frame.code}: {frame.remark}")
    try:
        return decode_json(frame.body)
    except WireError as error:
        raise BusUnavailable("a name server answered with no JSON") from error


def _masters(brokers: Any) -> dict[str, str]:
    """Raises KeyError, TypeError, AttributeError, ValueError."""
    masters = {
        broker["brokerName"]: broker["brokerAddrs"][_MASTER] for broker in brokers if _MASTER in broker["brokerAddrs"]
    }
    if not all(type(name) is type(address) is str for name, address in masters.items()):
        raise ValueError("a broker's name or address that is no text")
    return masters
