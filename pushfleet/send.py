"""`pushfleet send`: one send through the dispatcher's HTTP interface, and what its answer means."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass

import click
import orjson

from pushfleet.dispatcher_api import DEFAULT_URL, Answer, NoAnswer, post_send
from pushfleet.durations import Duration
from pushfleet.secret_options import secret_option
from shared.ids import client_id_fault

_HINTS = {
    401: "An API key is needed: PUSH_API_KEY, or --api-key @FILE.",
    403: "The API key is good, but lacks the scope `send`.",
    409: "This requestId was used for another body within the last day.",
    429: "Too many sends at once; try again later.",
    503: "A part the dispatcher stands on does not answer now; the same requestId may be tried again.",
}


@dataclass(frozen=True, slots=True)
class Send:
    """One send. `msg` is JSON text, passed on as it is; `ttl_s` None takes the dispatcher's default."""

    to: tuple[str, ...]
    msg: bytes
    sender: str | None = None
    request_id: str | None = None
    ttl_s: int | None = None
    durable: bool = True
    to_all: bool = False

    def body(self) -> bytes:
        """The request's body."""
        fields: dict[str, object] = {"to": list(self.to), "msg": orjson.Fragment(self.msg)}
        optional = {"from": self.sender, "requestId": self.request_id, "ttl": self.ttl_s}
        fields |= {name: value for name, value in optional.items() if value is not None}
        if not self.durable:
            fields["durable"] = False
        if self.to_all:
            fields["sendToAll"] = True
        return orjson.dumps(fields)


def curl_line(dispatcher: str, body: bytes, *, with_key: bool = False) -> str:
    """The same send as a line for a shell. A key is named by its variable, never shown."""
    parts = ["curl", "-sS", f"{dispatcher.rstrip('/')}/message/send", "-H", "Content-Type: application/json"]
    line = shlex.join(parts)
    if with_key:
        line += ' -H "Authorization: Bearer $PUSH_API_KEY"'
    return f"{line} -d {shlex.quote(body.decode())}"


def meaning(send: Send, answer: Answer) -> str:
    """The answer in a sentence."""
    if not answer.success:
        return f"Nothing was sent: {answer.msg}. {_HINTS.get(answer.status_code, '')}".rstrip()
    absent = [str(one) for one in answer.content or []]
    if send.to_all:
        return "Accepted: it goes to everyone; who is away gets it when it comes back."
    if not absent:
        return f"Accepted: {_names(send.to)} {_is(send.to)} online, it is on its way."
    names, others = _names(absent), len(send.to) - len(absent)
    rest = f" {others} other{'s' if others > 1 else ''} online: on its way." if others > 0 else ""
    if send.durable:
        return f"Accepted: {names} {_is(absent)} not online now; stored for later, delivered when they connect.{rest}"
    return f"Accepted: {names} {_is(absent)} not online and will not get it, since it is not durable.{rest}"


def _names(ids: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(ids[:5])
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown


def _is(ids: tuple[str, ...] | list[str]) -> str:
    return "is" if len(ids) == 1 else "are"


@click.command("send")
@click.argument("clients", nargs=-1, metavar="CLIENT...")
@click.argument("msg", metavar="JSON")
@click.option("--from", "sender", metavar="NAME", help="Who it is from; default: the API key's name, or system.")
@click.option("--request-id", metavar="ID", help="A send with the same id within a day is not sent again.")
@click.option("--ttl", type=Duration(), help="How long it waits for an absent client: 90s, 15m, 1h, 7d (the default).")
@click.option("--no-durable", is_flag=True, help="Only to who is online now; nothing is stored.")
@click.option("--all", "to_all", is_flag=True, help="To everyone; no CLIENT is named.")
@click.option("--show-curl", is_flag=True, help="Print the equivalent curl line instead of sending.")
@click.option("--dispatcher", envvar="PUSH_DISPATCHER_URL", show_envvar=True, default=DEFAULT_URL, show_default=True)
@click.option(
    "--api-key",
    envvar="PUSH_API_KEY",
    show_envvar=True,
    callback=secret_option("PUSH_API_KEY"),
    help="Needed unless the dispatcher has auth off. @FILE reads it from there.",
)
def send(
    clients: tuple[str, ...],
    msg: str,
    sender: str | None,
    request_id: str | None,
    ttl: int | None,
    no_durable: bool,
    to_all: bool,
    show_curl: bool,
    dispatcher: str,
    api_key: str | None,
) -> None:
    """
    Send a message, any JSON value, to one or more clients.

    Prints the dispatcher's answer (success, statusCode, content, msg) on stdout and what it means on stderr.
    Ends with 1 if nothing was sent.

    \b
      pushfleet send alice '{"hello":1}'
      pushfleet send alice bob '"good morning"' --ttl 1h
      pushfleet send --all '{"maintenance":"22:00"}'
    """
    _check(clients, msg, to_all)
    request = Send(clients, msg.encode(), sender, request_id, ttl, not no_durable, to_all)
    body = request.body()
    if show_curl:
        click.echo(curl_line(dispatcher, body, with_key=bool(api_key)))
        return
    try:
        answer = asyncio.run(post_send(dispatcher, body, api_key))
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None
    click.echo(answer.text)
    click.echo(meaning(request, answer), err=True)
    if not answer.success:
        raise click.exceptions.Exit(1)


def _check(clients: tuple[str, ...], msg: str, to_all: bool) -> None:
    """Raises click.UsageError."""
    if to_all and clients:
        raise click.UsageError("--all sends to everyone: name no CLIENT beside it")
    if not to_all and not clients:
        raise click.UsageError("name at least one CLIENT before the JSON, or --all")
    for client_id in clients:
        fault = client_id_fault(client_id)
        if fault:
            raise click.UsageError(f"CLIENT {client_id!r}: {fault}")
    try:
        orjson.loads(msg)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(
            f"{msg!r} is not JSON ({error}); quote it for the shell, as in: pushfleet send alice '{{\"hello\":1}}'"
        ) from None
