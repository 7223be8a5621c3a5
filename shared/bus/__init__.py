"""
The bus: one port (`port.Bus`), an adapter for each kind of URL.

    rocketmq://host:9876[,host2:9876]   `rocketmq/`  our own client of RocketMQ's remoting protocol
    redis://host:6379/0                 `streams/`   Redis streams; the embedded default. Every URL of shared.redis_url
"""

from __future__ import annotations

from shared.bus.port import Bus, Received, Record, SharedReader, TopicReader
from shared.redis_url import EXPECTED, split_url

__all__ = ["Bus", "Received", "Record", "SharedReader", "TopicReader", "open_bus"]


def open_bus(url: str, *, namespace: str) -> Bus:
    """The adapter for `url`. Nothing is connected yet. Raises ValueError with what is expected."""
    scheme = split_url(url).scheme
    if scheme == "rocketmq":
        from shared.bus.rocketmq import RocketMQBus

        return RocketMQBus.from_url(url)
    if scheme.startswith("redis"):
        from shared.bus.streams import StreamsBus

        return StreamsBus.from_url(url, namespace=namespace)
    raise ValueError(f"expected rocketmq://host:9876[,host:9876], {EXPECTED}")
