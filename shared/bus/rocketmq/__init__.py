"""
The bus on RocketMQ: an asyncio client of its remoting protocol, no larger than the port asks for.

    wire        bytes <-> frames and messages (pure)        connection  one socket, pipelined
    route       name servers, which master has what         health      who answered last
    admin       topics and groups                           producer    publish
    reader      a topic read alone: long-poll pull          shared      a topic shared: POP and ack

Nothing needs a consumer to be registered or queues to be balanced: a lone reader pulls every queue by explicit
offsets, and what is shared is handed out by the broker itself (POP).
"""

from __future__ import annotations

from shared.bus.rocketmq.bus import RocketMQBus

__all__ = ["RocketMQBus"]
