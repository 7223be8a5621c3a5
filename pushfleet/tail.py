"""
`pushfleet tail`: a client on the command line, for seeing what reaches it.

It asks the dispatcher for its node, connects, prints each envelope as it came on a line of stdout, and acknowledges
what it has printed. When the connection ends it asks for a node again and reconnects with a jittered backoff, or
after the pause that a draining node names; what ended by somebody's decision (4001 to 4003, a refused token) ends the
command. A messageId that was shown already is acknowledged again, not shown again.

Heartbeats are RFC 6455 pings, so that stdout holds the client's messages alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import click
import orjson

from pushfleet.dispatcher_api import DEFAULT_URL, NoAnswer, auth_headers, get_node
from pushfleet.secret_options import secret_option
from shared.backoff import Backoff
from shared.errors import CloseCode
from shared.ids import client_id_fault

_BUSINESS, _CONNECTION = 1, 0
_FINAL_CODES = {
    CloseCode.TOKEN_EXPIRED: "the token has expired; get a new one",
    CloseCode.KICKED: "this session was kicked",
    CloseCode.REPLACED: "another session of this client has replaced this one",
}
_FINAL_STATUSES = {
    400: "the node refused the request; is the clientId a good one?",
    401: "the node wants a good token: PUSH_TOKEN or --token @FILE (`pushfleet token` makes one)",
    403: "the node does not allow this",
    404: "there is no WebSocket at this path; nodes have it at /websocket",
}
_SHOWN_AT_MOST = 10_000
_CONNECT_S = 15.0
_HEARTBEAT_S = 20.0
_MOST_FRAME = 64 << 20


class Ended(Exception):
    """The command is over; the text says why."""


class OutputClosed(Exception):
    """Whoever read stdout has gone."""


@dataclass(frozen=True, slots=True)
class TailOptions:
    """Whom to be, where to connect (`url`, or the node that `dispatcher` names), and whether to acknowledge."""

    client_id: str
    url: str | None
    dispatcher: str
    token: str | None
    api_key: str | None
    ack: bool


class _Heart:
    """When to send the next heartbeat, and how many in a row nothing came after."""

    __slots__ = ("_interval_s", "_next", "unanswered")

    def __init__(self) -> None:
        self.unanswered = 0
        self.set_interval(_HEARTBEAT_S)

    def set_interval(self, seconds: float) -> None:
        self._interval_s = seconds
        self._next = time.monotonic() + seconds

    def due_s(self) -> float:
        """Seconds until the next one; 0 or less: now."""
        return self._next - time.monotonic()

    def beat(self) -> None:
        self.unanswered += 1
        self._next = time.monotonic() + self._interval_s


class Tail:
    """`say(event, text, **fields)` gets status lines, `show` each new envelope."""

    __slots__ = ("_backoff", "_options", "_pause_s", "_say", "_show", "_shown")

    def __init__(self, options: TailOptions, *, say: Callable[..., None], show: Callable[[bytes], None]) -> None:
        self._options = options
        self._say = say
        self._show = show
        self._shown: OrderedDict[str, None] = OrderedDict()
        self._backoff = Backoff(0.2, 10.0)
        self._pause_s: float | None = None

    async def run(self) -> None:
        """Until cancelled. Raises Ended when reconnecting would be wrong."""
        async with aiohttp.ClientSession() as session:
            while True:
                self._pause_s = None
                try:
                    await self._connect(session, await self._find_node())
                except (TimeoutError, aiohttp.ClientError, OSError) as error:
                    self._note_failure(error)
                except NoAnswer as error:
                    self._say("waiting", str(error))
                pause_s = self._backoff.next_s() if self._pause_s is None else self._pause_s
                self._say("reconnecting", f"connecting again in {pause_s:.1f} s", seconds=round(pause_s, 3))
                await asyncio.sleep(pause_s)

    async def _find_node(self) -> str:
        options = self._options
        if options.url:
            return options.url
        answer = await get_node(options.dispatcher, options.client_id, options.api_key)
        if not answer.success:
            if answer.status_code in (400, 401, 403):
                raise Ended(f"the dispatcher names no node: {answer.msg}")
            self._pause_s = answer.retry_after_s or None
            raise NoAnswer(f"the dispatcher names no node: {answer.msg}")
        try:
            return str(answer.content["url"])
        except (KeyError, TypeError):
            raise NoAnswer("the dispatcher's answer names no url") from None

    def _note_failure(self, error: Exception) -> None:
        """Raises Ended if trying again is of no use."""
        if isinstance(error, aiohttp.WSServerHandshakeError):
            if error.status in _FINAL_STATUSES:
                raise Ended(f"{_FINAL_STATUSES[error.status]} ({error.status})") from None
            after = error.headers.get("Retry-After", "") if error.headers else ""
            self._pause_s = float(after) if after.isdecimal() else None
        self._say("unreachable", f"the node cannot be reached ({str(error) or 'no answer'})")

    async def _connect(self, session: aiohttp.ClientSession, url: str) -> None:
        target = connect_url(url, self._options)
        self._say("connecting", f"connecting to {url}", url=url)
        async with asyncio.timeout(_CONNECT_S):
            socket = await session.ws_connect(
                target,
                headers=auth_headers(self._options.token),
                autoping=False,
                max_msg_size=_MOST_FRAME,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
        try:
            await self._receive(socket)
        finally:
            await socket.close()
        self._note_end(socket)

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Until the connection ends, or two heartbeats went unanswered."""
        heart = _Heart()
        while True:
            wait_s = heart.due_s()
            if wait_s <= 0:
                if heart.unanswered == 2:
                    self._say("silent", "the node has not answered two heartbeats")
                    return
                await socket.ping()
                heart.beat()
                continue
            try:
                frame = await socket.receive(timeout=wait_s)
            except TimeoutError:
                continue
            heart.unanswered = 0
            if frame.type is aiohttp.WSMsgType.TEXT:
                await self._take(socket, frame.data, heart)
            elif frame.type is aiohttp.WSMsgType.PING:
                await socket.pong(frame.data)
            elif frame.type is not aiohttp.WSMsgType.PONG:
                self._note_reason(frame)
                return

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, text: str, heart: _Heart) -> None:
        """Show and acknowledge one envelope."""
        envelope = _envelope(text)
        if envelope is None:
            self._say("bad_frame", "a frame came that is not an envelope")
            return
        message_id = envelope.get("messageId")
        if envelope.get("msgType") != _BUSINESS or not isinstance(message_id, str):
            self._show(on_one_line(text))
            if envelope.get("msgType") == _CONNECTION:
                self._connected(envelope, heart)
            return
        if not self._seen(message_id):
            self._show(on_one_line(text))
        if self._options.ack:
            await _acknowledge(socket, message_id)

    def _connected(self, envelope: dict[str, Any], heart: _Heart) -> None:
        self._backoff.reset()
        facts = envelope.get("msg") or {}
        pending = facts.get("pending") or 0
        waiting = f", {pending} stored message{'s' if pending != 1 else ''} to come" if pending else ""
        session_id = envelope.get("sessionId")
        self._say("connected", f"connected as {envelope.get('to')}{waiting}", sessionId=session_id, pending=pending)
        heart.set_interval(float(facts.get("heartbeatInterval") or _HEARTBEAT_S))

    def _seen(self, message_id: str) -> bool:
        if message_id in self._shown:
            return True
        self._shown[message_id] = None
        if len(self._shown) > _SHOWN_AT_MOST:
            self._shown.popitem(last=False)
        return False

    def _note_reason(self, frame: aiohttp.WSMessage) -> None:
        """A draining node tells each client a pause of its own, so that they do not all come at once."""
        if frame.type is aiohttp.WSMsgType.CLOSE and frame.data == CloseCode.GOING_AWAY:
            self._pause_s = reconnect_pause_s(frame.extra or "")

    def _note_end(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Raises Ended after a code that forbids to reconnect."""
        code = socket.close_code
        if code in _FINAL_CODES:
            raise Ended(f"{_FINAL_CODES[CloseCode(code)]} ({code})")
        self._say("disconnected", f"the connection ended ({code or 'no close frame'})", code=code)


async def _acknowledge(socket: aiohttp.ClientWebSocketResponse, message_id: str) -> None:
    try:
        await socket.send_str(orjson.dumps({"msgType": 2, "messageId": message_id}).decode())
    except ConnectionError:
        return  # how it ended is in the close frame, which is read next; the message comes again


def _envelope(text: str) -> dict[str, Any] | None:
    try:
        envelope = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return envelope if isinstance(envelope, dict) else None


def connect_url(url: str, options: TailOptions) -> str:
    """The node's URL with what the connection says of itself. The token goes in a header, never in a URL."""
    parts = urlsplit(url)
    query = {} if options.token else {"clientId": options.client_id}
    if options.ack:
        query["ack"] = "1"
    text = "&".join(part for part in (parts.query, urlencode(query)) if part)
    return urlunsplit(parts._replace(path=parts.path if parts.path not in ("", "/") else "/websocket", query=text))


def reconnect_pause_s(reason: str) -> float | None:
    """Seconds from a close reason `{"reconnectIn":ms}`; None if it tells none."""
    try:
        return max(float(orjson.loads(reason)["reconnectIn"]), 0.0) / 1000
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def on_one_line(text: str) -> bytes:
    """Line breaks in JSON stand only between its parts (RFC 8259 section 7), where a space means the same."""
    return text.replace("\r", " ").replace("\n", " ").encode()


def show_on_stdout(line: bytes) -> None:
    try:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python flushes stdout again at its end, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputClosed from None


def say_as_text(event: str, text: str, **_fields: object) -> None:
    click.echo(f"* {text}", err=True)


def say_as_json(event: str, text: str, **fields: object) -> None:
    click.echo(orjson.dumps({"event": event, "text": text, **fields}), err=True)


@click.command("tail")
@click.argument("client", metavar="CLIENT")
@click.option("--url", metavar="ws://...", help="Connect to this node instead of asking the dispatcher for one.")
@click.option("--dispatcher", envvar="PUSH_DISPATCHER_URL", show_envvar=True, default=DEFAULT_URL, show_default=True)
@click.option("--ack/--no-ack", default=True, show_default=True, help="Acknowledge what was printed.")
@click.option(
    "--token",
    envvar="PUSH_TOKEN",
    show_envvar=True,
    callback=secret_option("PUSH_TOKEN"),
    help="The connect token; none while auth is off. @FILE reads it from there.",
)
@click.option(
    "--api-key",
    envvar="PUSH_API_KEY",
    show_envvar=True,
    callback=secret_option("PUSH_API_KEY"),
    help="For asking the dispatcher. @FILE reads it from there.",
)
@click.option("--json", "as_json", is_flag=True, help="Status lines on stderr as JSON, too.")
def tail(
    client: str, url: str | None, dispatcher: str, ack: bool, token: str | None, api_key: str | None, as_json: bool
) -> None:
    """
    Be a client and show what it receives.

    Each envelope is a line on stdout, as it came; status lines go to stderr. Ctrl-C ends it.

    \b
      pushfleet tail alice
      pushfleet tail alice | jq 'select(.msgType == 1) | .msg'
    """
    fault = client_id_fault(client)
    if fault:
        raise click.UsageError(f"CLIENT {client!r}: {fault}")
    options = TailOptions(client, url, dispatcher, token, api_key, ack)
    task = Tail(options, say=say_as_json if as_json else say_as_text, show=show_on_stdout)
    try:
        asyncio.run(_until_stopped(task))
    except OutputClosed:
        return
    except Ended as error:
        raise click.ClickException(str(error)) from None


async def _until_stopped(tail_: Tail) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(tail_.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
