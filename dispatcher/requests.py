"""
What a caller may ask: the body of a send, checked and turned into a `Send`.

Every fault is a BadRequest that names the field by its path (`to[3]: 200 characters, at most 128`). `msg` is cut
out of the body as it stands there: key order, white space and numbers of any size reach the client unchanged.

JSON may be nested 64 deep (PUSH_JSON_DEPTH). Depth is measured before anything recurses: a body with at most 64 opening
brackets passes at once, any other has its strings cut out and its brackets summed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from dispatcher.metrics import REFUSED
from shared.errors import BadRequest, BodyTooLarge
from shared.ids import client_id_fault, request_id_fault
from shared.json_text import DEEPEST, field_and_fault, is_too_deep

MOST_TARGETS = 10_000
MOST_GROUPS = 100
MOST_ITEMS = 1_000
DEFAULT_TTL_S = 7 * 86_400
MOST_TTL_S = 30 * 86_400
_MOST_SENDER = 128
_MOST_VOLUME = 64 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one send: the targets that it may name, the levels that its JSON may be nested."""

    targets: int = MOST_TARGETS
    json_depth: int = DEEPEST


USUAL = Bounds()


class SendBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A send as its caller writes it; null is as good as absent."""

    msg: msgspec.Raw
    to: str | list[str] | None = None
    send_to_all: bool | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    request_id: str | None = None
    to_groups: str | list[str] | None = None
    ttl: float | None = None
    delay: float | None = None
    deliver_at: float | None = None
    durable: bool | None = None


class Send(msgspec.Struct, frozen=True):
    """
    A checked send.

    `targets` and `groups` are distinct and in the order given, empty when it goes to `everyone`. `sender` and
    `request_id` are "" where the caller named none; `but` is a session of the sender's that does not get what goes to
    groups.
    """

    targets: tuple[str, ...]
    everyone: bool
    msg: bytes
    sender: str = ""
    request_id: str = ""
    ttl_ms: int = DEFAULT_TTL_S * 1000
    durable: bool = True
    groups: tuple[str, ...] = ()
    but: str = ""


_send_decoder = msgspec.json.Decoder(SendBody)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])

_GOOD_TARGETS = re.compile(r"[A-Za-z0-9._\-:@]{1,128}(?:\n[A-Za-z0-9._\-:@]{1,128})*\Z")


def parse_send(body: bytes, bounds: Bounds = USUAL) -> Send:
    """The send that `body` (JSON text) asks for. Raises BadRequest."""
    check_depth(body, bounds.json_depth)
    check_utf8(body)
    try:
        asked = _send_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _named(error) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    return checked_send(asked, bounds.targets)


def parse_list(body: bytes) -> list[bytes]:
    """The JSON texts of the items of a list of sends. Raises BadRequest."""
    check_utf8(body)
    try:
        items = _list_decoder.decode(body)
    except msgspec.ValidationError:
        raise BadRequest("the body: expected a list of sends") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if len(items) > MOST_ITEMS:
        raise BadRequest(f"the body: {len(items)} items, at most {MOST_ITEMS}")
    return [bytes(item) for item in items]


def check_depth(body: bytes, most: int) -> None:
    """Raises BadRequest."""
    if is_too_deep(body, most):
        REFUSED.labels("json_depth").inc()
        raise BadRequest(f"JSON nested deeper than {most}")


def check_utf8(body: bytes) -> None:
    """The decoder passes over `msg` without looking at its characters. Raises BadRequest."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})") from None


def checked_send(asked: SendBody, most_targets: int = MOST_TARGETS) -> Send:
    """Raises BadRequest."""
    everyone = asked.send_to_all is True
    if asked.delay:
        raise BadRequest("this version has no scheduled sends", field="delay")
    if asked.deliver_at:
        raise BadRequest("this version has no scheduled sends", field="deliverAt")
    targets = _targets(asked.to, most_targets)
    groups = group_ids(asked.to_groups)
    if everyone:
        targets = groups = ()
    elif not targets and not groups:
        raise BadRequest("required: a clientId or a list of them, toGroups or sendToAll", field="to")
    msg = bytes(asked.msg)
    if len(targets) * len(msg) > _MOST_VOLUME:
        REFUSED.labels("targets").inc()
        raise BodyTooLarge(f"{len(targets)} targets of so large a msg, at most {_MOST_VOLUME} bytes in all", field="to")
    return Send(
        targets,
        everyone,
        msg,
        _sender(asked.sender),
        _request_id(asked.request_id),
        _ttl_ms(asked.ttl),
        asked.durable is not False,
        groups,
    )


def _targets(to: str | list[str] | None, most: int) -> tuple[str, ...]:
    if not to:
        return ()
    if isinstance(to, str):
        if not _GOOD_TARGETS.match(to) or "\n" in to:
            raise BadRequest(client_id_fault(to) or "", field="to")
        return (to,)
    if len(to) > most:
        REFUSED.labels("targets").inc()
        raise BadRequest(f"{len(to)} targets, at most {most}", field="to")
    # One look at all of them together; a line break, which no clientId may hold, would join two.
    joined = "\n".join(to)
    if not _GOOD_TARGETS.match(joined) or joined.count("\n") != len(to) - 1:
        for place, target in enumerate(to):
            fault = client_id_fault(target)
            if fault:
                raise BadRequest(fault, field=f"to[{place}]")
    return tuple(dict.fromkeys(to)) if len(to) > 1 else (to[0],)


def group_ids(groups: str | list[str] | None) -> tuple[str, ...]:
    """Distinct, in the order given. Raises BadRequest."""
    if not groups:
        return ()
    listed = [groups] if isinstance(groups, str) else groups
    if len(listed) > MOST_GROUPS:
        REFUSED.labels("targets").inc()
        raise BadRequest(f"{len(listed)} groups, at most {MOST_GROUPS}", field="toGroups")
    for place, group in enumerate(listed):
        fault = client_id_fault(group)
        if fault:
            field = "toGroups" if isinstance(groups, str) else f"toGroups[{place}]"
            raise BadRequest(fault.replace("a clientId", "a groupId"), field=field)
    return tuple(dict.fromkeys(listed))


def _sender(sender: str | None) -> str:
    if sender is None:
        return ""
    if not 1 <= len(sender) <= _MOST_SENDER:
        raise BadRequest(f"{len(sender)} characters, expected 1 to {_MOST_SENDER}", field="from")
    return sender


def _request_id(request_id: str | None) -> str:
    if request_id is None:
        return ""
    fault = request_id_fault(request_id)
    if fault:
        raise BadRequest(fault, field="requestId")
    return request_id


def _ttl_ms(ttl: float | None) -> int:
    if ttl is None:
        return DEFAULT_TTL_S * 1000
    if not 1 <= ttl <= MOST_TTL_S:
        raise BadRequest(f"expected 1 to {MOST_TTL_S} seconds", field="ttl")
    return int(ttl * 1000)


def _named(error: msgspec.ValidationError) -> BadRequest:
    field, fault = field_and_fault(error)
    return BadRequest(fault, field=field or "the body")
