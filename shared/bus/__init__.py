"""
The bus: one port (`port.Bus`), an adapter for each kind of URL.

    rocketmq://host:9876[,host2:9876]   `rocketmq/`  our own client of RocketMQ's remoting protocol
    redis://host:6379/0                 `streams/`   Redis streams; the embedded default
"""

from __future__ import annotations

from urllib.parse import urlsplit

from shared.bus.port import Bus, Received, Record, SharedReader, TopicReader

__all__ = ["Bus", "Received", "Record", "SharedReader", "TopicReader", "open_bus"]


def open_bus(url: str, *, namespace: str) -> Bus:
    """The adapter for `url`. Nothing is connected yet. Raises ValueError with what is expected."""
    scheme = urlsplit(url).scheme
    if scheme == "rocketmq":
        from shared.bus.rocketmq import RocketMQBus

        return RocketMQBus.from_url(url)
    if scheme in ("redis", "rediss"):
        from shared.bus.streams import StreamsBus

        return StreamsBus.from_url(url, namespace=namespace)
    raise ValueError("expected rocketmq://host:9876[,host:9876] or redis://host:6379/0")
