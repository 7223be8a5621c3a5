"""Request and response codes of the remoting protocol that this client uses (org.apache.rocketmq.remoting.protocol)."""

from __future__ import annotations

# Requests
PULL = 11
QUERY_OFFSET = 14
COMMIT_OFFSET = 15
CREATE_TOPIC = 17
MAX_OFFSET = 30
MIN_OFFSET = 31
HEARTBEAT = 34
ROUTE = 105
CLUSTER = 106
CREATE_GROUP = 200
DELETE_GROUP = 207
DELETE_TOPIC_IN_BROKER = 215
DELETE_TOPIC_IN_NAME_SERVER = 216
SEND = 310
SEND_BATCH = 320
POP = 200050
ACK = 200051

# Responses
SUCCESS = 0
SYSTEM_ERROR = 1
FLUSH_DISK_TIMEOUT = 10
SLAVE_NOT_AVAILABLE = 11
FLUSH_SLAVE_TIMEOUT = 12
MESSAGE_ILLEGAL = 13
TOPIC_NOT_EXIST = 17
PULL_NOT_FOUND = 19
PULL_RETRY_IMMEDIATELY = 20
PULL_OFFSET_MOVED = 21
QUERY_NOT_FOUND = 22
GROUP_NOT_EXIST = 26
POLLING_FULL = 209
POLLING_TIMEOUT = 210

STORED = frozenset((SUCCESS, FLUSH_DISK_TIMEOUT, SLAVE_NOT_AVAILABLE, FLUSH_SLAVE_TIMEOUT))
"""
A send that was answered with one of these is in the master's log: what was late is the flush or the replica.
RocketMQ's own clients count them as sent too.
"""
