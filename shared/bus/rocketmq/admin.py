"""Creating and deleting topics and groups: on every broker master, and until the name servers show it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import orjson

from shared.backoff import Backoff
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.connection import Connections
from shared.bus.rocketmq.route import Routes
from shared.bus.rocketmq.wire import Frame
from shared.errors import BusUnavailable

ADMIN_S = 10.0
"""Deadline of creating or deleting a topic as a whole."""

_READ_AND_WRITE = 6


class Admin:
    """Stateless over the bus's connections."""

    __slots__ = ("_connections", "_routes")

    def __init__(self, routes: Routes, connections: Connections) -> None:
        self._routes = routes
        self._connections = connections

    async def ensure_topic(self, topic: str, queues: int) -> None:
        """
        Create the topic on each master that does not have it; one that has it keeps its number of queues.

        Returns when every name server that answers shows it. Raises BusUnavailable.
        """
        try:
            async with asyncio.timeout(ADMIN_S):
                masters = await self._routes.cluster()
                missing = await self._masters_without(topic, masters)
                if missing:
                    await self._on_each(missing.values(), codes.CREATE_TOPIC, _topic_fields(topic, queues))
                    await self._wait_until_shown(topic, masters)
        except TimeoutError as error:
            raise BusUnavailable(f"the topic {topic} could not be created in time") from error
        if missing:
            self._routes.forget(topic)

    async def drop_topic(self, topic: str) -> None:
        """Delete the topic and the group of the same name, everywhere. Raises BusUnavailable."""
        try:
            async with asyncio.timeout(ADMIN_S):
                masters = (await self._routes.cluster()).values()
                await self._on_each(masters, codes.DELETE_TOPIC_IN_BROKER, {"topic": topic})
                await self._routes.ask_all(codes.DELETE_TOPIC_IN_NAME_SERVER, {"topic": topic})
                await self._on_each(masters, codes.DELETE_GROUP, {"groupName": topic, "cleanOffset": "true"})
        except TimeoutError as error:
            raise BusUnavailable(f"the topic {topic} could not be deleted in time") from error
        self._routes.forget(topic)

    async def create_group(self, address: str, group: str) -> None:
        """A subscription group on one master; one that is there stays as it is in effect. Raises BusUnavailable."""
        body = orjson.dumps(
            {
                "groupName": group,
                "consumeEnable": True,
                "consumeFromMinEnable": True,
                "consumeBroadcastEnable": True,
                "retryQueueNums": 1,
                "retryMaxTimes": 16,
                "brokerId": 0,
                "whichBrokerWhenConsumeSlowly": 1,
            }
        )
        refuse_unless_done(await self._connections.at(address).call(codes.CREATE_GROUP, {}, body), address)

    # -- inside

    async def _masters_without(self, topic: str, masters: dict[str, str]) -> dict[str, str]:
        have = set(masters)
        for route in await self._routes.lookup_everywhere(topic):
            have &= set() if route is None else route.masters.keys()
        return {name: address for name, address in masters.items() if name not in have}

    async def _wait_until_shown(self, topic: str, masters: dict[str, str]) -> None:
        """Brokers register a new topic by themselves, within some milliseconds."""
        backoff = Backoff(0.005, 0.1)
        while await self._masters_without(topic, masters):  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(backoff.next_s())

    async def _on_each(self, addresses: Iterable[str], code: int, fields: dict[str, str]) -> None:
        calls = [self._on_one(address, code, fields) for address in addresses]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _on_one(self, address: str, code: int, fields: dict[str, str]) -> None:
        refuse_unless_done(await self._connections.at(address).call(code, fields), address)


def refuse_unless_done(frame: Frame, address: str) -> None:
    """Raises BusUnavailable for a response that is no success."""
    if frame.code != codes.SUCCESS:
        raise BusUnavailable(f"{address} answered {frame.code}: {frame.remark[:200]}")


def _topic_fields(topic: str, queues: int) -> dict[str, str]:
    return {
        "topic": topic,
        "defaultTopic": "TBW102",
        "readQueueNums": str(queues),
        "writeQueueNums": str(queues),
        "perm": str(_READ_AND_WRITE),
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": "0",
        "order": "false",
    }
