"""
Redis keys. Every key of a client carries a partition tag, so that on Redis Cluster a batch splits by partition, while
on a single server it stays one call.

| key                                 | type   | holds                                                          |
|-------------------------------------|--------|----------------------------------------------------------------|
| `{ns}:{{p}}:route:<clientId>`       | hash   | sessionId -> the epoch of its node                             |
| `{ns}:{{p}}:inbox:<clientId>`       | hash   | messageId -> order, expiry, template; `#` -> bytes held         |
| `{ns}:{{p}}:last:<clientId>`        | string | the node the client was on last                                |
| `{ns}:{{p}}:device:<clientId>`      | hash   | device -> sessionId, with PUSH_SESSION_POLICY=device            |
| `{ns}:{{p}}:device-of:<clientId>`   | hash   | sessionId -> device, of sessions that named one                |
| `{ns}:{{p}}:revoked:<clientId>`     | string | tokens issued before this (s) are refused; expires             |
| `{ns}:{{p}}:stamp:<clientId>`       | string | the last stamp of a change of its route (us); expires           |
| `{ns}:{{p}}:at:<nodeId>`            | set    | sessionIds on the node: an index for who cleans up behind it    |
| `{ns}:{{p}}:clients`                | set    | clientIds that ever registered and are remembered still         |
| `{ns}:{{p}}:audiences:<clientId>`   | hash   | audience -> the client's cursor in it; `#` -> times it changed  |
| `{ns}:{{p}}:timeline:<audience>`    | stream | an audience's messages, by their order                          |
| `{ns}:{{p}}:audience:<audience>`    | hash   | last, cut (orders), bytes; of a group: name, owner, created     |
| `{ns}:{{p}}:members:<groupId>`      | set    | clientIds                                                       |
| `{ns}:{{p}}:where:<groupId>`        | hash   | nodeId -> epoch: the nodes that host members                    |
| `{ns}:{{p}}:profile:<clientId>`     | string | the client's userName; expires                                  |
| `{ns}:{{p}}:sender:<messageId>`     | string | the clientId that a user's message is of; expires               |
| `{ns}:{{nodes}}:ids`                | set    | nodeIds that hold or held a lease                              |
| `{ns}:{{nodes}}:lease:<nodeId>`     | string | JSON: shared.registry.Lease; expires                           |
| `{ns}:{{nodes}}:starts`             | zset   | `<nodeId> <epoch>` -> when its lease ends (epoch ms)            |
| `{ns}:{{nodes}}:burial:<nodeId>`    | string | a janitor cleans up: the node's lease cannot be taken; expires |
| `{ns}:{{nodes}}:drain:<nodeId>`     | string | a request to drain, JSON: shared.registry.DrainRequest; expires |
| `{ns}:{{nodes}}:store`              | string | a word that is there for as long as Redis keeps its data        |
| `{ns}:{{nodes}}:outbox`             | stream | topic, lines: what waits for the bus; `outbox-bytes`: its size  |
| `{ns}:{{nodes}}:broadcasts`         | zset   | broadcastIds, by the alphabet: by the time they began           |
| `{ns}:{{nodes}}:broadcasts-running` | set    | broadcastIds                                                    |
| `{ns}:{{nodes}}:broadcast:<id>`     | hash   | dispatcher.broadcast_records; expires                           |
| `{ns}:{{nodes}}:broadcast-reached:<id>` | set | clientIds it was sent to that may be met again; expires      |
| `{ns}:{{nodes}}:broadcast-of:<caller>/<reqId>` | string | the broadcastId of a requestId; expires              |
| `{ns}:{{nodes}}:lock:<name>`        | string | the token of who holds it; expires; `fence:<name>`: the last    |
| `{ns}:{{p}}:sent:<caller>/<reqId>`  | hash   | idempotency: the first send of this requestId, and its answer  |
| `{ns}:{{p}}:quota:<caller>/<day>`   | string | sends of a caller on a day (UTC)                               |

An *audience* is a group, by its groupId, or everyone, `*`. What is an audience's lies in its own partition, what is a
client's in the client's.
"""

from __future__ import annotations

from zlib import crc32

PARTITIONS = 64
EVERYONE = "*"  # no groupId holds it


def partition_of(name: str) -> int:
    """Of a clientId, or of another name that keys are made of."""
    return crc32(name.encode()) % PARTITIONS


class Keys:
    """The keys of one namespace."""

    __slots__ = (
        "_at",
        "_audience",
        "_audiences",
        "_clients",
        "_device",
        "_device_of",
        "_inbox",
        "_last",
        "_lease",
        "_members",
        "_nodes",
        "_profile",
        "_quota",
        "_revoked",
        "_route",
        "_sender",
        "_sent",
        "_timeline",
        "_where",
        "node_ids",
        "starts",
        "store_id",
    )

    def __init__(self, namespace: str) -> None:
        tags = [f"{namespace}:{{{n}}}:" for n in range(PARTITIONS)]
        self._route = [f"{tag}route:" for tag in tags]
        self._inbox = [f"{tag}inbox:" for tag in tags]
        self._last = [f"{tag}last:" for tag in tags]
        self._sent = [f"{tag}sent:" for tag in tags]
        self._quota = [f"{tag}quota:" for tag in tags]
        self._revoked = [f"{tag}revoked:" for tag in tags]
        self._device = [f"{tag}device:" for tag in tags]
        self._device_of = [f"{tag}device-of:" for tag in tags]
        self._at = [f"{tag}at:" for tag in tags]
        self._audiences = [f"{tag}audiences:" for tag in tags]
        self._audience = [f"{tag}audience:" for tag in tags]
        self._clients = [f"{tag}clients" for tag in tags]
        self._timeline = [f"{tag}timeline:" for tag in tags]
        self._members = [f"{tag}members:" for tag in tags]
        self._where = [f"{tag}where:" for tag in tags]
        self._profile = [f"{tag}profile:" for tag in tags]
        self._sender = [f"{tag}sender:" for tag in tags]
        self._nodes = nodes = f"{namespace}:{{nodes}}:"
        self._lease = f"{nodes}lease:"
        self.node_ids = f"{nodes}ids"
        self.starts = f"{nodes}starts"
        self.store_id = f"{nodes}store"

    def route(self, client_id: str) -> str:
        return self._route[crc32(client_id.encode()) % PARTITIONS] + client_id

    def inbox(self, client_id: str) -> str:
        return self._inbox[crc32(client_id.encode()) % PARTITIONS] + client_id

    def inbox_and_route(self, client_id: str) -> tuple[str, str]:
        """Both at the price of one hash: the dispatcher wants them for each target."""
        partition = crc32(client_id.encode()) % PARTITIONS
        return self._inbox[partition] + client_id, self._route[partition] + client_id

    def session(self, client_id: str) -> tuple[str, str, str, str, str]:
        """Route, inbox, last, device and audiences."""
        partition = crc32(client_id.encode()) % PARTITIONS
        return (
            self._route[partition] + client_id,
            self._inbox[partition] + client_id,
            self._last[partition] + client_id,
            self._device[partition] + client_id,
            self._audiences[partition] + client_id,
        )

    def route_and_devices(self, client_id: str) -> tuple[str, str]:
        """The route, and the devices of its sessions; the scripts that change them know the latter by the former."""
        partition = crc32(client_id.encode()) % PARTITIONS
        return self._route[partition] + client_id, self._device_of[partition] + client_id

    def audiences(self, client_id: str) -> str:
        """The audiences of a client."""
        return self._audiences[crc32(client_id.encode()) % PARTITIONS] + client_id

    def audience(self, audience: str) -> tuple[str, str, str, str]:
        """What is known of an audience, its timeline, its members, and where they are."""
        partition = crc32(audience.encode()) % PARTITIONS
        return (
            self._audience[partition] + audience,
            self._timeline[partition] + audience,
            self._members[partition] + audience,
            self._where[partition] + audience,
        )

    def profile_and_route(self, client_id: str) -> tuple[str, str]:
        partition = crc32(client_id.encode()) % PARTITIONS
        return self._profile[partition] + client_id, self._route[partition] + client_id

    def sender(self, message_id: str) -> str:
        return self._sender[crc32(message_id.encode()) % PARTITIONS] + message_id

    def revoked(self, client_id: str) -> str:
        """The scripts that register sessions and place clients know it by their other keys."""
        return self._revoked[crc32(client_id.encode()) % PARTITIONS] + client_id

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

    def burial(self, node_id: str) -> str:
        return f"{self._nodes}burial:{node_id}"

    def drain(self, node_id: str) -> str:
        return f"{self._nodes}drain:{node_id}"

    def lock(self, name: str) -> tuple[str, str]:
        """The lock, and the counter of its tokens."""
        return f"{self._nodes}lock:{name}", f"{self._nodes}fence:{name}"

    @property
    def outbox(self) -> tuple[str, str]:
        """The stream, and its bytes."""
        return f"{self._nodes}outbox", f"{self._nodes}outbox-bytes"

    def at(self, partition: int, node_id: str) -> str:
        """The index of a node's sessions in one partition."""
        return self._at[partition] + node_id

    def clients(self, partition: int) -> str:
        """The clients that are known in one partition."""
        return self._clients[partition]

    @property
    def broadcasts(self) -> tuple[str, str]:
        """All, and those that run."""
        return f"{self._nodes}broadcasts", f"{self._nodes}broadcasts-running"

    def broadcast(self, broadcast_id: str) -> tuple[str, str]:
        """What is known of it, and whom it has reached."""
        return f"{self._nodes}broadcast:{broadcast_id}", f"{self._nodes}broadcast-reached:{broadcast_id}"

    def broadcast_of(self, caller: str, request_id: str) -> str:
        return f"{self._nodes}broadcast-of:{caller}/{request_id}"
