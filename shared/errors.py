"""
Errors with codes: what went wrong, as one word that a program can act on, beside its meaning on each wire.

    PushfleetError
    ├── BadRequest          400  the caller's input; `field` is its path (`to[3]`)
    │   ├── BodyTooLarge    413
    │   └── Conflict        409  the same requestId with another body
    ├── Unauthorized        401  no good key or token
    ├── Forbidden           403  a good key without the scope, an origin that is not allowed
    ├── NotFound            404  what the path names is not there
    ├── WrongState          409  it is there, and not in a state that allows this
    ├── Overloaded          429  a bounded queue is full; nothing of the request was taken
    ├── Unavailable         503  a part we stand on does not answer; try again
    │   ├── StoreUnavailable     Redis
    │   └── BusUnavailable       RocketMQ, or the Redis that carries the streams
    └── BusError            500
        ├── TopicMissing         the topic does not exist: the node that owned it is gone
        └── RecordTooLarge       over the bus's limit

The meaning on a wire is decided here, once. Translation happens in two places only: the dispatcher's HTTP
middleware and the gateway's connection. Anything that is not a PushfleetError is a fault of ours: a plain
500 or close 1011 without details, and one log line.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class CloseCode(IntEnum):
    """WebSocket close codes that a node sends (RFC 6455 section 7.4.1; 4xxx are the project's own)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    TOKEN_EXPIRED = 4001
    KICKED = 4002
    REPLACED = 4003
    SLOW_CONSUMER = 4008
    HEARTBEAT_TIMEOUT = 4009
    FLOODING = 4029


class PushfleetError(Exception):
    """Base of the tree. `str(error)` is fit to be shown to the caller; it never holds a body or a secret."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, text: str, *, field: str = "", retry_after_s: int = 0) -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.field = field
        self.retry_after_s = retry_after_s


class BadRequest(PushfleetError):
    code = "bad_request"
    status = 400


class BodyTooLarge(BadRequest):
    code = "body_too_large"
    status = 413


class Conflict(BadRequest):
    code = "request_id_conflict"
    status = 409


class Unauthorized(PushfleetError):
    code = "unauthorized"
    status = 401


class Forbidden(PushfleetError):
    code = "forbidden"
    status = 403


class NotFound(PushfleetError):
    code = "not_found"
    status = 404


class WrongState(PushfleetError):
    code = "wrong_state"
    status = 409


class Overloaded(PushfleetError):
    code = "overloaded"
    status = 429

    def __init__(self, text: str, *, retry_after_s: int = 1) -> None:
        super().__init__(text, retry_after_s=retry_after_s)


class Unavailable(PushfleetError):
    code = "unavailable"
    status = 503

    def __init__(self, text: str, *, retry_after_s: int = 1) -> None:
        super().__init__(text, retry_after_s=retry_after_s)


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class BusUnavailable(Unavailable):
    code = "bus_unavailable"


class BusError(PushfleetError):
    code = "bus_error"


class TopicMissing(BusError):
    code = "topic_missing"


class RecordTooLarge(BusError):
    code = "record_too_large"
