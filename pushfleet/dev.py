"""
`pushfleet dev`: a whole cluster for development in one terminal.

It works offline, keeps everything in one folder, and says what to do next once all of it is healthy. The first Ctrl-C
(or SIGTERM) stops the parts in order; a second one kills them. If this process is killed, its children are ended by
the kernel.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import click

from pushfleet.cluster import EMBEDDED_ROCKETMQ, STREAMS, Cluster, ClusterFailed, ClusterOptions
from pushfleet.dispatcher_api import DEFAULT_URL
from pushfleet.lifeline import DataFolderInUse, locked_folder
from pushfleet.ports import NoFreePort
from pushfleet.rocketmq import say
from pushfleet.secret_options import secret_option
from pushfleet.send import Send, curl_line
from shared.settings import bus_url

_KILLED = 130


def _bus(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value in (STREAMS, EMBEDDED_ROCKETMQ):
        return value
    checked = secret_option("a file", refuse=True, url=True)(context, parameter, value) or ""
    try:
        return bus_url(checked)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or the word {EMBEDDED_ROCKETMQ}") from None


@click.command("dev")
@click.option(
    "--bus",
    callback=_bus,
    default=STREAMS,
    show_default="Valkey's streams",
    metavar="rocketmq|URL",
    help="rocketmq: the broker at 127.0.0.1:9876, or one started here. A URL: rocketmq://host:9876, "
    "redis://host:6379/0; or @FILE with it, where it holds a secret.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".pushfleet"),
    show_default=True,
    help="Where data and logs are kept.",
)
@click.option("--nodes", type=click.IntRange(1, 64), default=2, show_default=True, help="How many nodes.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The dispatcher's.")
@click.option(
    "--node-port",
    type=click.IntRange(0, 65535),
    default=9000,
    show_default=True,
    help="The first node's; the others follow. A port that is taken is replaced by a free one.",
)
def dev(bus: str, data: Path, nodes: int, http_port: int, node_port: int) -> None:
    """
    Run a whole cluster on this machine until Ctrl-C: Valkey, nodes and a dispatcher.

    For development: no authentication, and nobody outside this machine can connect. Other PUSH_ variables
    are passed on to the nodes and the dispatcher.

    \b
      pushfleet dev
      pushfleet dev --bus rocketmq
      pushfleet dev --nodes 3 --http-port 8081 --data /var/tmp/second
    """
    try:
        with locked_folder(data.resolve()) as folder:
            status = asyncio.run(_run(ClusterOptions(folder, bus, nodes, http_port, node_port)))
    except DataFolderInUse as error:
        raise click.ClickException(str(error)) from None
    raise click.exceptions.Exit(status)


async def _run(options: ClusterOptions) -> int:
    """The exit code."""
    cluster = Cluster(options, say)
    stop = _stop_on_signals(cluster)
    starting = asyncio.create_task(cluster.start())
    stopping = asyncio.create_task(stop.wait())
    ends: set[asyncio.Future[Any]] = {stopping, cluster.failed}
    status = 0
    try:
        await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            click.echo(next_steps(cluster, options))
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if cluster.failed.done():
            raise ClusterFailed(cluster.failed.result())
    except (ClusterFailed, NoFreePort) as error:
        click.echo(f"Error: {error}", err=True)
        status = 1
    finally:
        say("stopping: nodes, dispatcher, bus, Valkey (Ctrl-C again kills them)")
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await cluster.stop()
        say("stopped")
    return status


def _stop_on_signals(cluster: Cluster) -> asyncio.Event:
    stop = asyncio.Event()

    def take_signal() -> None:
        if not stop.is_set():
            stop.set()
            return
        say("killed")
        cluster.kill()
        os._exit(_KILLED)  # whatever still waits for an orderly end is not waited for

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, take_signal)
    return stop


def next_steps(cluster: Cluster, options: ClusterOptions) -> str:
    """What runs where, and what to try."""
    command = own_command()
    where = "" if cluster.dispatcher_url == DEFAULT_URL else f" --dispatcher {cluster.dispatcher_url}"
    curl = curl_line(cluster.dispatcher_url, Send(("alice",), b'{"hello":1}').body())
    nodes = "\n             ".join(f"ws://{node_id}/websocket" for node_id in cluster.node_ids)
    return f"""
Pushfleet is running, without authentication, for this machine only.

  nodes      {nodes}
  dispatcher {cluster.dispatcher_url}
  bus        {cluster.bus}
  Redis      {cluster.redis_url}
  data       {options.data}  (logs in {cluster.logs})

Watch what the client alice receives, in a second terminal:

  {command} tail alice{where}

Send it something, in a third one; it need not be connected:

  {command} send alice '{{"hello":1}}'{where}

The same send as any business system would make it:

  {curl}

Ctrl-C stops everything; the data stays.
"""


def own_command() -> str:
    """How this command is typed here: its name if PATH leads to it, else its path."""
    own = Path(sys.argv[0])
    if own.name != "pushfleet":
        return f"{Path(sys.executable).name} -m pushfleet"
    found = shutil.which("pushfleet")
    if found is not None and Path(found).resolve() == own.resolve():
        return "pushfleet"
    return os.path.relpath(own) if own.is_absolute() else str(own)
