"""How many records were ever put on topics, as the bus itself counts them: nothing is read, nobody's place moves."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bench.cluster import Cluster
from bench.processes import BenchError
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.connection import Connections, ConnectionSettings
from shared.bus.rocketmq.health import Health
from shared.bus.rocketmq.route import Routes
from shared.bus.streams.scripts import marker_key
from shared.ids import node_topic


async def records_of_nodes(parts: Cluster) -> list[int]:
    """So many records each gateway's topic has had so far, in the order in which they were started."""
    topics = [node_topic(parts.namespace, role.node_id) for role in parts.roles if role.child.name == "gateway"]
    if parts.bus == "rocketmq":
        return await _on_rocketmq(parts.bus_url, topics)
    async with Redis.from_url(parts.redis_url) as store:
        return [await _on_stream(store, marker_key(parts.namespace, topic).decode()) for topic in topics]


async def _on_rocketmq(url: str, topics: Sequence[str]) -> list[int]:
    """The sum of the queues' ends, since they begin at 0."""
    connections = Connections(ConnectionSettings())
    routes = Routes([url.removeprefix("rocketmq://")], ConnectionSettings(), Health())
    try:
        counts: list[int] = []
        for topic in topics:
            route = await routes.refresh(topic)
            count = 0
            for queue in route.readable:
                place = {"topic": topic, "queueId": str(queue.queue_id)}
                answer = await connections.at(route.masters[queue.broker]).call(codes.MAX_OFFSET, place)
                if answer.code != codes.SUCCESS:
                    raise BenchError(f"{queue.broker} answered {answer.code} when asked for the end of {topic}")
                count += int(answer.fields["offset"])
            counts.append(count)
        return counts
    finally:
        await connections.close()
        await routes.close()


async def _on_stream(store: Redis, topic: str) -> int:
    """`entries-added` of the topic's streams (XINFO STREAM) counts what was removed, too."""
    count = 0
    for queue in range(int(await store.get(topic) or 0)):
        try:
            count += (await store.xinfo_stream(f"{topic}:{queue}"))["entries-added"]
        except ResponseError:
            continue  # nothing was put there yet
    return count
