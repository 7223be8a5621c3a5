"""
Redis keys. Every key of a client carries a partition tag, so that on Redis Cluster a batch splits by partition, while
on a single server it stays one call.

| key                                 | type   | holds                                                          |
|-------------------------------------|--------|----------------------------------------------------------------|
| `{ns}:{{p}}:route:<clientId>`       | hash   | sessionId -> the epoch of its node                             |
| `{ns}:{{p}}:inbox:<clientId>`       | hash   | messageId -> order, expiry, template; `#` -> bytes held         |
| `{ns}:{{p}}:last:<clientId>`        | string | the node the client was on last                                |
| `{ns}:{{nodes}}:ids`                | set    | nodeIds that hold or held a lease                              |
| `{ns}:{{nodes}}:lease:<nodeId>`     | string | JSON: epoch, url, connections, weight, draining; expires       |
| `{ns}:{{p}}:sent:<caller>/<reqId>`  | hash   | idempotency: the first send of this requestId, and its answer  |
| `{ns}:{{p}}:quota:<caller>/<day>`   | string | sends of a caller on a day (UTC)                               |
"""

from __future__ import annotations

from zlib import crc32

PARTITIONS = 64


class Keys:
    """The keys of one namespace."""

    __slots__ = ("_inbox", "_last", "_lease", "_quota", "_route", "_sent", "node_ids")

    def __init__(self, namespace: str) -> None:
        tags = [f"{namespace}:{{{n}}}:" for n in range(PARTITIONS)]
        self._route = [f"{tag}route:" for tag in tags]
        self._inbox = [f"{tag}inbox:" for tag in tags]
        self._last = [f"{tag}last:" for tag in tags]
        self._sent = [f"{tag}sent:" for tag in tags]
        self._quota = [f"{tag}quota:" for tag in tags]
        self._lease = f"{namespace}:{{nodes}}:lease:"
        self.node_ids = f"{namespace}:{{nodes}}:ids"

    def route(self, client_id: str) -> str:
        return self._route[crc32(client_id.encode()) % PARTITIONS] + client_id

    def inbox(self, client_id: str) -> str:
        return self._inbox[crc32(client_id.encode()) % PARTITIONS] + client_id

    def inbox_and_route(self, client_id: str) -> tuple[str, str]:
        """Both at the price of one hash: the dispatcher wants them for each target."""
        partition = crc32(client_id.encode()) % PARTITIONS
        return self._inbox[partition] + client_id, self._route[partition] + client_id

    def last(self, client_id: str) -> str:
        return self._last[crc32(client_id.encode()) % PARTITIONS] + client_id

    def sent(self, caller: str, request_id: str) -> str:
        """No caller holds a `/`, so two pairs never meet in one key."""
        name = f"{caller}/{request_id}"
        return self._sent[crc32(name.encode()) % PARTITIONS] + name

    def quota(self, caller: str, day: str) -> str:
        name = f"{caller}/{day}"
        return self._quota[crc32(name.encode()) % PARTITIONS] + name

    def lease(self, node_id: str) -> str:
        return self._lease + node_id
