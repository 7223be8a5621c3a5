"""
`pushfleet drain`: have a node leave in order, and show how far it is.

The request goes to any dispatcher; the node sees it within about a second. The command looks at the list of nodes
twice a second until the node is gone, or has come back as another start. Ending the command does not end the drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from pushfleet.dispatcher_api import DEFAULT_URL, NoAnswer, V1Answer, ask_v1
from pushfleet.secret_options import secret_option

_LOOK_S = 0.5
_NOTICE_S = 15.0
_UNANSWERED_S = 30.0
_INTERRUPTED = 130
_HINTS = {
    401: "An API key is needed: PUSH_API_KEY, or --api-key @FILE.",
    403: "The API key is good, but lacks the scope `admin`.",
    404: "`--dispatcher` may be one of another cluster; the nodeId is ip:port as in GET /v1/nodes.",
    503: "Redis does not answer the dispatcher now; try again.",
}
_PROGRESS = "{left} of {sessions} sessions left"


class Failed(Exception):
    """It did not go as was asked; the text says why."""


class NodeWatch:
    """One node as a dispatcher sees it. `say` gets a line for each step."""

    __slots__ = ("_api_key", "_dispatcher", "_node_id", "_said", "_say")

    def __init__(self, dispatcher: str, api_key: str | None, node_id: str, say: Callable[[str], None]) -> None:
        self._dispatcher = dispatcher
        self._api_key = api_key
        self._node_id = node_id
        self._say = say
        self._said = ""

    async def ask(self, seconds: float | None) -> dict[str, Any]:
        """Have it drain; the node as it is now. Raises Failed, NoAnswer."""
        answer = await self._call("POST", {} if seconds is None else {"seconds": seconds})
        self._tell("asked to drain" if answer.status == 202 else "drains already, or was asked to")
        return dict(answer.body)

    async def withdraw(self) -> dict[str, Any]:
        """Have it serve again; the node as it is now. Raises Failed, NoAnswer."""
        answer = await self._call("DELETE")
        if answer.status == 202:
            self._tell("asked to serve again")
        return dict(answer.body)

    async def until_gone(self, node: dict[str, Any]) -> None:
        """Raises Failed, NoAnswer."""
        give_up = time.monotonic() + _NOTICE_S
        began = False
        epoch = node["epoch"]
        found: dict[str, Any] | None = node
        while found is not None:
            drain = found["drain"]
            if drain is not None:
                if not began and drain["seconds"] >= 1:
                    self._tell(f"{drain['sessions']} sessions, closed over {drain['seconds']:.0f} s")
                began, epoch = True, found["epoch"]  # a node that lost its lease goes on under another epoch
                self._tell(_PROGRESS.format_map(drain))
            elif found["epoch"] != epoch:
                self._tell("has left; another start of it serves at its address")
                return
            elif began:
                raise Failed(f"the drain of {self._node_id} was aborted; {found['connections']} sessions stay")
            elif time.monotonic() > give_up:
                raise Failed(f"{self._node_id} lives, but has not begun to drain within {_NOTICE_S:g} s; see its log")
            await asyncio.sleep(_LOOK_S)
            found = await self._look()
        self._tell("has left")

    async def until_serving(self, node: dict[str, Any]) -> None:
        """Raises Failed, NoAnswer."""
        give_up = time.monotonic() + _NOTICE_S
        epoch = node["epoch"]
        found: dict[str, Any] | None = node
        while found is not None and found["epoch"] == epoch:
            if found["drain"] is None:
                self._tell(f"serves, {found['connections']} sessions")
                return
            if time.monotonic() > give_up:
                raise Failed(f"{self._node_id} drains still after {_NOTICE_S:g} s; see its log")
            await asyncio.sleep(_LOOK_S)
            found = await self._look()
        raise Failed(f"too late: {self._node_id} has left")

    async def _call(self, method: str, body: object | None = None) -> V1Answer:
        path = f"/v1/nodes/{quote(self._node_id, safe=':')}/drain"
        answer = await ask_v1(method, self._dispatcher, path, self._api_key, body)
        if answer.problem:
            raise Failed(f"{answer.problem}. {_HINTS.get(answer.status, '')}".rstrip())
        return answer

    async def _look(self) -> dict[str, Any] | None:
        """The node; None when it is gone. A dispatcher that does not answer is asked again for a while."""
        give_up = time.monotonic() + _UNANSWERED_S
        while True:
            try:
                answer = await ask_v1("GET", self._dispatcher, "/v1/nodes", self._api_key)
                if answer.status < 500:
                    break
                reason = answer.problem
            except NoAnswer as error:
                reason = str(error)
            self._tell(f"unknown: {reason}")
            if time.monotonic() > give_up:
                raise NoAnswer(reason)
            await asyncio.sleep(_LOOK_S)
        if answer.problem:
            raise Failed(answer.problem)
        try:
            return next((node for node in answer.body["nodes"] if node["nodeId"] == self._node_id), None)
        except (KeyError, TypeError):
            raise NoAnswer("the dispatcher's answer lists no nodes") from None

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(f"{self._node_id}: {text}")


async def _run(watch: NodeWatch, seconds: float | None, *, abort: bool, wait: bool) -> None:
    node = await (watch.withdraw() if abort else watch.ask(seconds))
    if wait:
        await (watch.until_serving(node) if abort else watch.until_gone(node))


@click.command("drain")
@click.argument("node", metavar="NODE")
@click.option("--seconds", type=click.FloatRange(0, 3600), help="Close its sessions over so long; 0: all at once.")
@click.option("--abort", is_flag=True, help="Have it serve again. Clients that were sent elsewhere stay there.")
@click.option("--no-wait", is_flag=True, help="Only ask; do not watch.")
@click.option("--dispatcher", envvar="PUSH_DISPATCHER_URL", show_envvar=True, default=DEFAULT_URL, show_default=True)
@click.option(
    "--api-key",
    envvar="PUSH_API_KEY",
    show_envvar=True,
    callback=secret_option("PUSH_API_KEY"),
    help="One with the scope admin. @FILE reads it from there.",
)
def drain(node: str, seconds: float | None, abort: bool, no_wait: bool, dispatcher: str, api_key: str | None) -> None:
    """
    Have a node leave: it is offered to no more clients, sends its own elsewhere a few at a time, and ends.

    NODE is its ip:port. Nothing durable is lost, and no client waits for longer than it is told to. Shows how far it is
    until the node has left (exit code 0). Drain one node at a time; the next when this one is back and healthy.

    \b
      pushfleet drain 10.0.0.11:9000
      pushfleet drain 10.0.0.11:9000 --seconds 60      over a minute
      pushfleet drain 10.0.0.11:9000 --abort           changed my mind
    """
    if abort and seconds is not None:
        raise click.UsageError("--abort takes no --seconds")
    watch = NodeWatch(dispatcher, api_key, node, click.echo)
    try:
        asyncio.run(_run(watch, seconds, abort=abort, wait=not no_wait))
    except (Failed, NoAnswer) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        if not abort:
            click.echo(f"The drain goes on; `pushfleet drain {node} --abort` ends it.", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
