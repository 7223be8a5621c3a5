"""`pushfleet rocketmq`: a real name server and broker in the foreground, where there is no Docker."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import click

from pushfleet.jars import fetch_jars
from pushfleet.lifeline import DataFolderInUse, locked_folder
from pushfleet.local_rocketmq import LocalRocketMQ, LocalRocketMQError
from pushfleet.ports import NoFreePort, PortPicker

NAME_SERVER_PORT = 9876
_WATCH_S = 0.5
_TELL_EACH_S = 10.0


def say(text: str) -> None:
    """Progress, for a person."""
    click.echo(f"* {text}", err=True)


@click.command("rocketmq")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".pushfleet/rocketmq"),
    show_default=True,
    help="Where the broker keeps its messages.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=NAME_SERVER_PORT, show_default=True, help="Name server.")
@click.option("--fetch-only", is_flag=True, help="Fetch what is missing and end.")
def rocketmq(data: Path, port: int, fetch_only: bool) -> None:
    """
    Run a RocketMQ name server and broker on this machine until Ctrl-C.

    Maven fetches them at the first time (about 100 MB, kept in ~/.cache/pushfleet); Java 17 or later runs them.

    \b
      pushfleet rocketmq                    in one terminal
      pushfleet dev --bus rocketmq          in another: it uses this broker
    """
    try:
        if fetch_only:
            asyncio.run(_fetch())
            return
        with locked_folder(data.resolve()) as folder:
            asyncio.run(_serve(folder, port))
    except (DataFolderInUse, LocalRocketMQError, NoFreePort) as error:
        raise click.ClickException(str(error)) from None


async def _fetch() -> None:
    """Says now and then that it is still at it: Maven in quiet mode tells nothing for a minute or more."""
    began = time.monotonic()
    task = asyncio.create_task(asyncio.to_thread(fetch_jars, say))
    while not (await asyncio.wait({task}, timeout=_TELL_EACH_S))[0]:
        say(f"still fetching, {time.monotonic() - began:.0f} s")
    task.result()


async def _serve(folder: Path, port: int) -> None:
    await _fetch()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    picker = PortPicker(say)
    server = LocalRocketMQ(folder, name_server_port=picker.pick(port, "the name server"), say=say)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        say("starting the name server and the broker")
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            starting.result()
            click.echo(f"RocketMQ is up: {server.url}   (data and logs in {folder}; Ctrl-C stops it)")
        await _watch(server, stop)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        stopping.cancel()
        say("stopping RocketMQ")
        await server.stop()
        picker.close()


async def _watch(server: LocalRocketMQ, stop: asyncio.Event) -> None:
    """Until asked to stop. Raises LocalRocketMQError if a part ends by itself."""
    whole = len(server.pids)
    while not stop.is_set():
        if len(server.pids) < whole:
            raise LocalRocketMQError(f"a part of RocketMQ has ended by itself; see the logs in {server.data_dir}")
        try:
            await asyncio.wait_for(stop.wait(), _WATCH_S)
        except TimeoutError:
            continue
